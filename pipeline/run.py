"""Run a recipe: build, train, evaluate. Finished steps are skipped."""

import json
import os
from collections.abc import Callable
from typing import Any

from pipeline.baselines import Trained, baselines
from pipeline.recipe import Recipe
from pipeline.student_run import Evaluated, train_and_evaluate
from pipeline.sweep_record import require_no_sweep
from student_train.evaluation.datasets import check_dataset
from student_train.evaluation.frozen_names import named_frozen_model
from student_train.evaluation.preflight import check_weights_like
from student_train.evaluation.settings import EvalSettings
from student_train.figures import ZERO_SHOT
from teacher_cache.build import build_cache
from teacher_cache.command_settings import BuildSettings
from teacher_cache.errors import UsageError
from teacher_cache.files.places import same_place
from teacher_cache.pace import Pace, pace_text
from teacher_cache.preflight import require_model
from teacher_cache.softlabels import open_cache
from teacher_cache.teacher.teacher import choose_device


def run_recipe(recipe: Recipe, on_note: Callable[[str], None]) -> dict[str, Any]:
    """Build the caches, train the student, evaluate; write `results.json` into the run's folder.

    Args:
        on_note: called with a line for the user before and after each step.

    Returns:
        The content of `results.json`: `build` if the recipe has one, or a list `builds`; `train`; and a list
        `evals`.

    Raises:
        UsageError: the recipe has rows, or its run would be in the folder of a sweep.
        UsageError, RppError: a step failed. The next call continues where this one stopped.
    """
    if recipe.rows:
        raise UsageError("the recipe has rows, which are a sweep: use run_sweep, or rpp run")
    require_no_sweep(recipe.train.out)
    for evaluation in recipe.evals:
        check_evaluation(evaluation, recipe)
    built = [build_one(build, on_note) for build in recipe.builds]
    before: dict[str, Any] = {}
    if len(built) == 1:
        before["build"] = built[0]
    elif built:
        before["builds"] = built
    return train_and_evaluate(recipe.train, with_baselines(recipe), before, on_note)


def build_one(build: BuildSettings, on_note: Callable[[str], None]) -> dict[str, Any]:
    """Build a cache, or continue its build; return the results as JSON values.

    Raises:
        UsageError, RppError: see `build_cache`.
    """
    built = build_cache(build, on_note)
    on_note(f"cache {built.path}: {built.parts_computed} of {built.parts_total} parts computed now")
    for pace in built.pace:
        on_note(f"pace: {pace_text(Pace(**pace))}")
    results: dict[str, Any] = json.loads(json.dumps(built.__dict__, default=str))
    return results


def check_evaluation(settings: EvalSettings, recipe: Recipe) -> None:
    """Check that the inputs of an evaluation exist, before a day of building and training.

    Raises:
        UsageError: no such vocabulary, images, cache, student or device.
    """
    try:
        if not is_new_cache(settings.images, recipe):
            check_dataset(settings)
        choose_device(settings.device)
        check_weights_like([settings.student], settings)
        if settings.cache is not None and not is_new_cache(settings.cache, recipe):
            open_cache(settings.cache)
        if named := named_frozen_model(settings.student):
            require_model(*named)
        elif settings.student not in (ZERO_SHOT, str(recipe.train.out)) and not os.path.exists(
            settings.student
        ):
            raise UsageError(f"no student at {settings.student}")
    except UsageError as error:
        raise UsageError(f"[[eval]]: {error}") from error


def is_new_cache(place: str, recipe: Recipe) -> bool:
    """Return whether the recipe builds the cache at a place."""
    return any(same_place(place, build.out) for build in recipe.builds)


def with_baselines(recipe: Recipe) -> list[Evaluated]:
    """Return each evaluation after the same ones of the frozen models, with counts by class for reports.

    Call it when all caches are built.
    """
    evals = [by_class(settings) for settings in recipe.evals]
    frozen = baselines([Trained(recipe.train, tuple(evals))], evals)
    every: list[Evaluated] = []
    for place, settings in enumerate(evals):
        models = [Evaluated(one.evals[place], one.name) for one in frozen]
        asked = [] if settings in [one.settings for one in models] else [Evaluated(settings)]
        every += [*models, *asked]
    return every


def by_class(settings: EvalSettings) -> EvalSettings:
    """Return the evaluation with the metric by-class."""
    return settings.model_copy(update={"metrics": tuple(dict.fromkeys((*settings.metrics, "by-class")))})
