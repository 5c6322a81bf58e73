"""Runs that an earlier version stopped are continued, and end with the same tensors."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from student_train.training.loop import train
from tests.data.runs.write import RUNS, STOPPED_AFTER, environment, settings
from tests.student_train.training.test_loop import metrics

EARLIER = Path(__file__).parents[2] / "data" / "runs" / "rpp-0.1"


def assert_ends_as_before(run: Path, name: str) -> None:
    """Bit for bit where torch and the processor are those that wrote the run, else closely."""
    expected, found = load_file(EARLIER / f"{name}.safetensors"), load_file(run / "student.safetensors")
    same = json.loads((EARLIER / "environment.json").read_text()) == environment()
    assert found.keys() == expected.keys()
    for key, tensor in found.items():
        assert (
            torch.equal(tensor, expected[key]) if same else torch.allclose(tensor, expected[key], atol=1e-4)
        )


@pytest.mark.parametrize("name", RUNS)
def test_a_run_of_an_earlier_version_is_continued(name: str, demo_cache_path: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(EARLIER / name, tmp_path / "run"))
    done = train(settings(demo_cache_path, run, **RUNS[name]).model_copy(update={"resume": True}))
    assert done.samples == (12 - STOPPED_AFTER) * 30
    assert [line["step"] for line in metrics(run)] == list(range(1, 13))
    assert_ends_as_before(run, name)
