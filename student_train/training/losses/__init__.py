"""The loss of a step and its terms. A term is a file here and a line in `LOSS_TERMS`."""

import torch
from torch import Tensor

from student_train.training.losses.term import LossTerm, StepLogits
from student_train.training.settings import TrainSettings
from teacher_cache.lazy import Registry

# The figure of a term is `NAME_loss` in metrics.jsonl, in the progress and in reports.
LOSS_TERMS: Registry[type[LossTerm]] = Registry(
    {
        "hard": "student_train.training.losses.hard:HardLoss",
        "soft": "student_train.training.losses.soft:SoftLoss",
    }
)


__all__ = ["LOSS_TERMS", "LossTerm", "StepLogits", "TotalLoss"]


class TotalLoss:
    """The weighted sum of the terms, which a step minimises.

    Attributes:
        reads_teacher: whether any term needs the teacher's logits.
    """

    def __init__(self, settings: TrainSettings) -> None:
        self._terms = {f"{name}_loss": kind(settings) for name, kind in LOSS_TERMS.items()}
        self.reads_teacher = any(term.reads_teacher and term.weight for term in self._terms.values())

    def __call__(self, logits: StepLogits) -> dict[str, Tensor]:
        """Return `loss`, and each term without its weight; this process's shares of them, float32 scalars."""
        zero = logits.student_BC.new_zeros((), dtype=torch.float32)
        figures = {name: term(logits) if term.weight else zero for name, term in self._terms.items()}
        total = zero
        for name, term in self._terms.items():
            total = total + term.weight * figures[name]
        return {"loss": total, **figures}
