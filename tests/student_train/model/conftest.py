"""What tests of towers share."""

import importlib
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def memory_of(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Measures the bytes of tensors that operations make and that are alive, as the benchmark does."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[3] / "benchmarks"))
    return importlib.import_module("step_operations").LiveBytes
