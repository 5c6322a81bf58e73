"""What an evaluator is: it takes scores batch by batch and gives figures in the end.

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
        names: of the classes; none where they have only numbers.
    """

    classes: int
    temperature: float = 1.0
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Scores:
    """What was said of some images.

    Attributes:
        logits_BC: the model's, float32.
        labels_B: the right classes, int64.
        teacher_logits_BC: the teacher's, for evaluators that need one.
    """

    logits_BC: Tensor
    labels_B: Tensor
    teacher_logits_BC: Tensor | None = None


class Evaluator(Protocol):
    """Figures over one data set. Made for a `Task`, of which it may refuse one (UsageError)."""

    needs_teacher: ClassVar[bool]

    def __init__(self, task: Task) -> None: ...

    def update(self, scores: Scores) -> None:
        """Take the scores of the next images."""
        ...

    def figures(self) -> dict[str, Any]:
        """Name and value of each figure over all images so far: numbers, or what JSON takes."""
        ...


def top_places(logits_BC: Tensor, labels_B: Tensor) -> Tensor:
    """Place of the right class among all, 0 = first, [B] int64; of equals the lower class is first."""
    own_B1 = logits_BC.gather(1, labels_B[:, None])
    higher_B = (logits_BC > own_B1).sum(1)
    equal_BC = logits_BC == own_B1
    before_B = equal_BC.cumsum(1).gather(1, labels_B[:, None])[:, 0] - 1
    return higher_B + before_B
