"""Train and evaluate one student; write the results into its run's folder."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.baselines import as_baseline
from student_train.evaluation.evaluate import evaluate
from student_train.evaluation.feature_store import FeatureStore
from student_train.evaluation.settings import EvalSettings
from student_train.figures import TEACHER
from student_train.runs.record import RESULTS, SETTINGS, read_results
from student_train.training.loop import train
from student_train.training.settings import TrainSettings
from teacher_cache.errors import RppError, UsageError
from teacher_cache.files.atomic_write import atomic_write_text


class Evaluated(NamedTuple):
    """An evaluation, and the name of the baseline that it evaluates; None for a student."""

    settings: EvalSettings
    baseline: str | None = None


def train_and_evaluate(
    settings: TrainSettings,
    evals: Sequence[Evaluated],
    before: dict[str, Any],
    on_note: Callable[[str], None],
    store: FeatureStore | None = None,
) -> dict[str, Any]:
    """Train a student, or resume its run, and evaluate; write `results.json` into the run's folder.

    Args:
        before: first entries of the results.
        store: features of frozen models for the evaluations, which share them in any case.

    Returns:
        The content of `results.json`: `before`, `train` and a list `evals`. A teacher that cannot be
        evaluated is left out with a note: its cache is enough to train.

    Raises:
        UsageError, RppError: a step failed. The next call continues where this one stopped.
    """
    trained = train(continued(settings))
    on_note(f"run {trained.out}: {trained.steps} steps from {trained.mode}, last loss {trained.loss:.4f}")
    of_training: dict[str, Any] = json.loads(json.dumps(trained.__dict__, default=str))
    if not trained.samples:  # keep the figures of the call that trained
        of_training = earlier_training(trained.out) or of_training
    results: dict[str, Any] = {**before, "train": of_training, "evals": []}
    if trained.samples:  # stored before the evaluations, which may fail
        write_results(trained.out / RESULTS, results)
    store = store or FeatureStore()
    for evaluation in evals:
        try:
            found = evaluate(evaluation.settings, store)
        except RppError as error:
            if evaluation.baseline is None or not evaluation.baseline.startswith(TEACHER):
                raise
            on_note(f"the {evaluation.baseline} cannot be evaluated: {error}")
            continue
        if evaluation.baseline is not None:
            found = as_baseline(evaluation.baseline, evaluation.settings, found)
        results["evals"].append(found)
    write_results(trained.out / RESULTS, results)
    return results


def earlier_training(folder: Path) -> dict[str, Any] | None:
    """Return the training results of an earlier call; None if there are none that can be read."""
    try:
        found = read_results(folder).get("train")
    except UsageError:
        return None
    return found if isinstance(found, dict) else None


def continued(settings: TrainSettings) -> TrainSettings:
    """Return the settings with `resume` set if the folder already has a run."""
    exists = settings.out is not None and (Path(settings.out) / SETTINGS).is_file()
    return settings.model_copy(update={"resume": exists})


def write_results(path: Path, results: dict[str, Any]) -> None:
    """Write results as JSON, atomically."""
    atomic_write_text(path, json.dumps(results, indent=1, ensure_ascii=False))
