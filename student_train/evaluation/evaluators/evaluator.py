"""The interface of evaluators: they take scores batch by batch and return figures.

Shapes: B images, C classes.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from torch import Tensor


@dataclass(frozen=True)
class Task:
    """What is evaluated.

    Attributes:
        classes: C, the classes to choose among.
        temperature: T of the soft labels that are compared with the teacher's.
        names: of the classes; empty if they have only numbers.
        ids: of the classes; unlike names, no two are equal.
    """

    classes: int
    temperature: float = 1.0
    names: tuple[str, ...] = ()
    ids: tuple[str, ...] = ()


@dataclass(frozen=True)
class Scores:
    """Logits and labels of a batch of images.

    Attributes:
        logits_BC: the model's, float32.
        labels_B: the right classes, int64.
        teacher_logits_BC: the teacher's, for evaluators that need a teacher.
    """

    logits_BC: Tensor
    labels_B: Tensor
    teacher_logits_BC: Tensor | None = None


class Evaluator(Protocol):
    """Computes figures over one data set. Raises UsageError for a `Task` that does not fit."""

    needs_teacher: ClassVar[bool] = False

    def __init__(self, task: Task) -> None: ...

    def update(self, scores: Scores) -> None:
        """Add a batch of images."""
        ...

    def figures(self) -> dict[str, Any]:
        """Return figures over all images so far by name: numbers, or other JSON values."""
        ...


def top_places(logits_BC: Tensor, labels_B: Tensor) -> Tensor:
    """Return the rank of the right class, [B] int64, 0 = first; of equal logits the lower index is first."""
    own_B1 = logits_BC.gather(1, labels_B[:, None])
    higher_B = (logits_BC > own_B1).sum(1)
    equal_BC = logits_BC == own_B1
    before_B = equal_BC.cumsum(1).gather(1, labels_B[:, None])[:, 0] - 1
    return higher_B + before_B
