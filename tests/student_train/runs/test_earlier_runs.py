"""Runs that an earlier version stopped are continued, and end with the same tensors within rounding."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from student_train.model.settings import PromptSettings
from student_train.training.loop import train
from student_train.training.run_identity import changed_settings
from student_train.training.settings import TrainSettings
from teacher_cache.errors import UsageError
from tests.data.runs.write import RUNS, STOPPED_AFTER, settings
from tests.student_train.training.test_loop import metrics

EARLIER = Path(__file__).parents[2] / "data" / "runs" / "rpp-0.1"


def assert_ends_as_before(run: Path, name: str) -> None:
    """Closely: the towers of the version that wrote the run summed in another order."""
    expected, found = load_file(EARLIER / f"{name}.safetensors"), load_file(run / "student.safetensors")
    assert found.keys() == expected.keys()
    for key, tensor in found.items():
        torch.testing.assert_close(tensor, expected[key], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", RUNS)
def test_a_run_of_an_earlier_version_is_continued(name: str, demo_cache_path: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(EARLIER / name, tmp_path / "run"))
    done = train(settings(demo_cache_path, run, **RUNS[name]).model_copy(update={"resume": True}))
    assert done.samples == (12 - STOPPED_AFTER) * 30
    assert [line["step"] for line in metrics(run)] == list(range(1, 13))
    assert_ends_as_before(run, name)
    # the earlier version would not find the new checkpoint: it has to refuse the run
    assert json.loads((run / "settings.json").read_text())["format_version"] == 2


class LaterPrompts(PromptSettings):
    """The prompt options of a later version."""

    dropout: float = 0.0


class LaterSettings(TrainSettings):
    """The options of a later version."""

    prompts: LaterPrompts = LaterPrompts()
    label_smoothing: float = 0.0


def test_an_option_that_was_added_since_has_its_default(demo_cache_path: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(EARLIER / "adamw", tmp_path / "run"))
    values = settings(demo_cache_path, run, **RUNS["adamw"]).model_dump() | {"resume": True}
    for changed, message in (
        ({"label_smoothing": 0.1}, "label_smoothing: stored 0.0, requested 0.1"),
        ({"prompts": {**values["prompts"], "dropout": 0.5}}, "dropout: stored 0.0, requested 0.5"),
    ):
        with pytest.raises(UsageError, match=rf"with different settings \({message}\);"):
            train(LaterSettings(**{**values, **changed}))
    train(LaterSettings(**values))
    assert_ends_as_before(run, "adamw")


def test_an_option_that_this_version_lacks_is_reported(demo_cache_path: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(EARLIER / "adamw", tmp_path / "run"))
    record = json.loads((run / "settings.json").read_text())
    record["settings"]["prompts"]["dropout"] = 0.5
    asked = settings(demo_cache_path, run, **RUNS["adamw"]).model_copy(update={"resume": True})
    assert changed_settings(record, asked) == ["dropout: stored 0.5, not known to this version of rpp"]
    record["settings"]["prompts"] = {"towers": "all"}
    (problem,) = changed_settings(record, asked)
    assert problem.startswith("stored settings that this version of rpp does not accept: --towers 'all'")


def test_a_run_that_cannot_be_resumed_is_left_as_it_was(demo_cache_path: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(EARLIER / "adamw", tmp_path / "run"))
    checkpoint = run / "checkpoint.pt"
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    before = (run / "settings.json").read_bytes()
    asked = settings(demo_cache_path, run, **RUNS["adamw"]).model_copy(update={"resume": True})
    with pytest.raises(UsageError, match=r"checkpoint\.pt is damaged"):
        train(asked)
    assert (run / "settings.json").read_bytes() == before
