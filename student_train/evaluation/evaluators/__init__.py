"""What can be measured of a model's scores. An evaluator is a file here and a line in `EVALUATORS`."""

from typing import TYPE_CHECKING

from teacher_cache.lazy import Registry, lazy_names

if TYPE_CHECKING:
    from student_train.evaluation.evaluators.base_to_new import harmonic_mean
    from student_train.evaluation.evaluators.evaluator import Evaluator, Scores, Task
else:
    __getattr__, __dir__ = lazy_names(
        __name__, {"base_to_new": ("harmonic_mean",), "evaluator": ("Evaluator", "Scores", "Task")}
    )

EVALUATORS: Registry["type[Evaluator]"] = Registry(
    {
        "accuracy": "student_train.evaluation.evaluators.accuracy:Accuracy",
        "calibration": "student_train.evaluation.evaluators.calibration:Calibration",
        "agreement": "student_train.evaluation.evaluators.agreement:Agreement",
        "base-to-new": "student_train.evaluation.evaluators.base_to_new:BaseToNew",
        "by-class": "student_train.evaluation.evaluators.by_class:ByClass",
    }
)

__all__ = ["EVALUATORS", "Evaluator", "Scores", "Task", "harmonic_mean"]
