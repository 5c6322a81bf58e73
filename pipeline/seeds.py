"""Mean and spread over seeds, and when a figure may be called the best."""

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from student_train.figures import FIGURES, is_share, shown

LOWER_IS_BETTER = ("ece", "kl")
# The frozen model is the teacher: against itself it has 100 % and 0.
AGAINST_THE_TEACHER = ("agreement", "kl")
# Of an evaluation's figures the first of these that it has stands for it in plots.
HEADLINE = ("harmonic", "top1", "per_class", "new", "base", *FIGURES)


@dataclass(frozen=True)
class Spread:
    """A figure over seeds.

    Attributes:
        mean: of the values.
        deviation: sample standard deviation; 0 for a figure that has no seed, None for a single seed.
        values: one a seed.
    """

    mean: float
    deviation: float | None
    values: tuple[float, ...]


def spread(values: Iterable[float]) -> Spread | None:
    """Over seeds; None without a value."""
    found = tuple(values)
    if not found:
        return None
    return Spread(statistics.fmean(found), statistics.stdev(found) if len(found) > 1 else None, found)


def exact(value: float | None) -> Spread | None:
    """A figure that no seed changes."""
    return None if value is None else Spread(value, 0.0, (value,))


def best_of(column: Sequence[Spread | None], lower: bool) -> int | None:
    """The place of the best figure of a column, if it may be marked: its mean leads the second one's by more
    than the larger of both standard deviations. None if it does not, or if one of both has no deviation."""
    there = [(place, figure) for place, figure in enumerate(column) if figure is not None]
    there.sort(key=lambda pair: pair[1].mean if lower else -pair[1].mean)
    if len(there) < 2:
        return None
    (place, first), (_, second) = there[:2]
    if first.deviation is None or second.deviation is None:
        return None
    lead = abs(first.mean - second.mean)
    return place if lead > max(first.deviation, second.deviation) else None


def number(value: Any) -> float | None:
    """A finite number, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def figure_text(name: str, figure: Spread | None, none: str = "–") -> str:
    """A figure as a table has it: mean ± standard deviation, the mean alone where there is none."""
    return spread_text(figure, lambda value: shown(name, value), none)


def spread_text(figure: Spread | None, shown: Callable[[float], str], none: str = "–") -> str:
    """The same for any number; `shown` says how many digits it has."""
    if figure is None:
        return none
    if figure.deviation is None or len(figure.values) < 2:
        return shown(figure.mean)
    return f"{shown(figure.mean)} ± {shown(figure.deviation)}"


def scaled(name: str, value: float) -> float:
    """As plots show it: shares in per cent."""
    return 100 * value if is_share(name) else value


def headline_of(evaluation: dict[str, Any]) -> str | None:
    """The figure that stands for an evaluation."""
    return next((name for name in HEADLINE if number(evaluation.get(name)) is not None), None)
