"""The demo: does a student learn more from soft labels, and from unshared prompts, on the packaged pictures?

The teacher looks at all views once. Every row is trained from that cache, with every seed; then one run is
measured with the teacher online. The test style is one that no model was trained on. All trained rows share
all settings except those in the row's name. `story.py` prints the results.
"""

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from pipeline.demo.clips import STUDENT, TEACHER, unpack_clip
from pipeline.demo.online import OnlineRun
from pipeline.recipe import Recipe, load_recipe
from pipeline.report import make_report
from pipeline.seeds import Spread, exact, figure_text, spread
from pipeline.settings import DemoSettings, SweepSettings
from pipeline.sweep import ROW, check_all_done, run_sweep
from pipeline.sweep_record import SweepRecord
from student_train.figures import ZERO_SHOT
from student_train.training.loop import train
from student_train.training.settings import TrainSettings
from teacher_cache.build import build_cache, is_built
from teacher_cache.command_settings import BuildSettings
from teacher_cache.cores import usable_cores
from teacher_cache.errors import RppError, UsageError
from teacher_cache.files.atomic_write import atomic_write_text, make_folder
from teacher_cache.files.places import absolute_place

HERE = Path(__file__).parent

TRAIN_STYLES = "{noto,noto-v1}.parquet"
TEST_STYLE = "fluent-flat.parquet"
VIEWS = {"views": 4, "view_scale_min": 0.5, "view_flip": 0.0}
# The settings that all trained rows share; `epochs` is an option.
SHARED: dict[str, Any] = {
    "class_subset": "base",
    "classes_per_step": "all",
    "prompt_structure": "qkv",
    "soft_weight": 1.0,
    "temperature": 1.0,
    "batch_size": 32,
    "lr": 0.03,
}
TEMPERATURES = (0.5, 1, 2, 4)
SHARED_HARD, QKV_HARD = "shared, hard labels", "QKV, hard labels"
SOFT = {temperature: f"QKV, T = {temperature}" for temperature in TEMPERATURES}
ROWS: dict[str, dict[str, Any]] = {
    SHARED_HARD: {"prompt_structure": "shared", "soft_weight": 0.0},
    QKV_HARD: {"soft_weight": 0.0},
    **{name: {"temperature": float(temperature)} for temperature, name in SOFT.items()},
}
JOBS = 2  # runs at a time

FIGURES = ("base", "new", "harmonic", "agreement", "kl")
BUILD, ONLINE = "build.json", "online.json"  # measured times


def run_demo(settings: DemoSettings, on_note: Callable[[str], None]) -> dict[str, Any]:
    """Run the teacher once, train and test every row, and measure one run with the teacher online.

    What is finished in the demo's folder is kept.

    Returns:
        `headline`; `teacher` (see `teacher_pass`); `online` (see `online_cost`), with the number of `runs`
        with soft labels, their `sweep_seconds`, and what they would have been online, `sweep_seconds_online`
        (None if the measurement was disturbed);
        `frozen`, the figures of the frozen models by name; `rows` (see `row_figures`); `seeds`; `seconds` of
        this call; `recipe` and `report`, files. Figures and seconds are a `mean`, `std` (None for one seed)
        and the values of the `runs`. All of it is also in `results.json` in the demo's folder.

    Raises:
        UsageError: the folder has a demo with other settings, or cannot be written.
        RppError: stopped, or a run failed. The next call continues.
    """
    started = time.monotonic()
    make_folder(settings.out)
    path, sweep = settings.out / "demo.toml", settings.out / "sweep"
    with written_recipe(path, settings) as recipe:
        teacher = teacher_pass(recipe.builds[0], settings.out, on_note)
        record = run_sweep(path, SweepSettings(out=sweep), on_note)
    check_all_done(record)
    online = online_cost(recipe, settings.out, on_note)
    ratio = online_ratio(online)
    rows = row_figures(record, ratio)
    if not record.zero_shot:
        raise RppError(f"the zero-shot model cannot be evaluated: {record.zero_shot_why}")
    frozen = {
        name: {figure: spread_json(exact(found[0].get(figure))) for figure in FIGURES}
        for name, found in record.baselines().items()
    }
    soft = {row["name"]: row for row in rows if row["name"] in SOFT.values()}
    seconds = [value for row in soft.values() for value in row["seconds"]["runs"]]
    results = {
        "headline": headline(frozen[ZERO_SHOT]["harmonic"], soft[SOFT[1]]["figures"]["harmonic"]),
        "teacher": teacher,
        "online": online
        | {"runs": len(seconds), "sweep_seconds": sum(seconds)}
        | {"sweep_seconds_online": None if ratio is None else ratio * sum(seconds)},
        "frozen": frozen,
        "rows": rows,
        "seeds": settings.seeds,
        "recipe": str(path),
        "report": str(make_report(sweep)),
        "seconds": time.monotonic() - started,
    }
    atomic_write_text(settings.out / "results.json", json.dumps(results, indent=1))
    return results


@contextmanager
def written_recipe(path: Path, settings: DemoSettings) -> Iterator[Recipe]:
    """Write the demo's recipe for the block.

    If the block refuses it, the recipe of the demo that is in the folder is restored, and the message names
    the demo's folder.
    """
    before = path.read_text(encoding="utf-8") if path.is_file() else None
    atomic_write_text(path, recipe_text(settings))
    try:
        yield load_recipe(path)
    except UsageError as error:
        if before is not None:
            atomic_write_text(path, before)
        raise UsageError(str(error).replace(str(settings.out / "sweep"), str(settings.out))) from error


def recipe_text(settings: DemoSettings) -> str:
    """Unpack both CLIPs and return the demo as a recipe, for `rpp run`; its paths are absolute."""
    out, clips = Path(absolute_place(str(settings.out))), settings.out / "clips"
    student, teacher = (absolute_place(str(unpack_clip(name, clips))) for name in (STUDENT, TEACHER))
    pictures, device = HERE / "pictures", {"device": settings.device}
    classes = {"classes": str(pictures / "classes.txt")}
    tables: list[tuple[str, dict[str, Any]]] = [
        (
            "[[build]]",
            {"images": str(pictures / TRAIN_STYLES), **classes, "out": str(out / "teacher.zarr")}
            | {"teacher": teacher, **VIEWS, **device},
        ),
        (
            "[train]",
            {"out": str(out / "sweep"), "student": student, **SHARED, "epochs": settings.epochs, **device},
        ),
        *(("[[row]]", {"name": name, **differs}) for name, differs in ROWS.items()),
        (
            "[[eval]]",
            {"images": str(pictures / TEST_STYLE), **classes}
            | {"metrics": ["base-to-new", "agreement"], **device},
        ),
    ]
    lines = ["# Written by rpp demo: the rows of its tables.", f"seeds = {settings.seeds}", f"jobs = {JOBS}"]
    for heading, values in tables:
        # JSON's texts, numbers and lists are TOML's too
        lines += ["", heading]
        lines += [f"{name} = {json.dumps(value, ensure_ascii=False)}" for name, value in values.items()]
    return "\n".join(lines) + "\n"


def teacher_pass(build: BuildSettings, out: Path, on_note: Callable[[str], None]) -> dict[str, Any]:
    """Build the cache unless it is finished; return `pictures`, `views` of each, `seconds` and `bytes`.

    The seconds are those of the call that finished the build: all of it, with the class names.
    """
    path = out / BUILD
    if not (path.is_file() and is_built(build)):
        built = build_cache(build, on_note)
        files = [file for file in Path(built.path).rglob("*") if file.is_file()]
        measured = {
            "pictures": built.samples,
            "views": build.view_policy.views,
            "seconds": built.seconds,
            "bytes": sum(file.stat().st_size for file in files),
        }
        atomic_write_text(path, json.dumps(measured, indent=1))
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    on_note(f"cache {build.out}: {found['pictures']} pictures in {found['seconds']:.0f} s")
    return found


def online_cost(recipe: Recipe, out: Path, on_note: Callable[[str], None]) -> dict[str, Any]:
    """Train the row T = 1 from the cache and with the teacher online, in turn, unless that was measured.

    The cached run is the first one: what only a process's first run has to do counts against the cache. Both
    have the threads of the sweep's runs, but the machine for themselves.

    Returns:
        `seconds` and last `loss` of both, by `cached` and `online`, and the `settings`.
    """
    row = next(row for row in recipe.rows if row.name == SOFT[1])
    settings = row.train.model_copy(update={"out": None, "workers": max(1, usable_cores() // JOBS)})
    path, asked = out / ONLINE, settings.model_dump(mode="json")
    if path.is_file():
        stored: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if stored["settings"] == asked:
            return stored
    on_note("one run from the cache and one with the teacher online, in turn, to compare their seconds")
    with tempfile.TemporaryDirectory(dir=out) as folder, threads_of_a_run():
        runs = {
            "cached": train(in_folder(settings, folder, "cached")),
            "online": train(in_folder(settings, folder, "online"), OnlineRun),
        }
    measured = {
        "seconds": {kind: run.seconds for kind, run in runs.items()},
        "loss": {kind: run.loss for kind, run in runs.items()},
        "settings": asked,
    }
    if online_ratio(measured) is not None:
        atomic_write_text(path, json.dumps(measured, indent=1))
    return measured


def online_ratio(online: dict[str, Any]) -> float | None:
    """Return the seconds of the run with the teacher online as a multiple of the cached one's.

    None if it was not the slower one, though it computes all that the cached one does and the teacher: other
    work disturbed the measurement. It is not stored then, and the next call measures again.
    """
    seconds = online["seconds"]
    ratio: float = seconds["online"] / seconds["cached"]
    return ratio if ratio > 1 else None


def in_folder(settings: TrainSettings, folder: str, name: str) -> TrainSettings:
    """Return the settings of a run in a folder of its own."""
    return settings.model_copy(update={"out": Path(folder) / name})


@contextmanager
def threads_of_a_run() -> Iterator[None]:
    """Give torch as many threads as a run of the sweep has."""
    before = torch.get_num_threads()
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, before // JOBS))
    yield
    torch.set_num_threads(before)


def row_figures(record: SweepRecord, ratio: float | None) -> list[dict[str, Any]]:
    """Return of each row of a finished sweep its `name`, `figures` and `seconds` of a run, and
    `seconds_online`, what a run would take with the teacher online.

    Args:
        ratio: seconds of a run with the teacher online, as a multiple of those of a cached one. Hard labels
            need no teacher. None if it is not known.
    """
    rows = []
    for runs in record.configurations():
        name, seconds = runs[0].settings[ROW], spread((run.train or {})["seconds"] for run in runs)
        assert seconds is not None
        factor = ratio if name in SOFT.values() else 1.0
        rows.append(
            {
                "name": name,
                "figures": {
                    figure: spread_json(spread(run.evals[0][figure] for run in runs)) for figure in FIGURES
                },
                "seconds": spread_json(seconds),
                "seconds_online": None if factor is None else seconds.mean * factor,
            }
        )
    return rows


def headline(zero_shot: dict[str, Any], student: dict[str, Any]) -> str:
    """Return whether QKV prompts with soft labels gain over zero-shot.

    A gain counts if it is larger than its standard deviation over the seeds.

    Args:
        zero_shot, student: harmonic means of base and new accuracy, as in the results.
    """
    gain, deviation = student["mean"] - zero_shot["mean"], student["std"]
    have = f"have a harmonic mean of {spread_text('harmonic', student)} %, zero-shot has "
    have += f"{spread_text('harmonic', zero_shot)} %"
    what = "QKV prompts with soft labels (T = 1)"
    if deviation is None:
        return f"One seed shows neither gain nor loss: {what} {have}; use --seeds 3"
    if gain > deviation:
        return f"Gain of {100 * gain:.2f} ± {100 * deviation:.2f} points over zero-shot: {what} {have}"
    return f"No gain over zero-shot: {what} {have}"


def spread_json(found: Spread | None) -> dict[str, Any]:
    """Return a spread as JSON values; empty if there is none."""
    if found is None:
        return {}
    return {"mean": found.mean, "std": found.deviation, "runs": list(found.values)}


def spread_text(figure: str, found: dict[str, Any]) -> str:
    """Format a figure of the results: mean ± standard deviation."""
    known = Spread(found["mean"], found["std"], tuple(found["runs"])) if found else None
    return figure_text(figure, known)
