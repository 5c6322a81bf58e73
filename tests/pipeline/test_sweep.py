"""Sweeps: real runs in real processes, killed, failed and continued; and wrong grids."""

import json
import os
import re
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pipeline.axes import parse_axes
from pipeline.baselines import Trained, baselines
from pipeline.recipe import load_recipe
from pipeline.report import make_report
from pipeline.run import run_recipe
from pipeline.settings import SweepSettings
from pipeline.sweep import lock_sweep, make_cells, run_sweep
from pipeline.sweep_jobs import Runner
from pipeline.sweep_process import Job
from pipeline.sweep_record import SweepRecord, SweepRow, read_sweep
from pipeline.tables import sweep_cells
from student_train.evaluation.evaluate import evaluate
from student_train.evaluation.settings import EvalSettings
from student_train.runs.record import read_settings
from teacher_cache.build import build_cache
from teacher_cache.errors import RppError, UsageError
from tests.models import write_model
from tests.processes import ForkServer
from tests.student_train.conftest import PICTURES
from tests.teacher_cache.compute.test_cluster import dask_scheduler, dask_worker

GRID = ("train.temperature=0.5,2", "train.soft-weight=0,1")


def forking(processes: ForkServer) -> dict[str, Any]:
    """Return the arguments to start a process whose sweeps fork their runs."""
    place = processes.fileno()
    return {"kept": [place], "before": ("tests.processes:fork_runs", {"server": place})}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished cache of 300 pictures, cheap runs on its features, two evaluations."""
    folder = tmp_path_factory.mktemp("sweep")
    path = folder / "small.toml"
    classes = PICTURES / "classes.txt"
    path.write_text(
        f"""
        [build]
        images = "{PICTURES}/noto.tar"
        classes = "{classes}"
        out = "{folder}/small.zarr"
        teacher = "{write_model(folder / "model", "gelu")}"

        [train]
        out = "{folder}/run"
        towers = "text"
        prompt_length = 2
        batch_size = 64
        epochs = 2
        lr = 0.1
        log_every = 1
        checkpoint_every = 3
        seed = 5

        [[eval]]
        images = "{folder}/small.zarr"

        [[eval]]
        images = "{folder}/small.zarr"
        class_subset = "new"
        metrics = ["accuracy"]
        """
    )
    recipe = load_recipe(path)
    assert recipe.build is not None
    build_cache(recipe.build)
    return path


@pytest.fixture(scope="module")
def undisturbed(recipe: Path) -> tuple[Path, SweepRecord]:
    """Four settings with two seeds each, uninterrupted; its runs start as users' do."""
    out = recipe.parent / "undisturbed"
    return out, run_sweep(recipe, SweepSettings(set=GRID, seeds=2, out=out))


def figures(record: SweepRecord) -> list[Any]:
    """Return everything that does not depend on the clock or on the folder."""
    times = {"out", "seconds", "samples_per_second", "wait_seconds", "samples"}
    of_rows = [
        (
            row.settings,
            row.seed,
            row.state,
            {name: value for name, value in (row.train or {}).items() if name not in times},
            [{name: value for name, value in found.items() if name != "student"} for found in row.evals],
        )
        for row in record.rows
    ]
    return [record.axes, record.seeds, record.zero_shot, of_rows]


def test_the_grid_is_trained_and_evaluated_and_reported(
    recipe: Path, undisturbed: tuple[Path, SweepRecord], tmp_path: Path
) -> None:
    out, record = undisturbed
    assert record.axes == {"temperature": [0.5, 2.0], "soft_weight": [0.0, 1.0]}
    assert record.seeds == [5, 6]
    assert [(*row.settings.values(), row.seed) for row in record.rows] == [
        (t, w, s) for t in (0.5, 2.0) for w in (0.0, 1.0) for s in (5, 6)
    ]
    assert {row.state for row in record.rows} == {"done"}
    assert [found["classes"] for found in record.zero_shot] == [300, 150]
    page = make_report(out, tmp_path / "report.html").read_text()
    assert "Gained most: small.zarr, 300 classes" in page
    assert "Lost most: small.zarr, 150 classes" in page
    for row in record.rows:
        settings = read_settings(out / row.run)["settings"]
        assert {name: settings[name] for name in row.settings} == row.settings
        assert settings["seed"] == row.seed
        results = json.loads((out / row.run / "results.json").read_text())
        assert [found.pop("by_class") for found in results["evals"]]
        assert [found.pop("by_class_ids") for found in results["evals"]]
        assert (results["train"], results["evals"]) == (row.train, row.evals)
    assert read_sweep(out) == record
    assert record.process_seconds == record.seconds
    assert 0 < (record.training_share() or 0) < 1
    # where the soft loss weighs nothing its temperature does nothing
    losses = {(*row.settings.values(), row.seed): row.train["loss"] for row in record.rows if row.train}
    assert losses[0.5, 0.0, 5] == losses[2.0, 0.0, 5]
    assert len(set(losses.values())) == 6


@pytest.mark.usefixtures("forked_runs")
def test_the_images_of_an_evaluation_are_read_once(recipe: Path, tmp_path: Path) -> None:
    """Runs with text prompts have the frozen model's image features; those are compared with images read."""
    text, _, _ = recipe.read_text().partition("[[eval]]")
    data = f'images = "{PICTURES}/noto-v1.tar"\nclasses = "{PICTURES}/classes.txt"\n'
    small = tmp_path / "images.toml"
    small.write_text(f"{text}\n[[eval]]\n{data}")
    out = tmp_path / "sweep"
    record = run_sweep(small, SweepSettings(set=("train.temperature=0.5,2",), jobs=1, out=out))
    assert {row.state for row in record.rows} == {"done"}
    logs = {path.name: path.read_text() for path in (out / "logs").iterdir()}
    assert [name for name, log in logs.items() if "images 300/300" in log] == ["zero-shot.log"]
    for row in record.rows:
        alone = EvalSettings(
            student=out / row.run, images=PICTURES / "noto-v1.tar", classes=PICTURES / "classes.txt"
        )
        assert evaluate(alone).items() <= row.evals[0].items()
    assert sorted(path.suffix for path in (out / "features").iterdir()) == [".safetensors"] * 2
    older = json.loads((out / "sweep.json").read_text())
    del older["process_seconds"]  # as an earlier version wrote it
    (out / "sweep.json").write_text(json.dumps(older))
    assert run_sweep(small, SweepSettings(set=("train.temperature=0.5,2",), out=out)).training_share() is None


def test_a_run_of_a_sweep_is_the_run_of_its_recipe(
    recipe: Path, undisturbed: tuple[Path, SweepRecord], tmp_path: Path
) -> None:
    alone = run_recipe(load_recipe(recipe, {"out": tmp_path / "run", "temperature": 2.0, "seed": 6}), print)
    row = undisturbed[1].rows[-1]
    assert row.train is not None
    assert alone["train"]["loss"] == row.train["loss"]
    assert [found["top1"] for found in alone["evals"][1::2]] == [found["top1"] for found in row.evals]
    assert [found["top1"] for found in alone["evals"][::2]] == [e["top1"] for e in undisturbed[1].zero_shot]


def test_the_table_has_means_and_deviations_over_seeds(undisturbed: tuple[Path, SweepRecord]) -> None:
    record = undisturbed[1]
    cells = sweep_cells(record)
    assert cells.headings[:4] == ["images", "temperature", "soft_weight", "seeds"]
    assert len(cells.rows) == 2 * (1 + 4)
    pairs = [[100 * row.evals[0]["top1"] for row in rows] for rows in record.configurations()]
    place = next(number for number, (first, second) in enumerate(pairs) if first != second)
    first, second = pairs[place]
    row = dict(zip(cells.headings, cells.rows[1 + place], strict=True))
    assert row["soft_weight"] == str(record.configurations()[place][0].settings["soft_weight"])
    assert row["seeds"] == "2"
    assert row["top-1 %"] == f"{(first + second) / 2:.2f} ± {abs(first - second) / 2**0.5:.2f}"
    frozen = dict(zip(cells.headings, cells.rows[0], strict=True))
    assert frozen["temperature"] == "zero-shot"
    assert frozen["top-1 %"] == f"{100 * record.zero_shot[0]['top1']:.2f}"


@pytest.mark.usefixtures("forked_runs")
def test_a_second_call_trains_nothing_and_more_seeds_train_only_those(
    recipe: Path, undisturbed: tuple[Path, SweepRecord], tmp_path: Path
) -> None:
    out = tmp_path / "copy"
    shutil.copytree(undisturbed[0], out)
    for run in (out / "runs").iterdir():  # the runs' folders moved with the sweep
        text = (run / "results.json").read_text().replace(str(undisturbed[0]), str(out))
        (run / "results.json").write_text(text)
    students = {path: path.stat().st_mtime_ns for path in out.glob("runs/*/student.safetensors")}
    assert len(students) == 8
    axes = (GRID[0], "train.soft-weight=1")
    again = run_sweep(recipe, SweepSettings(set=axes, seeds=3, out=out))
    assert {path: path.stat().st_mtime_ns for path in students} == students
    assert len(list(out.glob("runs/*/student.safetensors"))) == 10
    kept = {(*row.settings.values(), row.seed): row.train for row in undisturbed[1].rows}
    rows = {(*row.settings.values(), row.seed): row.train for row in again.rows}
    assert len(rows) == 6
    assert {key: (t or {}).get("loss") for key, t in rows.items() if key[2] < 7} == {
        key: (t or {}).get("loss") for key, t in kept.items() if key[1] == 1.0
    }
    assert again.seconds > undisturbed[1].seconds


@pytest.mark.usefixtures("forked_runs")
def test_another_evaluation_is_measured_and_nothing_is_trained(
    recipe: Path, undisturbed: tuple[Path, SweepRecord], tmp_path: Path
) -> None:
    """A metric is added to the recipe; the folders of the runs stay."""
    out, other = tmp_path / "copy", tmp_path / "other.toml"
    shutil.copytree(undisturbed[0], out)
    other.write_text(recipe.read_text().replace('metrics = ["accuracy"]', 'metrics = ["calibration"]'))
    logs = {path: path.read_text() for path in out.glob("runs/*/metrics.jsonl")}  # they say when, too
    record = run_sweep(other, SweepSettings(set=GRID, seeds=2, out=out))
    assert {path: path.read_text() for path in logs} == logs
    assert [row.state for row in record.rows] == ["done"] * 8
    for found in [record.zero_shot, *(row.evals for row in record.rows)]:
        assert "top1" in found[0]
        assert "ece" in found[1]
        assert "top1" not in found[1]
    assert [row.train for row in record.rows] == [row.train for row in undisturbed[1].rows]


@pytest.mark.usefixtures("forked_runs")
def test_killed_in_the_middle_it_gives_the_same_table(
    processes: ForkServer, recipe: Path, undisturbed: tuple[Path, SweepRecord]
) -> None:
    out = recipe.parent / "killed"
    axes = [part for axis in GRID for part in ("--set", axis)]
    sweep = processes.start("rpp", "sweep", recipe, "--seeds", "2", "--out", out, *axes, **forking(processes))
    deadline = time.monotonic() + 200
    while len(list(out.glob("runs/*/results.json"))) < 3:
        assert sweep.poll() is None, sweep.ended().err
        assert time.monotonic() < deadline
        time.sleep(0.02)
    sweep.kill()
    sweep.wait()
    assert 2 <= sum(row.state == "done" for row in read_sweep(out).rows) < 8
    after = run_sweep(recipe, SweepSettings(set=GRID, seeds=2, out=out))
    assert figures(after) == figures(undisturbed[1])


def test_terminated_it_stops_its_run_with_a_checkpoint_and_says_how_to_continue(
    processes: ForkServer, recipe: Path
) -> None:
    out = recipe.parent / "stopped"
    sweep = processes.start("rpp", "sweep", recipe, "--set", "train.epochs=100000", "--out", out)
    run = out / "runs" / "epochs=100000,seed=5"
    deadline = time.monotonic() + 200
    while not (run / "metrics.jsonl").exists():
        assert sweep.poll() is None, sweep.ended().err
        assert time.monotonic() < deadline
        time.sleep(0.02)
    (run / "checkpoint.safetensors").unlink(missing_ok=True)
    sweep.terminate()
    ended = sweep.ended(timeout=100)
    assert ended.code == 1
    assert f"stopped; finished runs are kept in {out}: run the same command again to continue" in ended.err
    assert (run / "checkpoint.safetensors").exists()
    assert read_sweep(out).rows[0].state == "waiting"
    with lock_sweep(out):  # no process is left behind
        pass


@pytest.mark.usefixtures("forked_runs")
def test_two_at_a_time(recipe: Path, undisturbed: tuple[Path, SweepRecord], tmp_path: Path) -> None:
    record = run_sweep(recipe, SweepSettings(set=GRID, jobs=2, out=tmp_path))
    expected = [row for row in undisturbed[1].rows if row.seed == 5]
    assert [row.settings for row in record.rows] == [row.settings for row in expected]
    for row, other in zip(record.rows, expected, strict=True):
        assert row.train is not None
        assert other.train is not None
        assert row.train["loss"] == pytest.approx(other.train["loss"], rel=1e-4)  # threads sum otherwise
        assert abs(row.evals[0]["top1"] - other.evals[0]["top1"]) <= 1 / 300


@pytest.mark.usefixtures("forked_runs")
def test_a_run_that_fails_is_a_row_and_another_call_tries_it_again(recipe: Path, tmp_path: Path) -> None:
    """The prompts to start from are missing in the first call and present in the second."""
    start = tmp_path / "start.safetensors"
    settings = SweepSettings(set=(f"train.init={start}",), out=tmp_path / "sweep")
    notes: list[str] = []
    record = run_sweep(recipe, settings, notes.append)
    assert [row.state for row in record.rows] == ["failed"]
    assert str(start) in (record.rows[0].why or "")
    assert any("failed: " in line and str(start) in line for line in notes)
    assert "0, 1 failed" in sweep_cells(record).rows[1]
    assert read_sweep(tmp_path / "sweep") == record
    trained = run_recipe(load_recipe(recipe, {"out": tmp_path / "run"}), print)
    shutil.copy(Path(trained["train"]["out"]) / "student.safetensors", start)
    assert [row.state for row in run_sweep(recipe, settings).rows] == ["done"]


@pytest.mark.usefixtures("forked_runs")
def test_a_process_that_dies_fails_only_its_job(recipe: Path, tmp_path: Path) -> None:
    parsed = load_recipe(recipe, {"out": tmp_path / "run"})

    def job(name: str, epochs: int) -> Job:
        out = tmp_path / name
        train = parsed.train.model_copy(update={"out": out, "epochs": epochs})
        log = tmp_path / f"{name}.log"
        features = tmp_path / "features"
        return Job(
            train=train, evals=(), results=out / "results.json", features=features, log=log, folder=tmp_path
        )

    runner = Runner()
    nowhere = job("nowhere", 1).model_copy(update={"log": tmp_path / "gone" / "job.log"})
    assert "ended with exit code 1: no log, No such file" in (runner.run(nowhere, lambda: False) or "")
    (tmp_path / "file").touch()
    unwritable = job("x", 1).model_copy(update={"train": None, "results": tmp_path / "file" / "results.json"})
    failed = runner.run(unwritable, lambda: False)
    assert re.match(r"its process ended with exit code 1: NotADirectoryError: .*see .*x\.log", failed or "")
    long = job("long", 100_000)

    def kill_when_it_trains() -> bool:
        if (tmp_path / "long" / "metrics.jsonl").exists():
            assert runner._process is not None
            os.kill(runner._process.pid, signal.SIGKILL)
        return False

    assert "killed by SIGKILL" in (runner.run(long, kill_when_it_trains) or "")
    short = job("short", 1)
    assert runner.run(short, lambda: False) is None
    assert short.stored_results() is not None
    assert runner.close() == 0
    assert "steps" in (tmp_path / "short.log").read_text()


@pytest.mark.usefixtures("forked_runs")
def test_ten_runs_open_the_teachers_model_zero_times(recipe: Path, tmp_path: Path) -> None:
    """The teacher's weights are deleted; the students are another model with cached features."""
    folder = tmp_path / "cache"
    teacher = write_model(tmp_path / "teacher", "gelu")
    own = write_model(tmp_path / "own", "gelu", seed=1)
    text = recipe.read_text().replace(f"{recipe.parent}/small.zarr", str(folder / "{}.zarr"))
    for name, model in (("teacher", teacher), ("own", own)):
        one = tmp_path / f"{name}.toml"
        one.write_text(
            text.replace("{}", name).replace(f'teacher = "{recipe.parent}/model"', f'teacher = "{model}"')
        )
        built = load_recipe(one).build
        assert built is not None
        build_cache(built)
    shutil.rmtree(teacher)
    one = tmp_path / "teacher.toml"
    grid = text.replace("{}", "teacher").replace(
        "[train]",
        f'[train]\nstudent = "{own}"\nstudent_features = "{folder}/own.zarr"',
    )
    one.write_text(grid.replace('images = "' + str(folder) + "/teacher.zarr", f'images = "{folder}/own.zarr'))
    record = run_sweep(one, SweepSettings(set=("train.temperature=1,2",), seeds=5, out=tmp_path / "sweep"))
    assert [row.state for row in record.rows] == ["done"] * 10
    assert len({(row.train or {})["loss"] for row in record.rows}) == 10
    assert [found["student"] for found in record.zero_shot] == ["zero-shot"] * 2
    assert [found["frozen"] for found in record.zero_shot] == [f"zero-shot:local-dir:{own}"] * 2
    assert record.teacher == []
    assert str(teacher) in (record.teacher_why or "")


def test_runs_on_dask_workers_are_those_of_this_machine(
    processes: ForkServer, recipe: Path, undisturbed: tuple[Path, SweepRecord], tmp_path: Path
) -> None:
    how = forking(processes)
    with dask_scheduler(processes, tmp_path) as (address, _), dask_worker(processes, address, "one", **how):
        settings = SweepSettings(set=("train.temperature=2", GRID[1]), out=tmp_path, scheduler=address)
        record = run_sweep(recipe, settings)
    rows = [row for row in undisturbed[1].rows if (row.settings["temperature"], row.seed) == (2.0, 5)]
    assert len(rows) == 2
    assert figures(record)[2:] == figures(undisturbed[1].model_copy(update={"rows": rows}))[2:]


def test_settings_of_any_length_have_separate_folders(recipe: Path, tmp_path: Path) -> None:
    words = ["a photo of " + "very long words " * 20 + end for end in ("one", "two")]
    cells = make_cells(recipe, {"prompt_init": words}, SweepSettings(seeds=2), tmp_path)
    names = {cell.train.out.name for cell in cells if cell.train.out}
    assert len(names) == 4
    assert max(len(f"{name}.log".encode()) for name in names) <= 255
    assert [cell.settings["prompt_init"] for cell in cells[::2]] == words


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        (["train.temperature"], "expected train.NAME=VALUE"),
        (["temperature=1"], "expected train.NAME=VALUE"),
        (["train.temperature=1,,2"], "expected train.NAME=VALUE"),
        (["build.views=1,2"], "share one cache"),
        (["train.seed=1,2"], "use --seeds"),
        (["train.workers=1,2"], "workers cannot be an axis"),
        (["train.lr=1", "train.lr=2"], "is already an axis"),
    ],
)
def test_a_wrong_axis_is_refused(axes: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_axes(axes)


@pytest.mark.parametrize(
    ("axis", "message"),
    [
        ("train.temperatur=1", "did you mean temperature"),
        ("train.temperature=0", "greater than 0"),
        ("train.freeze=text", "would keep random prompts"),
        ("train.temperature=1,1.0", "gives temperature=1.0 twice"),
    ],
)
def test_a_wrong_value_is_refused_before_anything_begins(recipe: Path, axis: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        run_sweep(recipe, SweepSettings(set=(axis,), out=recipe.parent / "never"))
    assert not (recipe.parent / "never").exists()


def test_the_frozen_model_is_measured_by_the_evaluations_of_the_runs(recipe: Path, tmp_path: Path) -> None:
    """An evaluation of another student comes first: figures at an index of the rows are of one data set."""
    other = tmp_path / "other.toml"
    text = recipe.read_text()
    first = f'[[eval]]\nimages = "{PICTURES}/noto.tar"\nstudent = "peer"\n'
    other.write_text(text.replace("[[eval]]", first + "[[eval]]", 1))
    loaded = load_recipe(other, {"out": str(tmp_path)})
    (cell,) = make_cells(other, {}, SweepSettings(), tmp_path)
    (frozen,) = baselines([Trained(cell.train, cell.job.evals)], cell.shared_evals)
    assert len(loaded.evals) == 3
    assert [(e.images, e.class_subset) for e in frozen.evals] == [
        (e.images, e.class_subset) for e in cell.job.evals
    ]
    assert [e.class_subset for e in frozen.evals] == ["all", "new"]


def test_a_changed_recipe_does_not_continue_a_sweep(
    recipe: Path, undisturbed: tuple[Path, SweepRecord], tmp_path: Path
) -> None:
    other = tmp_path / "other.toml"
    other.write_text(recipe.read_text().replace("epochs = 2", "epochs = 3"))
    with pytest.raises(UsageError, match=r"created with different settings .*epochs: stored 2, requested 3"):
        run_sweep(other, SweepSettings(set=GRID, seeds=2, out=undisturbed[0]))


def test_two_sweeps_in_one_folder_are_refused(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.sweep.WAIT_SECONDS", 0.5)
    with lock_sweep(tmp_path), pytest.raises(UsageError, match="another sweep is at work"):
        run_sweep(recipe, SweepSettings(out=tmp_path))


def test_no_lock_holds_for_the_sweep_and_its_runs(recipe: Path, tmp_path: Path) -> None:
    asked = SweepSettings(out=tmp_path, lock=False)
    with lock_sweep(tmp_path), lock_sweep(tmp_path, lock=False) as descriptors:
        assert descriptors == []
    assert [cell.train.lock for cell in make_cells(recipe, {}, asked, tmp_path)] == [False]


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no sweep at .*: it has no sweep.json"):
        read_sweep(tmp_path)
    (tmp_path / "sweep.json").write_text('{"recipe": 3}')
    with pytest.raises(UsageError, match=r"sweep.json is damaged: recipe: "):
        read_sweep(tmp_path)
    row = SweepRow(settings={}, seed=0, run="runs/seed=0").model_dump()
    record = {"recipe": "r", "cache": "c", "axes": {"lr": [1.0]}, "seeds": [0], "rows": [row]}
    (tmp_path / "sweep.json").write_text(json.dumps(record))
    with pytest.raises(UsageError, match=r"sweep.json is damaged: .*a row does not have the settings"):
        read_sweep(tmp_path)


@pytest.mark.usefixtures("forked_runs")
def test_failed_rows_end_the_command_with_1(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.cli import app

    assert app
    monkeypatch.setattr(
        sys,
        "argv",
        ["rpp", "sweep", str(recipe), "--set", "train.init=nowhere", "--out", str(tmp_path / "s"), "--json"],
    )
    from pipeline.cli import main

    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == RppError.exit_code == 1
    printed = capsys.readouterr()
    assert json.loads(printed.out)["rows"][0]["state"] == "failed"
    assert "1 of 1 runs failed" in printed.err
