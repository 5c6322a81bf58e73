"""The kinds of optimizers. A kind is a file here and a line in `OPTIMIZERS`. Nothing here imports torch."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from teacher_cache.lazy import Registry

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class OptimizerKind:
    """What training and checkpoints need to know of an optimizer.

    Attributes:
        make: from `TrainSettings` and the learnable parameters; the learning rate is set at every step.
        state: the tensors that it keeps of each parameter, by their names in `torch.optim.Optimizer.state`:
            whether they have the parameter's shape or are scalars.
    """

    make: "Callable[[Any, list[torch.nn.Parameter]], torch.optim.Optimizer]"
    state: Mapping[str, Literal["parameter", "scalar"]]


def is_fused(parameters: "list[torch.nn.Parameter]") -> bool:
    """Return whether torch's fused step is used, otherwise its `foreach` one: on CUDA.

    Under float16 a fused step skips itself if gradients overflowed; others wait for the GPU to know that.
    """
    return all(parameter.device.type == "cuda" for parameter in parameters)


OPTIMIZERS: Registry[OptimizerKind] = Registry(
    {
        "sgd": "student_train.training.optimizers.sgd:SGD",
        "adamw": "student_train.training.optimizers.adamw:ADAMW",
    }
)
