"""One recipe from images to figures: build, train, evaluate. What is done already is not done again."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.recipe import Recipe
from student_train.datasets import check_dataset
from student_train.evaluate import EvalSettings, evaluate
from student_train.feature_models import ZERO_SHOT
from student_train.run_folder import write_whole
from student_train.run_record import RESULTS, SETTINGS
from student_train.train import TrainSettings, train
from teacher_cache.build import build_cache
from teacher_cache.errors import UsageError
from teacher_cache.softlabels import open_cache
from teacher_cache.teacher import choose_device


def run_recipe(recipe: Recipe, on_note: Callable[[str], None]) -> dict[str, Any]:
    """Build the cache, train the student, evaluate; write `results.json` into the run's folder.

    Args:
        on_note: called with a line for the user before and after each step.

    Returns:
        What `results.json` holds: `build`, `train` and a list `evals`.

    Raises:
        UsageError, RppError: as the steps do. The next call goes on where this one stopped.
    """
    for evaluation in recipe.evals:
        check_evaluation(evaluation, recipe)
    built = build_cache(recipe.build, on_note)
    on_note(f"cache {built.path}: {built.parts_computed} of {built.parts_total} parts computed now")
    trained = train(continued(recipe.train))
    on_note(f"run {trained.out}: {trained.steps} steps from {trained.mode}, last loss {trained.loss:.4f}")
    of_training: dict[str, Any] = json.loads(json.dumps(trained.__dict__, default=str))
    if not trained.samples:  # the figures are those of the call that trained
        of_training = earlier_results(trained.out).get("train", of_training)
    results: dict[str, Any] = {
        "build": json.loads(json.dumps(built.__dict__, default=str)),
        "train": of_training,
        "evals": [],
    }
    if trained.samples:  # kept, whatever becomes of the evaluations
        write_results(trained.out, results)
    results["evals"] = [evaluate(settings) for settings in with_zero_shot(recipe.evals)]
    write_results(trained.out, results)
    return results


def check_evaluation(settings: EvalSettings, recipe: Recipe) -> None:
    """Refuse an evaluation that names what is not there, before a day of building and training.

    Raises:
        UsageError: no such vocabulary, images, cache, student or device.
    """
    try:
        if settings.images != recipe.build.out:
            check_dataset(settings)
        choose_device(settings.device)
        if settings.cache is not None and settings.cache != recipe.build.out:
            open_cache(settings.cache)
        made_here = (ZERO_SHOT, str(recipe.train.out))
        if settings.student not in made_here and not os.path.exists(settings.student):
            raise UsageError(f"no student at {settings.student}")
    except UsageError as error:
        raise UsageError(f"[[eval]]: {error}") from error


def earlier_results(folder: Path) -> dict[str, Any]:
    """What an earlier call wrote into the run's folder; empty if that cannot be read."""
    try:
        found = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) and isinstance(found.get("train"), dict) else {}


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
    write_whole(folder / RESULTS, json.dumps(results, indent=1, ensure_ascii=False))
