"""Read curves from `metrics.jsonl` of a configuration's runs: means over seeds, thinned for a plot.

Shapes: S lines of the log.
"""

import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.seeds import number
from student_train.runs.record import read_metrics

# Title and unit of each value of the log, in the order of the plots. Other terms of the loss follow.
CURVES = {
    "loss": ("loss", "nats"),
    "hard_loss": ("hard part of the loss: cross-entropy", "nats"),
    "soft_loss": ("soft part of the loss: T² · KL, before λ", "nats"),
    "accuracy": ("accuracy on the step's batch", "%"),
    "lr": ("learning rate", ""),
    "gradient_norm": ("norm of the gradient, before clipping", ""),
    "wait_seconds": ("total time waited for data", "s"),
}
POINTS = 240  # per curve in a plot
LISTED = 24  # steps per curve in a table

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """One figure over steps, the mean over seeds.

    Attributes:
        steps, values: points for a plot, `thinned`, with the lowest and the highest.
        listed: values by step for a table: all, or evenly spaced ones with the first and the last.
        seeds: number of runs in the mean.
        count: number of steps in the log.
    """

    steps: NDArray[np.int64]
    values: Floats
    listed: dict[int, float]
    seeds: int
    count: int


def read_curves(folders: Sequence[Path]) -> dict[str, Curve]:
    """Return mean curves of runs that differ only in the seed, by their names in the log.

    A curve has the steps that all runs have logged; runs without a log are left out.
    """
    runs = [found for folder in folders if len((found := read_columns(folder))["step"])]
    if not runs:
        return {}
    steps = reduce(np.intersect1d, [run["step"] for run in runs]).astype(np.int64)
    curves = {}
    for name in dict.fromkeys([*CURVES, *(name for run in runs for name in run if name != "step")]):
        lacking = np.full(len(steps), math.nan)
        columns = [run[name][np.searchsorted(run["step"], steps)] if name in run else lacking for run in runs]
        values = np.mean(columns, axis=0)
        known = np.isfinite(values)
        if known.any():
            curves[name] = _curve(steps[known], values[known], len(runs))
    return curves


def title_of(name: str) -> tuple[str, str]:
    """Title and unit of a curve."""
    return CURVES.get(name, (f"{name.removesuffix('_loss')} part of the loss", ""))


def _curve(steps: NDArray[np.int64], values: Floats, seeds: int) -> Curve:
    drawn = thinned(values)
    spread = np.unique(np.linspace(0, len(steps) - 1, min(LISTED, len(steps))).round().astype(np.int64))
    listed = dict(zip(steps[spread].tolist(), values[spread].tolist(), strict=True))
    return Curve(steps[drawn], values[drawn], listed, seeds, len(steps))


def read_columns(folder: Path) -> dict[str, Floats]:
    """Read `step`, ascending, the values of `CURVES` and all terms of the loss, [S] each; NaN for a missing
    value."""
    found = {name: array("d") for name in ("step", *CURVES)}
    for lines, line in enumerate(read_metrics(folder)):
        for name in line:
            if name.endswith("_loss") and name not in found:
                found[name] = array("d", [math.nan] * lines)
        for name, column in found.items():
            value = number(line.get(name))
            column.append(math.nan if value is None else value)
    columns = {name: np.array(column) for name, column in found.items()}
    _, first = np.unique(columns["step"], return_index=True)
    columns["accuracy"] *= 100
    columns["wait_seconds"] = total_waited(columns["wait_seconds"])
    return {name: values[first] for name, values in columns.items()}


def total_waited(waited: Floats) -> Floats:
    """Return the total seconds waited so far; the log of a resumed run counts from zero again."""
    falls = np.flatnonzero(waited[1:] < waited[:-1])
    before = np.zeros_like(waited)
    for place in falls:
        before[place + 1 :] += waited[place]
    return waited + before


def thinned(values: Floats, points: int = POINTS) -> NDArray[np.int64]:
    """Return the indices of values to plot: all, or the lowest and highest of each interval, with the first
    and the last."""
    count = len(values)
    if count <= points:
        return np.arange(count)
    bounds = np.linspace(0, count, points // 2).astype(np.int64)
    kept = {0, count - 1}
    for begin, end in pairwise(bounds.tolist()):
        interval = values[begin:end]
        kept |= {begin + int(interval.argmin()), begin + int(interval.argmax())}
    return np.array(sorted(kept), dtype=np.int64)
