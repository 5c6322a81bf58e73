"""SGD with momentum 0.9, as CoOp and POMP use."""

import torch

from student_train.training.optimizers import OptimizerKind
from student_train.training.settings import TrainSettings


def make_sgd(settings: TrainSettings, parameters: list[torch.nn.Parameter]) -> torch.optim.SGD:
    """Return `torch.optim.SGD` over the parameters."""
    return torch.optim.SGD(
        parameters, lr=settings.lr, momentum=0.9, weight_decay=settings.weight_decay, foreach=True
    )


SGD = OptimizerKind(make_sgd, {"momentum_buffer": "parameter"})
