"""Mean and spread over seeds, and which figure of a column is the best."""

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
        deviation: sample standard deviation; None for a single seed, 0 for a figure that depends on no seed.
        values: one per seed.
    """

    mean: float
    deviation: float | None
    values: tuple[float, ...]


def spread(values: Iterable[float]) -> Spread | None:
    """Return mean and deviation of one value per seed; None without values."""
    found = tuple(values)
    if not found:
        return None
    return Spread(statistics.fmean(found), statistics.stdev(found) if len(found) > 1 else None, found)


def exact(value: float | None) -> Spread | None:
    """Return a figure that depends on no seed."""
    return None if value is None else Spread(value, 0.0, (value,))


def best_of(column: Sequence[Spread | None], lower: bool) -> int | None:
    """Return the index of the best figure of a column.

    Its mean must lead the second best by more than the larger of the two standard deviations. Otherwise, or
    if one of the two has no deviation, the result is None.
    """
    known = [(place, figure) for place, figure in enumerate(column) if figure is not None]
    known.sort(key=lambda pair: pair[1].mean if lower else -pair[1].mean)
    if len(known) < 2:
        return None
    (place, first), (_, second) = known[:2]
    if first.deviation is None or second.deviation is None:
        return None
    lead = abs(first.mean - second.mean)
    return place if lead > max(first.deviation, second.deviation) else None


def number(value: Any) -> float | None:
    """Return a finite number as a float, anything else as None."""
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
