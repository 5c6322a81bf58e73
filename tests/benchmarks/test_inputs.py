"""The benchmarks of decoding and building run, on few pictures, and report what their pages quote."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def report(name: str, *options: str) -> dict[str, Any]:
    """Run a benchmark in a process of its own and return its figures."""
    command = [sys.executable, str(BENCHMARKS / f"{name}.py"), *options, "--json"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert not ran.returncode, ran.stderr
    found: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize(
    ("name", "options", "figures"),
    [
        ("input", ("--count", "16", "--rounds", "1"), ("stage_one", "stage_two", "threads")),
        ("build_overhead", ("--count", "4", "--rounds", "1", "--model", "ViT-S-32-alt"), ("ratio",)),
    ],
)
def test_a_benchmark_runs(name: str, options: tuple[str, ...], figures: tuple[str, ...]) -> None:
    found = report(name, *options)
    for figure in figures:
        value = found[figure] if figure == "ratio" else found[figure]["ratio"]
        assert value > 0
    assert found["images"] == int(options[1])
