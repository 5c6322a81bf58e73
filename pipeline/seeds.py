"""Mean and spread over seeds, and when a figure may be called the best."""

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from student_train.figures import FIGURES

# Plots show the first of these figures that an evaluation has.
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
    """Format a figure of an evaluation: mean ± standard deviation, or only the mean."""
    return format_spread(figure, FIGURES[name].text, none)


def format_spread(spread: Spread | None, digits: Callable[[float], str], none: str = "–") -> str:
    """Format mean ± standard deviation, or only the mean.

    Args:
        digits: formats one number.
        none: the text for no spread.
    """
    if spread is None:
        return none
    if spread.deviation is None or len(spread.values) < 2:
        return digits(spread.mean)
    return f"{digits(spread.mean)} ± {digits(spread.deviation)}"


def headline_of(evaluation: dict[str, Any]) -> str | None:
    """The figure that stands for an evaluation."""
    return next((name for name in HEADLINE if number(evaluation.get(name)) is not None), None)
