"""SGD with momentum 0.9, as CoOp and POMP use."""

import torch

from student_train.training.optimizers import OptimizerKind, is_fused
from student_train.training.settings import TrainSettings


def make_sgd(settings: TrainSettings, parameters: list[torch.nn.Parameter]) -> torch.optim.SGD:
    """Return `torch.optim.SGD` over the parameters."""
    fused = is_fused(parameters)
    return torch.optim.SGD(
        parameters,
        lr=settings.lr,
        momentum=0.9,
        weight_decay=settings.weight_decay,
        fused=fused,
        foreach=not fused,
    )


SGD = OptimizerKind(make_sgd, {"momentum_buffer": "parameter"})
