"""Run a recipe: build, train, evaluate. Finished steps are skipped."""

import json
import os
from collections.abc import Callable
from typing import Any

from pipeline.recipe import Recipe
from pipeline.student_run import train_and_evaluate
from student_train.evaluation.datasets import check_dataset
from student_train.evaluation.settings import EvalSettings
from student_train.figures import ZERO_SHOT
from teacher_cache.build import build_cache
from teacher_cache.errors import UsageError
from teacher_cache.files.places import same_place
from teacher_cache.pace import Pace, pace_text
from teacher_cache.softlabels import open_cache
from teacher_cache.teacher.teacher import choose_device


def run_recipe(recipe: Recipe, on_note: Callable[[str], None]) -> dict[str, Any]:
    """Build the cache, train the student, evaluate; write `results.json` into the run's folder.

    Args:
        on_note: called with a line for the user before and after each step.

    Returns:
        The content of `results.json`: `build` if the recipe has it, `train` and a list `evals`.

    Raises:
        UsageError, RppError: a step failed. The next call continues where this one stopped.
    """
    for evaluation in recipe.evals:
        check_evaluation(evaluation, recipe)
    before = {}
    if recipe.build is not None:
        built = build_cache(recipe.build, on_note)
        on_note(f"cache {built.path}: {built.parts_computed} of {built.parts_total} parts computed now")
        for pace in built.pace:
            on_note(f"pace: {pace_text(Pace(**pace))}")
        before["build"] = json.loads(json.dumps(built.__dict__, default=str))
    return train_and_evaluate(recipe.train, with_zero_shot(recipe.evals), before, on_note)


def check_evaluation(settings: EvalSettings, recipe: Recipe) -> None:
    """Check that the inputs of an evaluation exist, before a day of building and training.

    Raises:
        UsageError: no such vocabulary, images, cache, student or device.
    """
    try:
        if not _is_new_cache(settings.images, recipe):
            check_dataset(settings)
        choose_device(settings.device)
        if settings.cache is not None and not _is_new_cache(settings.cache, recipe):
            open_cache(settings.cache)
        if settings.student not in (ZERO_SHOT, str(recipe.train.out)) and not os.path.exists(
            settings.student
        ):
            raise UsageError(f"no student at {settings.student}")
    except UsageError as error:
        raise UsageError(f"[[eval]]: {error}") from error


def _is_new_cache(place: str, recipe: Recipe) -> bool:
    return recipe.build is not None and same_place(place, recipe.build.out)


def with_zero_shot(evals: list[EvalSettings]) -> list[EvalSettings]:
    """Return each evaluation after the same one of the frozen model, with counts by class for reports."""
    both: list[EvalSettings] = []
    for settings in map(by_class, evals):
        zero_shot = settings.model_copy(update={"student": ZERO_SHOT})
        both += [zero_shot] if zero_shot == settings else [zero_shot, settings]
    return both


def by_class(settings: EvalSettings) -> EvalSettings:
    """Return the evaluation with the metric by-class."""
    return settings.model_copy(update={"metrics": tuple(dict.fromkeys((*settings.metrics, "by-class")))})
