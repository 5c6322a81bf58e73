"""Evaluators by name, and how tables show the figures of each. Imports none of them: torch takes seconds.

The evaluators themselves are in `evaluation/evaluators/`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

ZERO_SHOT = "zero-shot"  # the frozen model, in place of a student's folder
TEACHER = "teacher"  # in results: the cache's frozen model, if the student's is another one


@dataclass(frozen=True)
class Figure:
    """How tables show a figure of an evaluation.

    Attributes:
        heading: column heading; one that ends in % is a share of 1, printed in per cent.
        lower_is_better: whether the lowest value of a column is the best one.
        against_teacher: whether the figure compares with the teacher, so that the teacher itself is not
            compared with students.
    """

    heading: str
    lower_is_better: bool = False
    against_teacher: bool = False

    @property
    def scale(self) -> int:
        """Factor from a value to the number that tables and plots print."""
        return 100 if self.heading.endswith("%") else 1

    def text(self, value: float) -> str:
        """Format a value for a table."""
        return f"{100 * value:.2f}" if self.scale == 100 else f"{value:.4f}"


@dataclass(frozen=True)
class Metric:
    """A name for `--metrics`.

    Attributes:
        evaluator: FILE:CLASS in `evaluation/evaluators/`.
        figures: the numbers that it gives, in the order of a table's columns.
    """

    evaluator: str
    figures: Mapping[str, Figure] = field(default_factory=dict)


METRICS = {
    "accuracy": Metric(
        "accuracy:Accuracy",
        {"top1": Figure("top-1 %"), "top5": Figure("top-5 %"), "per_class": Figure("per class %")},
    ),
    "base-to-new": Metric(
        "base_to_new:BaseToNew",
        {"base": Figure("base %"), "new": Figure("new %"), "harmonic": Figure("harmonic %")},
    ),
    "calibration": Metric("calibration:Calibration", {"ece": Figure("ECE", lower_is_better=True)}),
    "agreement": Metric(
        "agreement:Agreement",
        {
            "agreement": Figure("teacher agrees %", against_teacher=True),
            "kl": Figure("KL to teacher", lower_is_better=True, against_teacher=True),
        },
    ),
    "by-class": Metric("by_class:ByClass"),
}
FIGURES = {name: figure for metric in METRICS.values() for name, figure in metric.figures.items()}
