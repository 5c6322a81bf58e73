"""What can be measured of a model's scores. An evaluator is a file here and a line in `EVALUATORS`."""

from student_train.evaluators.accuracy import Accuracy
from student_train.evaluators.agreement import Agreement
from student_train.evaluators.base_to_new import BaseToNew, harmonic_mean
from student_train.evaluators.calibration import Calibration
from student_train.evaluators.evaluator import Evaluator, Scores, Task

EVALUATORS: dict[str, type[Evaluator]] = {
    "accuracy": Accuracy,
    "calibration": Calibration,
    "agreement": Agreement,
    "base-to-new": BaseToNew,
}

# All figures in the order of a table's columns, and what stands above them.
FIGURES = {
    "top1": "top-1 %",
    "top5": "top-5 %",
    "per_class": "per class %",
    "base": "base %",
    "new": "new %",
    "harmonic": "harmonic %",
    "agreement": "agreement %",
    "ece": "ECE",
    "kl": "KL",
}

__all__ = ["EVALUATORS", "FIGURES", "Evaluator", "Scores", "Task", "harmonic_mean"]
