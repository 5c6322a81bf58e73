"""Detection of steps that go wrong: a loss or gradient that is not finite, float16 that always overflows.

Steps are noted on the device, so that no step waits for the GPU, and checked before each line of the log and
each checkpoint: no checkpoint has the results of a bad step.
"""

from typing import Any

import torch
from torch import Tensor

NEVER = torch.iinfo(torch.int64).max


class Health:
    """Keeps what went wrong in the steps of a run.

    With a gradient scaler (fp16), a gradient that is not finite is not an error: the step is skipped and the
    scale is halved. Gradients that overflow without any scaling are one: no later step would be taken.
    """

    def __init__(self, device: torch.device, clip_norm: float, scaler: torch.amp.GradScaler) -> None:
        """Args:
        clip_norm: largest norm of a gradient; 0 does not clip.
        scaler: of the loss; enabled under fp16 only.
        """
        self._clip_norm, self._scaler = clip_norm, scaler
        # first steps of a loss, and of a gradient, that is not finite
        self._first = torch.full((2,), NEVER, device=device)
        self._clipped = torch.zeros((), dtype=torch.int64, device=device)
        self._skipped = torch.zeros_like(self._clipped)

    def note(self, step: int, loss: Tensor, gradient_norm: Tensor) -> None:
        """Record the loss of a step, the first of which is 1, and its gradient's norm before clipping."""
        finite = gradient_norm.isfinite()
        wrong = torch.stack([~loss.isfinite(), ~finite & (not self._scaler.is_enabled())])
        self._first = torch.where(wrong, self._first.clamp(max=step), self._first)
        if self._clip_norm:
            self._clipped += finite & (gradient_norm > self._clip_norm)
        if self._scaler.is_enabled():
            self._skipped += ~finite

    def fault(self) -> tuple[int, str] | None:
        """The first step that went wrong, and a description; None if none did."""
        loss, gradient = self._first.tolist()
        if loss <= gradient and loss < NEVER:  # the gradient of such a loss is not finite either
            return loss, "the loss is not finite"
        return None if gradient == NEVER else (gradient, "the gradient is not finite")

    def overflows(self) -> bool:
        """Whether float16 gradients overflow without any scaling."""
        return self._scaler.is_enabled() and self._scaler.get_scale() < 1

    def counts(self) -> dict[str, Any]:
        """The figures of a line of the log: steps since the last line whose gradient was clipped; under fp16
        also the loss scale and the steps that were skipped. Resets the counts."""
        found: dict[str, Any] = {"clipped_steps": int(self._clipped)}
        if self._scaler.is_enabled():
            found |= {"loss_scale": self._scaler.get_scale(), "left_out_steps": int(self._skipped)}
        self._clipped.zero_()
        self._skipped.zero_()
        return found
