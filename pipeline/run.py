"""One recipe from images to figures: build, train, evaluate. What is done already is not done again."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.recipe import Recipe
from student_train.evaluate import EvalSettings, evaluate
from student_train.run_folder import SETTINGS
from student_train.train import TrainSettings, train
from teacher_cache.build import build_cache

RESULTS = "results.json"


def run_recipe(recipe: Recipe, on_note: Callable[[str], None]) -> dict[str, Any]:
    """Build the cache, train the student, evaluate; write `results.json` into the run's folder.

    Args:
        on_note: called with a line for the user before and after each step.

    Returns:
        What `results.json` holds: `build`, `train` and a list `evals`.

    Raises:
        UsageError, RppError: as the steps do. The next call goes on where this one stopped.
    """
    built = build_cache(recipe.build, on_note)
    on_note(f"cache {built.path}: {built.parts_computed} of {built.parts_total} parts computed now")
    trained = train(continued(recipe.train))
    on_note(f"run {trained.out}: {trained.steps} steps from {trained.mode}, last loss {trained.loss:.4f}")
    evals = [evaluate(settings) for settings in with_zero_shot(recipe.evals)]
    found = {"build": built.__dict__, "train": trained.__dict__, "evals": evals}
    results: dict[str, Any] = json.loads(json.dumps(found, default=str))
    write_results(trained.out, results)
    return results


def continued(settings: TrainSettings) -> TrainSettings:
    """The same settings, going on with the run that is in the folder already, if there is one."""
    begun = settings.out is not None and (Path(settings.out) / SETTINGS).is_file()
    return settings.model_copy(update={"resume": begun})


def with_zero_shot(evals: list[EvalSettings]) -> list[EvalSettings]:
    """Each evaluation of a student behind the same one of the frozen model."""
    both: list[EvalSettings] = []
    for settings in evals:
        zero_shot = settings.model_copy(update={"student": "zero-shot"})
        both += [zero_shot] if zero_shot == settings else [zero_shot, settings]
    return both


def write_results(folder: Path, results: dict[str, Any]) -> None:
    """Write `results.json`, complete or not at all."""
    temporary = folder / f"{RESULTS}.tmp"
    temporary.write_text(json.dumps(results, indent=1, ensure_ascii=False), encoding="utf-8")
    os.replace(temporary, folder / RESULTS)
