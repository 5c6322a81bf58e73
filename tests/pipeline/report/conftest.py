"""A real run and a real sweep of tiny trainings, which the tests of the report share."""

import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest

from pipeline.recipe import load_recipe
from pipeline.run import run_recipe
from pipeline.student_run import write_results
from pipeline.sweep_record import SweepRecord, SweepRow
from student_train.evaluation.evaluate import evaluate
from student_train.evaluation.settings import EvalSettings
from student_train.model.settings import PromptSettings
from student_train.runs.record import RESULTS
from student_train.training.loop import train
from student_train.training.settings import TrainSettings
from teacher_cache.build import build_cache
from teacher_cache.command_settings import BuildSettings
from tests.student_train.conftest import PICTURES

SCRIPT = "<script>alert(1)</script>"
SAMPLES = 4  # so few that every one is among the pictures that the report shows
AXES: dict[str, list[Any]] = {"temperature": [1.0, 4.0], "soft_weight": [0.5, 2.0]}
METRICS = ("accuracy", "calibration", "base-to-new", "by-class")
WHY = "the loss is not finite at step 3 & <b>more</b>"


def first_samples(tar: Path, out: Path, count: int) -> Path:
    """Write a shard of the first samples of another one; a sample is a picture and its label."""
    with tarfile.open(tar) as source, tarfile.open(out, "w") as target:
        for member in source.getmembers()[: 2 * count]:
            target.addfile(member, source.extractfile(member))
    return out


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory, clip: Path) -> Path:
    """A folder with `train.tar`, `test.tar`, `classes.txt` and the finished cache `demo.zarr`."""
    folder = tmp_path_factory.mktemp("report")
    first_samples(PICTURES / "noto.tar", folder / "train.tar", SAMPLES)
    first_samples(PICTURES / "fluent-flat.tar", folder / "test.tar", 24)
    names = (PICTURES / "classes.txt").read_text().splitlines()[:40]
    names[1] = SCRIPT
    (folder / "classes.txt").write_text("\n".join(names))
    build_cache(
        BuildSettings(
            images=str(folder / "train.tar"),
            classes=str(folder / "classes.txt"),
            out=str(folder / "demo.zarr"),
            teacher=str(clip),
            templates="a photo of a {}.",
        )
    )
    return folder


def evaluated(inputs: Path, student: str) -> dict[str, Any]:
    return evaluate(
        EvalSettings(
            student=student,
            cache=str(inputs / "demo.zarr"),
            images=str(inputs / "test.tar"),
            classes=str(inputs / "classes.txt"),
            metrics=METRICS,
        )
    )


@pytest.fixture(scope="session")
def sweep_path(inputs: Path) -> Path:
    """A sweep over two axes and two seeds: five finished runs, a failed one, two that wait. Nobody may write
    to it."""
    out = inputs / "sweep"
    frozen = evaluated(inputs, "zero-shot")
    rows = []
    for temperature, weight, seed in (
        (temperature, weight, seed)
        for temperature in AXES["temperature"]
        for weight in AXES["soft_weight"]
        for seed in (0, 1)
    ):
        name = f"runs/t{temperature:g}-w{weight:g}-{seed}"
        row = SweepRow(settings={"temperature": temperature, "soft_weight": weight}, seed=seed, run=name)
        rows.append(row)
        if (temperature, weight, seed) == (1.0, 2.0, 1):
            row.state, row.why = "failed", WHY
        if weight == 2.0 and (temperature, seed) != (1.0, 0):
            continue
        settings = TrainSettings(
            cache=str(inputs / "demo.zarr"),
            out=out / name,
            prompts=PromptSettings(towers="text", prompt_length=2, prompt_depth=3),
            temperature=temperature,
            soft_weight=weight,
            lr=0.05,
            seed=seed,
            max_steps=6,
            epochs=6,
            log_every=1,
        )
        trained = json.loads(json.dumps(train(settings).__dict__, default=str))
        own = evaluated(inputs, str(out / name))
        write_results(out / name / RESULTS, {"build": {}, "train": trained, "evals": [frozen, own]})
        row.state, row.train, row.evals = "done", trained, [without_classes(own)]
    SweepRecord(
        recipe="recipes/tiny.toml",
        cache=str(inputs / "demo.zarr"),
        axes=AXES,
        seeds=[0, 1],
        zero_shot=[without_classes(frozen)],
        rows=rows,
        seconds=12.5,
    ).write(out)
    return out


def without_classes(evaluation: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in evaluation.items() if not name.startswith("by_class")}


@pytest.fixture(scope="session")
def run_path(inputs: Path, clip: Path) -> Path:
    """A recipe's run with prompts in both towers; read-only."""
    recipe = inputs / "run.toml"
    recipe.write_text(
        f"""
        [build]
        images = "{inputs}/train.tar"
        classes = "{inputs}/classes.txt"
        out = "{inputs}/demo.zarr"
        teacher = "{clip}"
        templates = "a photo of a {{}}."
        [train]
        out = "{inputs}/run"
        prompt_length = 2
        prompt_depth = 3
        epochs = 3
        log_every = 1
        workers = 0
        [[eval]]
        images = "{inputs}/test.tar"
        classes = "{inputs}/classes.txt"
        metrics = ["accuracy", "by-class"]
        """
    )
    run_recipe(load_recipe(recipe), print)
    return inputs / "run"


@pytest.fixture
def run_copy(run_path: Path, tmp_path: Path) -> Path:
    """The run in a folder that a test may change."""
    return Path(shutil.copytree(run_path, tmp_path / "run"))


@pytest.fixture
def sweep_copy(sweep_path: Path, tmp_path: Path) -> Path:
    """The sweep in a folder that a test may change."""
    return Path(shutil.copytree(sweep_path, tmp_path / "sweep"))
