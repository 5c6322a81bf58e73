"""The optimizer and the learning rate of every step."""

import math

import torch

from student_train.training.settings import TrainSettings
from teacher_cache.errors import UsageError


def make_optimizer(settings: TrainSettings, parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """SGD with momentum 0.9, as CoOp and POMP use, or AdamW.

    Raises:
        UsageError: no parameters.
    """
    if not parameters:
        raise UsageError("nothing to train: a prompt depth of 0 has no prompts")
    if settings.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=settings.lr, momentum=0.9, weight_decay=settings.weight_decay)
    return torch.optim.AdamW(parameters, lr=settings.lr, weight_decay=settings.weight_decay)


def learning_rate(settings: TrainSettings, step: int, total_steps: int) -> float:
    """Linear warm-up, then cosine to zero."""
    warmup_steps = round(settings.warmup * total_steps)
    if step < warmup_steps:
        return settings.lr * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return settings.lr * 0.5 * (1 + math.cos(math.pi * progress))
