"""Curves: means over seeds, thinned without losing what matters."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from pipeline.report.curves import (
    CURVES,
    LISTED,
    POINTS,
    read_columns,
    read_curves,
    thinned,
    title_of,
    total_waited,
)
from student_train.runs.record import METRICS, read_metrics


def write_log(folder: Path, lines: list[dict[str, Any]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / METRICS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@given(
    arrays.arrays(np.float64, st.integers(1, 3000), elements=st.floats(-1e6, 1e6)),
    st.integers(4, 300),
)
def test_a_thinned_curve_keeps_the_ends_and_the_extremes(values: np.ndarray[Any, Any], points: int) -> None:
    kept = thinned(values, points)
    assert len(kept) <= max(points, 4)
    assert (np.diff(kept) > 0).all()
    assert {0, len(values) - 1} <= set(kept.tolist())
    assert values[kept].min() == values.min()
    assert values[kept].max() == values.max()
    if len(values) <= points:
        assert len(kept) == len(values)


def test_curves_are_the_logs_means(sweep_path: Path) -> None:
    folders = [sweep_path / "runs" / f"t4-w0.5-{seed}" for seed in (0, 1)]
    logs = [list(read_metrics(folder)) for folder in folders]
    curves = read_curves(folders)
    assert list(curves) == list(CURVES)
    for name, curve in curves.items():
        factor = 100 if name == "accuracy" else 1
        means = [factor * (a[name] + b[name]) / 2 for a, b in zip(*logs, strict=True)]
        assert curve.steps.tolist() == [1, 2, 3, 4, 5, 6]
        assert curve.values == pytest.approx(means)
        assert list(curve.listed.values()) == pytest.approx(means)
        assert (curve.seeds, curve.count) == (2, 6)
    assert logs[0][3]["loss"] != logs[1][3]["loss"], "two seeds, not one run twice"


def test_runs_are_compared_at_the_steps_that_all_have(tmp_path: Path) -> None:
    line = {"hard_loss": 1.0, "accuracy": None}
    one = write_log(tmp_path / "a", [{"step": s, "loss": 1.0 * s, **line} for s in (1, 2, 3, 4)])
    other = write_log(tmp_path / "b", [{"step": s, "loss": 3.0 * s, **line} for s in (2, 4, 6)])
    none = write_log(tmp_path / "c", [])
    curves = read_curves([one, other, none, tmp_path / "gone"])
    assert curves["loss"].steps.tolist() == [2, 4]
    assert curves["loss"].values.tolist() == [4.0, 8.0]
    assert curves["loss"].seeds == 2
    assert "accuracy" not in curves, "no line has one"
    assert "lr" not in curves, "an old log"
    assert read_curves([none]) == {}


def test_a_further_term_of_the_loss_has_a_curve(tmp_path: Path) -> None:
    """In a log that has it from some line on, beside one that lacks it."""
    lines = [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 1.0, "focal_loss": 0.5}]
    curves = read_curves([write_log(tmp_path / "a", lines)])
    assert (curves["focal_loss"].steps.tolist(), curves["focal_loss"].values.tolist()) == ([2], [0.5])
    assert title_of("focal_loss") == ("focal part of the loss", "")
    other = write_log(tmp_path / "b", [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 1.0}])
    assert "focal_loss" not in read_curves([tmp_path / "a", other]), "not every run has it"


def test_a_long_log_is_thinned_and_its_extremes_are_listed(tmp_path: Path) -> None:
    losses = np.random.default_rng(0).normal(size=5000)
    losses[1234], losses[4321] = -50.0, 50.0
    log = [{"step": s, "loss": float(loss)} for s, loss in enumerate(losses, start=1)]
    curve = read_curves([write_log(tmp_path / "run", log)])["loss"]
    assert len(curve.steps) <= POINTS
    assert (curve.values.min(), curve.values.max()) == (-50.0, 50.0)
    assert curve.count == 5000
    assert len(curve.listed) == LISTED
    assert {1, 5000} <= set(curve.listed)
    assert all(losses[step - 1] == value for step, value in curve.listed.items())


def test_waiting_time_adds_up_over_a_resumed_run(tmp_path: Path) -> None:
    assert total_waited(np.array([1.0, 2.0, 0.5, 0.75, 0.25])).tolist() == [1.0, 2.0, 2.5, 2.75, 3.0]
    waits = [1.0, 2.0, 0.5]
    log = [{"step": s, "loss": 1.0, "wait_seconds": wait} for s, wait in enumerate(waits)]
    assert read_columns(write_log(tmp_path, log))["wait_seconds"].tolist() == [1.0, 2.0, 2.5]
