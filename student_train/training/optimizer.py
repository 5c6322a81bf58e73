"""The optimizer's step: learning rate, gradient scaling and clipping."""

import math

import torch
from torch import Tensor

from student_train.training.optimizers import OPTIMIZERS
from student_train.training.settings import TrainSettings
from teacher_cache.errors import UsageError


class PromptOptimizer:
    """The optimizer of a run's prompts.

    Attributes:
        name: its kind, a name in `OPTIMIZERS`.
        parameters: what it changes.
        optimizer: torch's own.
        scaler: of the loss; enabled under fp16 only.
    """

    def __init__(
        self,
        settings: TrainSettings,
        parameters: list[torch.nn.Parameter],
        device: torch.device,
        total_steps: int,
    ) -> None:
        """Args:
        total_steps: of the learning rate's schedule.

        Raises:
            UsageError: no parameters.
        """
        if not parameters:
            raise UsageError("nothing to train: a prompt depth of 0 has no prompts")
        self.name, self.parameters = settings.optimizer, parameters
        self.optimizer = OPTIMIZERS[settings.optimizer].make(settings, parameters)
        self.scaler = torch.amp.GradScaler(device.type, enabled=settings.precision == "fp16")
        self._settings, self._total_steps = settings, total_steps

    @property
    def rate(self) -> float:
        """The learning rate of the last step."""
        rate: float = self.optimizer.param_groups[0]["lr"]
        return rate

    def backward(self, loss: Tensor, step: int) -> None:
        """Compute the scaled gradients of step `step`, the first of which is 0, and set its learning rate."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self._settings, step, self._total_steps)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()

    def step(self) -> Tensor:
        """Change the parameters by their gradients; return the gradients' norm before clipping, a scalar."""
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self._settings.clip_norm or float("inf"))
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return norm


def learning_rate(settings: TrainSettings, step: int, total_steps: int) -> float:
    """Linear warm-up, then cosine to zero."""
    warmup_steps = round(settings.warmup * total_steps)
    if step < warmup_steps:
        return settings.lr * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return settings.lr * 0.5 * (1 + math.cos(math.pi * progress))
