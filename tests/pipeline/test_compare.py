"""Differences between runs in settings and in results."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest

from pipeline.cli import main
from pipeline.compare import compare_runs
from pipeline.tables import compared_cells
from student_train.model.settings import PromptSettings
from student_train.training.loop import train
from student_train.training.settings import TrainSettings
from teacher_cache.errors import UsageError
from tests.processes import ForkServer
from tests.student_train.conftest import demo_cache_path as demo_cache_path


@pytest.fixture(scope="module")
def runs(demo_cache_path: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two runs that differ in temperature, one prompt option and one option that changes nothing."""
    folder = tmp_path_factory.mktemp("compare")
    for name, temperature, length, every in (("one", 1.0, 2, 1), ("two", 2.0, 3, 2)):
        train(
            TrainSettings(
                cache=demo_cache_path,
                out=folder / name,
                temperature=temperature,
                prompts=PromptSettings(towers="text", prompt_length=length),
                batch_size=100,
                max_steps=4,
                log_every=every,
            )
        )
    evals = [{"student": "zero-shot", "images": "a/val.tar", "classes": 9, "top1": 0.5, "by_class": []}]
    results = {"train": {"steps": 4, "seconds": 1.5}, "evals": [*evals, {**evals[0], "student": "two"}]}
    (folder / "two" / "results.json").write_text(json.dumps(results))
    return [folder / "one", folder / "two"]


def test_only_differences_are_named(runs: list[Path]) -> None:
    compared = compare_runs(runs)
    assert compared["settings"] == {"temperature": [1.0, 2.0], "prompt_length": [2, 3]}
    assert compared["same"] > 30
    for name, key in (("loss", "loss"), ("soft_loss", "soft_loss"), ("accuracy", "accuracy")):
        last = [json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])[key] for run in runs]
        assert compared["results"][name] == last
    assert compared["results"]["seconds"] == [None, 1.5]
    assert compared["results"]["val.tar, 9 classes: top1"] == [None, 0.5]
    assert compared["results"]["zero-shot val.tar, 9 classes: top1"] == [None, 0.5]
    cells = compared_cells(compared)
    assert cells.rows == [["temperature", "1.0", "2.0"], ["prompt_length", "2", "3"]]
    assert ["seconds", "", "1.5000"] in cells.means


def test_long_values_are_shown_where_they_differ(runs: list[Path], tmp_path: Path) -> None:
    """Long values, such as templates, would make a table hundreds of columns wide."""
    folders, sentences = [], []
    for name, blocks in (("one", "8"), ("two", "11")):
        folders.append(Path(shutil.copytree(runs[0], tmp_path / name)))
        record = json.loads((folders[-1] / "settings.json").read_text())
        sentences.append([f"text: {'so ' * 40}blocks 1 to {blocks} of {'many ' * 40}"])
        (folders[-1] / "settings.json").write_text(json.dumps(record | {"templates": sentences[-1]}))
    compared = compare_runs(folders)
    assert compared["settings"] == {"templates": sentences}
    (row,) = compared_cells(compared).rows
    assert row[0] == "templates"
    assert ["blocks 1 to 8 of" in row[1], "blocks 1 to 11 of" in row[2]] == [True, True]
    assert max(map(len, row)) <= 62


def test_an_option_that_a_run_did_not_record_has_its_default(runs: list[Path], tmp_path: Path) -> None:
    earlier = Path(shutil.copytree(runs[0], tmp_path / "earlier"))
    record = json.loads((earlier / "settings.json").read_text())
    del record["settings"]["clip_norm"], record["settings"]["prompts"]["carry"]
    (earlier / "settings.json").write_text(json.dumps(record))
    assert compare_runs([runs[0], earlier])["settings"] == {}


def test_a_run_with_itself_differs_in_nothing(runs: list[Path]) -> None:
    compared = compare_runs([runs[0], runs[0]])
    assert compared["settings"] == {}
    assert all(first == second for first, second in compared["results"].values())


def test_the_command(
    runs: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for option in ("--json", "--markdown", None):
        given = ["rpp", "compare", *map(str, runs), *([option] if option else [])]
        monkeypatch.setattr(sys, "argv", given)
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code
        printed = capsys.readouterr().out
        assert "temperature" in printed
        assert "batch_size" not in printed


def test_a_wide_table_loses_no_figure_in_a_pipe(processes: ForkServer, runs: list[Path]) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    done = processes.call("rpp", "compare", *runs * 4, environment=environment)
    assert done.code == 0, done.err
    loss = compare_runs(runs)["results"]["loss"]
    lines = [line.split("│")[2:-1] for line in done.out.splitlines() if line.startswith("│ loss ")]
    assert [cell.strip() for line in lines for cell in line] == [f"{value:.4f}" for value in loss * 4]


def test_a_folder_without_a_run_is_refused(runs: list[Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no run at"):
        compare_runs([runs[0], tmp_path])
    with pytest.raises(UsageError, match="at least two"):
        compare_runs(runs[:1])
