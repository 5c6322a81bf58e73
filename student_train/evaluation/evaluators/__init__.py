"""Figures of a model's scores. An evaluator is a file here and an entry in `METRICS` (`figures.py`)."""

from typing import TYPE_CHECKING

from student_train.figures import METRICS
from teacher_cache.lazy import Registry, lazy_names

if TYPE_CHECKING:
    from student_train.evaluation.evaluators.base_to_new import harmonic_mean
    from student_train.evaluation.evaluators.evaluator import Evaluator, Scores, Task
else:
    __getattr__, __dir__ = lazy_names(
        __name__, {"base_to_new": ("harmonic_mean",), "evaluator": ("Evaluator", "Scores", "Task")}
    )

EVALUATORS: Registry["type[Evaluator]"] = Registry(
    {name: f"{__name__}.{metric.evaluator}" for name, metric in METRICS.items()}
)

__all__ = ["EVALUATORS", "Evaluator", "Scores", "Task", "harmonic_mean"]
