"""What every term of the loss is computed from, and its interface.

Shapes: B samples of the step in this process, C classes of the step (all of them, or K sampled ones).
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from student_train.training.settings import TrainSettings


@dataclass(frozen=True)
class StepLogits:
    """The logits of a step, and its hard labels.

    Attributes:
        student_BC: the student's logits, any floating type.
        teacher_BC: the teacher's logits; anything where no term of the loss reads them.
        targets_B: position of the hard label among the C classes, int64; -1 = none.
        correction: what a softmax over sampled classes adds to every logit but the target's, see
            `step_classes.sampling_correction`.
        share: this process's share of the step's samples.
        labelled_share: this process's share of the step's samples that have a hard label.
    """

    student_BC: Tensor
    teacher_BC: Tensor
    targets_B: Tensor
    correction: float = 0.0
    share: float = 1.0
    labelled_share: float = 1.0


class LossTerm(ABC):
    """One term of the loss, a mean over the samples of a step."""

    reads_teacher: ClassVar[bool] = False  # whether it needs the teacher's logits

    def __init__(self, settings: TrainSettings) -> None:
        self.settings = settings

    @property
    @abstractmethod
    def weight(self) -> float:
        """Factor of the term in the total loss; with 0 the term is not computed."""

    @abstractmethod
    def __call__(self, logits: StepLogits) -> Tensor:
        """Return this process's share of the mean, without the weight: a float32 scalar.

        The shares of all processes are summed.
        """
