"""One student: trained, evaluated, and its results in the run's folder."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from student_train.evaluation.evaluate import evaluate
from student_train.evaluation.settings import EvalSettings
from student_train.runs.record import RESULTS, SETTINGS, read_results
from student_train.training.loop import train
from student_train.training.settings import TrainSettings
from teacher_cache.errors import UsageError
from teacher_cache.files.atomic_write import atomic_write_text


def train_and_evaluate(
    settings: TrainSettings,
    evals: Sequence[EvalSettings],
    before: dict[str, Any],
    on_note: Callable[[str], None],
) -> dict[str, Any]:
    """Train a student, or go on with it, and evaluate; write `results.json` into the run's folder.

    Args:
        before: what the results begin with.

    Returns:
        What `results.json` holds: `before`, `train` and a list `evals`.

    Raises:
        UsageError, RppError: as the steps do. The next call goes on where this one stopped.
    """
    trained = train(continued(settings))
    on_note(f"run {trained.out}: {trained.steps} steps from {trained.mode}, last loss {trained.loss:.4f}")
    of_training: dict[str, Any] = json.loads(json.dumps(trained.__dict__, default=str))
    if not trained.samples:  # the figures are those of the call that trained
        of_training = earlier_training(trained.out) or of_training
    results: dict[str, Any] = {**before, "train": of_training, "evals": []}
    if trained.samples:  # kept, whatever becomes of the evaluations
        write_results(trained.out / RESULTS, results)
    results["evals"] = [evaluate(evaluation) for evaluation in evals]
    write_results(trained.out / RESULTS, results)
    return results


def earlier_training(folder: Path) -> dict[str, Any] | None:
    """What an earlier call wrote of the training into the run's folder; None if that cannot be read."""
    try:
        found = read_results(folder).get("train")
    except UsageError:
        return None
    return found if isinstance(found, dict) else None


def continued(settings: TrainSettings) -> TrainSettings:
    """The same settings, going on with the run that is in the folder already, if there is one."""
    begun = settings.out is not None and (Path(settings.out) / SETTINGS).is_file()
    return settings.model_copy(update={"resume": begun})


def write_results(path: Path, results: dict[str, Any]) -> None:
    """Write results, completely or not at all."""
    atomic_write_text(path, json.dumps(results, indent=1, ensure_ascii=False))
