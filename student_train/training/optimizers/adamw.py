"""AdamW, with torch's betas."""

import torch

from student_train.training.optimizers import OptimizerKind
from student_train.training.settings import TrainSettings


def make_adamw(settings: TrainSettings, parameters: list[torch.nn.Parameter]) -> torch.optim.AdamW:
    """Return `torch.optim.AdamW` over the parameters."""
    return torch.optim.AdamW(parameters, lr=settings.lr, weight_decay=settings.weight_decay, foreach=True)


ADAMW = OptimizerKind(make_adamw, {"step": "scalar", "exp_avg": "parameter", "exp_avg_sq": "parameter"})
