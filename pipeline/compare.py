"""Compare runs: the settings that differ, and the results.

Reads the files of a run's folder; `tables.py` makes the table.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from student_train.evaluation.frozen_names import is_frozen
from student_train.figures import FIGURES
from student_train.runs.record import (
    CACHE_FIELDS,
    FREE_ON_RESUME,
    flat_settings,
    last_metrics,
    read_results,
    read_settings,
)
from student_train.training.settings import TrainSettings
from teacher_cache.errors import UsageError
from teacher_cache.files.places import local_path
from teacher_cache.settings import to_flat

OF_TRAINING = ("steps", "samples_per_second", "seconds", "wait_seconds")
OF_LAST_LINE = ("step", "loss", "accuracy")  # and all terms of the loss
FREE = FREE_ON_RESUME - {"device"}  # the device changes the cost


def compare_runs(runs: Iterable[str | os.PathLike[str]]) -> dict[str, Any]:
    """Compare the stored settings and results of runs.

    Returns:
        `runs`: their folders; `settings`: for each setting that differs, its value in each run; `same`: the
        number of equal settings; `results`: for each figure that any run has, its value in each run or None.
        Figures are those of the last line of `metrics.jsonl`, of the training, and of each evaluation, as
        `IMAGES: FIGURE`.

    Raises:
        UsageError: fewer than two runs, no run in a folder, or a damaged record.
    """
    folders = [local_path(run) for run in ([runs] if isinstance(runs, str | os.PathLike) else runs)]
    if len(folders) < 2:
        raise UsageError("give at least two runs to compare")
    stored = [_settings(read_settings(run)) for run in folders]
    names = list(dict.fromkeys(name for run in stored for name in run))
    settings = {name: [run.get(name) for run in stored] for name in names}
    different = {name: values for name, values in settings.items() if any(v != values[0] for v in values)}
    results = [_results(run) for run in folders]
    figures = list(dict.fromkeys(name for run in results for name in run))
    return {
        "runs": [str(run) for run in folders],
        "settings": different,
        "same": len(settings) - len(different),
        "results": {name: [run.get(name) for run in results] for name in figures},
    }


def _settings(record: dict[str, Any]) -> dict[str, Any]:
    """Return everything that decided the result and cost of a run, by flat names."""
    cache = record["cache"]
    # an earlier version did not record later options, which then have their defaults
    defaults = to_flat(TrainSettings(cache=""))
    found = {n: value for n, value in (defaults | flat_settings(record)).items() if n not in FREE}
    found["cache decoder"] = "pillow"  # of earlier versions
    found |= {f"cache {name}": cache[name] for name in CACHE_FIELDS if name in cache}
    found |= {f"teacher {name}": value for name, value in cache["teacher"].items()}
    student = {name: value for name, value in record["student"].items() if name != "config"}
    found |= {f"student {name}": value for name, value in student.items()}
    others = ("templates", "mode", "init", "processes", "samples_per_step", "software")
    return found | {name: record.get(name) for name in others if name in record}


def _results(run: Path) -> dict[str, Any]:
    line = last_metrics(run) or {}
    found = {name: line[name] for name in line if name in OF_LAST_LINE or name.endswith("_loss")}
    results = read_results(run)
    train, evals = results.get("train"), results.get("evals")
    if isinstance(train, dict):
        found |= {name: train[name] for name in OF_TRAINING if name in train}
    for one in evals if isinstance(evals, list) else []:
        if not isinstance(one, dict):
            continue
        who = f"{one.get('student')} " if is_frozen(one.get("student")) else ""
        place = f"{who}{Path(str(one.get('images'))).name}, {one.get('classes')} classes"
        found |= {f"{place}: {name}": one[name] for name in FIGURES if name in one}
    return found
