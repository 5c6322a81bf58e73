"""What can be measured of a model's scores. An evaluator is a file here and a line in `EVALUATORS`."""

from student_train.evaluators.accuracy import Accuracy
from student_train.evaluators.agreement import Agreement
from student_train.evaluators.base_to_new import BaseToNew, harmonic_mean
from student_train.evaluators.by_class import ByClass
from student_train.evaluators.calibration import Calibration
from student_train.evaluators.evaluator import Evaluator, Scores, Task
from student_train.evaluators.figures import FIGURES, ZERO_SHOT, is_share, shown

EVALUATORS: dict[str, type[Evaluator]] = {
    "accuracy": Accuracy,
    "calibration": Calibration,
    "agreement": Agreement,
    "base-to-new": BaseToNew,
    "by-class": ByClass,
}

__all__ = [
    "EVALUATORS",
    "FIGURES",
    "ZERO_SHOT",
    "Evaluator",
    "Scores",
    "Task",
    "harmonic_mean",
    "is_share",
    "shown",
]
