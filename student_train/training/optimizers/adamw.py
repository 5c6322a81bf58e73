"""AdamW, with torch's betas."""

import torch

from student_train.training.optimizers import OptimizerKind, is_fused
from student_train.training.settings import TrainSettings


def make_adamw(settings: TrainSettings, parameters: list[torch.nn.Parameter]) -> torch.optim.AdamW:
    """Return `torch.optim.AdamW` over the parameters."""
    fused = is_fused(parameters)
    return torch.optim.AdamW(
        parameters, lr=settings.lr, weight_decay=settings.weight_decay, fused=fused, foreach=not fused
    )


ADAMW = OptimizerKind(make_adamw, {"step": "scalar", "exp_avg": "parameter", "exp_avg_sq": "parameter"})
