"""Figures of steps that go wrong: a loss or a gradient that is not finite, float16 that overflows for good.

They are noted on the device, since a GPU is not waited for at every step, and looked at where a line of the
log or a checkpoint is due: no checkpoint holds what came after them.
"""

from typing import Any

import torch
from torch import Tensor

NEVER = torch.iinfo(torch.int64).max


class Health:
    """What steps have shown since the last look.

    With a gradient scaler (fp16) a gradient that is not finite is no fault: the step is left out and the
    scale halved. Only where even gradients that are not scaled up overflow, no later step will be taken.
    """

    def __init__(self, device: torch.device, clip_norm: float, scaler: torch.amp.GradScaler) -> None:
        """Args:
        clip_norm: largest norm of a gradient; 0 does not clip.
        scaler: of the loss; not enabled where gradients need none.
        """
        self._clip_norm, self._scaler = clip_norm, scaler
        # first steps of a loss, and of a gradient, that is not finite
        self._first = torch.full((2,), NEVER, device=device)
        self._clipped = torch.zeros((), dtype=torch.int64, device=device)
        self._left_out = torch.zeros_like(self._clipped)

    def note(self, step: int, loss: Tensor, gradient_norm: Tensor) -> None:
        """Take down the loss of a step (the first is 1) and the norm of its gradient before clipping."""
        finite = gradient_norm.isfinite()
        wrong = torch.stack([~loss.isfinite(), ~finite & (not self._scaler.is_enabled())])
        self._first = torch.where(wrong, self._first.clamp(max=step), self._first)
        if self._clip_norm:
            self._clipped += finite & (gradient_norm > self._clip_norm)
        if self._scaler.is_enabled():
            self._left_out += ~finite

    def fault(self) -> tuple[int, str] | None:
        """The first step that went wrong, and what did."""
        loss, gradient = self._first.tolist()
        if loss <= gradient and loss < NEVER:  # the gradient of such a loss is not finite either
            return loss, "the loss is not finite"
        return None if gradient == NEVER else (gradient, "the gradient is not finite")

    def overflows(self) -> bool:
        """Whether float16 gradients overflow without any scaling up."""
        return self._scaler.is_enabled() and self._scaler.get_scale() < 1

    def counts(self) -> dict[str, Any]:
        """For a line of the log: how many steps since the last one had their gradient clipped; under fp16 the
        loss scale, and how many steps were left out. Counting begins anew."""
        found: dict[str, Any] = {"clipped_steps": int(self._clipped)}
        if self._scaler.is_enabled():
            found |= {"loss_scale": self._scaler.get_scale(), "left_out_steps": int(self._left_out)}
        self._clipped.zero_()
        self._left_out.zero_()
        return found
