"""`metrics.jsonl` of a configuration's runs -> curves: means over seeds, thinned so that a page holds them.

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

# The figures of a line of the log, in the order of the plots: title, unit. Further terms of the loss follow.
CURVES = {
    "loss": ("loss", "nats"),
    "hard_loss": ("hard part of the loss: cross-entropy", "nats"),
    "soft_loss": ("soft part of the loss: T² · KL, before λ", "nats"),
    "accuracy": ("accuracy on the step's batch", "%"),
    "lr": ("learning rate", ""),
    "gradient_norm": ("norm of the gradient, before clipping", ""),
    "wait_seconds": ("time waited for data, summed up", "s"),
}
POINTS = 240  # of a drawn curve: more than a plot has pixels for
LISTED = 24  # of a curve in a table

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """One figure over steps, the mean over seeds.

    Attributes:
        steps, values: what a plot needs of it, `thinned`: the lowest and the highest are among them.
        listed: by step, what a table needs: all, or evenly spread ones with the first and the last.
        seeds: how many runs it is the mean of.
        count: steps that the log has.
    """

    steps: NDArray[np.int64]
    values: Floats
    listed: dict[int, float]
    seeds: int
    count: int


def read_curves(folders: Sequence[Path]) -> dict[str, Curve]:
    """Curves of runs that differ in the seed alone, by their names in the log; at the steps that all of those
    have which have any."""
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
    """`step`, ascending, the figures of `CURVES` and all terms of the loss, [S] each; NaN where a line lacks
    one."""
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
    columns["wait_seconds"] = summed_up(columns["wait_seconds"])
    return {name: values[first] for name, values in columns.items()}


def summed_up(waited: Floats) -> Floats:
    """Seconds of waiting over a whole run: a continued one counts from zero again."""
    falls = np.flatnonzero(waited[1:] < waited[:-1])
    before = np.zeros_like(waited)
    for place in falls:
        before[place + 1 :] += waited[place]
    return waited + before


def thinned(values: Floats, points: int = POINTS) -> NDArray[np.int64]:
    """Places of the values that a plot of so many points needs: all, or of each stretch the lowest and the
    highest, and the first and the last of all."""
    count = len(values)
    if count <= points:
        return np.arange(count)
    bounds = np.linspace(0, count, points // 2).astype(np.int64)
    kept = {0, count - 1}
    for begin, end in pairwise(bounds.tolist()):
        stretch = values[begin:end]
        kept |= {begin + int(stretch.argmin()), begin + int(stretch.argmax())}
    return np.array(sorted(kept), dtype=np.int64)
