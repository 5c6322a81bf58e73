"""The demo: does a student learn more from soft labels, and from unshared prompts, on the packaged pictures?

The packaged teacher was trained on neither the styles of the students (Noto, Noto v1) nor the test style
(Fluent). Students are trained on the base half of the classes. All trained rows share all settings except
those in the row's name.
"""

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from pipeline.settings import DemoSettings
from student_train.evaluation.evaluate import evaluate
from student_train.evaluation.feature_store import FeatureStore
from student_train.evaluation.settings import EvalSettings
from student_train.figures import ZERO_SHOT
from student_train.model.settings import PromptSettings
from student_train.training.loop import train
from student_train.training.settings import TrainSettings
from teacher_cache.build import build_cache
from teacher_cache.command_settings import BuildSettings, ViewPolicy

HERE = Path(__file__).parent
TRAIN_STYLES = "{noto,noto-v1}.tar"
TEST_STYLE = "fluent-flat.tar"
FIGURES = ("base", "new", "harmonic", "agreement")
FROZEN = "zero-shot CLIP"
STUDENTS: dict[str, dict[str, Any]] = {
    "shared prompts, hard labels": {"prompt_structure": "shared", "soft_weight": 0.0},
    "QKV prompts, hard labels": {"prompt_structure": "qkv", "soft_weight": 0.0},
    "QKV prompts, hard + soft labels": {"prompt_structure": "qkv", "soft_weight": 1.0},
}


def run_demo(settings: DemoSettings, on_note: Callable[[str], None]) -> dict[str, Any]:
    """Build the cache, train every row with every seed, and test all on the unseen style.

    Returns:
        `rows`: for each row its name and the `summary` of its figures; `seeds`; `seconds`. They are also
        written to `results.json` in the demo's folder.
    """
    started = time.monotonic()
    cache_path = settings.out / "teacher.zarr"
    built = build_cache(
        BuildSettings(
            images=str(HERE / "pictures" / TRAIN_STYLES),
            classes=str(HERE / "pictures" / "classes.txt"),
            out=str(cache_path),
            teacher=str(HERE / "teacher"),
            view_policy=ViewPolicy(views=4, view_scale_min=0.5, view_flip=0.0),
            device=settings.device,
        )
    )
    on_note(f"cache {cache_path}: {built.samples} samples, {built.parts_computed} parts computed now")
    store = FeatureStore()
    rows = [{"name": FROZEN, **summary([evaluated(settings, cache_path, ZERO_SHOT, store)])}]
    for name, differs in STUDENTS.items():
        runs = []
        for seed in range(settings.seeds):
            out = settings.out / "runs" / f"{name.replace(', ', '-').replace(' ', '-').lower()}-{seed}"
            trained = train(train_settings(settings, cache_path, out, seed, differs))
            runs.append(evaluated(settings, cache_path, str(out), store))
            on_note(f"{name}, seed {seed}: {trained.steps} steps in {trained.seconds:.0f} s")
        rows.append({"name": name, **summary(runs)})
    results = {"rows": rows, "seeds": settings.seeds, "seconds": time.monotonic() - started}
    (settings.out / "results.json").write_text(json.dumps(results, indent=1), encoding="utf-8")
    return results


def train_settings(
    settings: DemoSettings, cache: Path, out: Path, seed: int, differs: dict[str, Any]
) -> TrainSettings:
    """Return the settings that all trained rows share, with those of one row."""
    return TrainSettings(
        cache=str(cache),
        out=out,
        resume=(out / "settings.json").is_file(),
        prompts=PromptSettings(prompt_structure=differs["prompt_structure"]),
        soft_weight=differs["soft_weight"],
        class_subset="base",
        epochs=settings.epochs,
        batch_size=32,
        lr=0.01,
        seed=seed,
        device=settings.device,
    )


def evaluated(settings: DemoSettings, cache: Path, student: str, store: FeatureStore) -> dict[str, float]:
    """Return base and new accuracy on the unseen style, their harmonic mean, and teacher agreement."""
    evaluation = EvalSettings(
        student=student,
        cache=str(cache),
        images=str(HERE / "pictures" / TEST_STYLE),
        classes=str(HERE / "pictures" / "classes.txt"),
        metrics=("base-to-new", "agreement"),
        device=settings.device,
    )
    found = evaluate(evaluation, store)
    return {figure: found[figure] for figure in FIGURES}


def summary(runs: list[dict[str, float]]) -> dict[str, Any]:
    """Return mean and sample standard deviation of each figure; no deviation for a single run."""
    return {
        figure: {
            "mean": statistics.mean(run[figure] for run in runs),
            "std": statistics.stdev(run[figure] for run in runs) if len(runs) > 1 else None,
            "runs": [run[figure] for run in runs],
        }
        for figure in FIGURES
    }


def demo_table(results: dict[str, Any]) -> Table:
    """Return a table of the figures in per cent, mean ± standard deviation over seeds."""
    table = Table(
        "",
        "base %",
        "new %",
        "harmonic\nmean %",
        "teacher\nagrees %",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=0,  # to fit into 80 columns
        title="tested on a style that neither teacher nor student has seen",
        caption=f"trained rows: mean ± standard deviation over {results['seeds']} seeds; "
        f"{results['seconds']:.0f} s in all",
    )
    for row in results["rows"]:
        cells = [
            f"{100 * row[figure]['mean']:.1f}"
            + (f" ± {100 * row[figure]['std']:.1f}" if row[figure]["std"] is not None else "")
            for figure in FIGURES
        ]
        table.add_row(row["name"], *cells)
    return table
