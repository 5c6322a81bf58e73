"""The count of a step's operations."""

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The benchmark, imported as running it as a script does."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("step_operations")


def test_operations_that_only_view_are_not_counted(benchmark: Any) -> None:
    x = torch.randn(4, 6, requires_grad=True)
    with benchmark.Operations() as operations:
        ((x.T @ x).view(36) + 1).sum().backward()
    assert operations.names["mm"] == 3  # one forward, two backward
    assert operations.names["sum"] == 1
    assert "view" not in operations.names
    assert operations.dispatched > sum(operations.names.values())


def test_a_step_has_few_operations() -> None:
    """1,000 names, as many operations as all names on a GPU; the text tower's plan decides."""
    command = [sys.executable, BENCHMARKS / "step_operations.py", "--memory", "80GB", "--json"]
    found = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    assert found["details"]["all_names"]["plan"].startswith("1 chunk, all activations kept")
    assert 500 < found["all_names"] <= 760
    assert found["sampled_1000"] <= 760
    assert found["sampled_1000"] < found["both_towers"] <= 1_160
    assert found["teacher_forward"] <= 110


def test_half_precision_weights_save_a_cast_for_each_product(benchmark: Any) -> None:
    clip, dtype = benchmark.narrow_model("ViT-B-32"), torch.bfloat16
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        cast = benchmark.count_teacher(clip, dtype)["operations"]
        half = benchmark.frozen_copy(clip, torch.device("cpu"), dtype, [clip.visual])
        kept = benchmark.count_teacher(half, dtype)["operations"]
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    assert (
        cast - kept == 12 * 4 * 2 + 1
    )  # weight and bias of four products in each block; the patches' weight


def test_predicted_peaks_are_measured_without_computing(benchmark: Any) -> None:
    """A full text tower: one plan keeps everything, the other computes some chunks again."""
    kept, partly = benchmark.full_peaks("ViT-B-16", ["16GB", "1.5GB"], 4000)
    assert kept["plan"].startswith("1 chunk, all activations kept")
    assert "recomputed" in partly["plan"]
    assert kept["measured_gib"] > 2 * partly["measured_gib"]
    assert kept["tflop"] < partly["tflop"] < 1.5 * kept["tflop"]
    for found in (kept, partly):
        assert found["predicted_over_measured"] == pytest.approx(1, abs=0.1)


def test_live_bytes_are_those_of_the_largest_moment(benchmark: Any) -> None:
    x = torch.ones(1000)

    def work() -> None:
        for _ in range(3):
            (x + 1) * x  # two tensors of 4,000 bytes at a time

    assert benchmark.peak_of(work, [x], torch.device("cpu")) == 8000
