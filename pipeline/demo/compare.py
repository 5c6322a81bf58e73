"""The demo: does a student learn more from soft labels, and from unshared prompts, on the packaged pictures?

The packaged teacher has seen neither of the styles that students train on (Noto, Noto v1) nor the one that
they are tested on (Fluent). Students see the base half of the classes; the new half is never trained on. All
trained rows share every setting but the one that the row names.
"""

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from rich import box
from rich.table import Table

from student_train.evaluate import (
    FeatureModel,
    StudentFeatures,
    accuracy,
    encode_images,
    harmonic_mean,
)
from student_train.join import subset_classes
from student_train.prompts import PromptSettings
from student_train.student import load_student
from student_train.train import TrainSettings, train
from teacher_cache.build import BuildSettings, build_cache
from teacher_cache.images import SampleTable, index_images
from teacher_cache.openclip import load_model
from teacher_cache.softlabels import open_cache
from teacher_cache.teacher import Teacher, choose_device
from teacher_cache.views import ViewPolicy
from teacher_cache.vocabulary import Vocabulary

HERE = Path(__file__).parent
TRAIN_STYLES = "{noto,noto-v1}.tar"
TEST_STYLE = "fluent-flat.tar"
FIGURES = ("base", "new", "harmonic", "agreement")
ZERO_SHOT = "zero-shot CLIP"
STUDENTS: dict[str, dict[str, Any]] = {
    "shared prompts, hard labels": {"prompt_structure": "shared", "soft_weight": 0.0},
    "QKV prompts, hard labels": {"prompt_structure": "qkv", "soft_weight": 0.0},
    "QKV prompts, hard + soft labels": {"prompt_structure": "qkv", "soft_weight": 1.0},
}


class DemoSettings(BaseModel):
    """Settings of the demo."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    out: Path = Field(default=Path("rpp-demo"), description="folder for the cache, the runs and the figures")
    seeds: int = Field(default=3, ge=1, description="trainings of each row")
    epochs: int = Field(default=5, ge=1, description="passes over the base pictures")
    device: str = Field(default="auto", description="auto, cpu, cuda or cuda:N")


def run_demo(settings: DemoSettings, on_note: Callable[[str], None]) -> dict[str, Any]:
    """Build the cache, train every row with every seed, test all on the unseen style.

    Returns:
        `rows`: for each row of the table its name and, by figure, mean and standard deviation over seeds;
        `seconds`; also written to `results.json` in the demo's folder.
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
    cache = open_cache(cache_path)
    vocabulary = cache.vocabulary
    tests, _ = index_images(str(HERE / "pictures" / TEST_STYLE), vocabulary)
    device = choose_device(settings.device)
    teacher = Teacher(load_model(str(HERE / "teacher")), device)
    frozen = predictions(teacher, vocabulary, tests)
    rows = [{"name": ZERO_SHOT, **summary([figures(frozen, frozen)])}]
    for name, differs in STUDENTS.items():
        runs = []
        for seed in range(settings.seeds):
            out = settings.out / "runs" / f"{name.replace(', ', '-').replace(' ', '-').lower()}-{seed}"
            trained = train(train_settings(settings, cache_path, out, seed, differs))
            student = StudentFeatures(load_student(out), device)
            runs.append(figures(predictions(student, vocabulary, tests), frozen))
            on_note(f"{name}, seed {seed}: {trained.steps} steps in {trained.seconds:.0f} s")
        rows.append({"name": name, **summary(runs)})
    results = {"rows": rows, "seeds": settings.seeds, "seconds": time.monotonic() - started}
    (settings.out / "results.json").write_text(json.dumps(results, indent=1), encoding="utf-8")
    return results


def train_settings(
    settings: DemoSettings, cache: Path, out: Path, seed: int, differs: dict[str, Any]
) -> TrainSettings:
    """What all trained rows have in common, and the one thing in which a row differs."""
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


def predictions(model: FeatureModel, vocabulary: Vocabulary, tests: SampleTable) -> dict[str, Any]:
    """Accuracy among base classes, among new classes, and the first choices among all."""
    encoded = encode_images(model, tests)
    class_features_CD = model.class_features(vocabulary)
    subsets = {name: subset_classes(len(vocabulary), name) for name in ("base", "new", "all")}
    return {name: accuracy(encoded, class_features_CD, classes) for name, classes in subsets.items()}


def figures(found: dict[str, Any], frozen: dict[str, Any]) -> dict[str, float]:
    """Accuracy on base and new classes, their harmonic mean, and how often the first choice among all
    classes is the frozen teacher's."""
    base, new = found["base"]["top1"], found["new"]["top1"]
    same = found["all"]["predictions"] == frozen["all"]["predictions"]
    return {
        "base": base,
        "new": new,
        "harmonic": harmonic_mean(base, new),
        "agreement": float(same.double().mean()),
    }


def summary(runs: list[dict[str, float]]) -> dict[str, Any]:
    """Mean and sample standard deviation of each figure; no deviation for a single run."""
    return {
        figure: {
            "mean": statistics.mean(run[figure] for run in runs),
            "std": statistics.stdev(run[figure] for run in runs) if len(runs) > 1 else None,
            "runs": [run[figure] for run in runs],
        }
        for figure in FIGURES
    }


def demo_table(results: dict[str, Any]) -> Table:
    """The figures in per cent, mean ± standard deviation over seeds."""
    table = Table(
        "",
        "base %",
        "new %",
        "harmonic\nmean %",
        "teacher\nagrees %",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=0,  # 80 columns hold it
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
