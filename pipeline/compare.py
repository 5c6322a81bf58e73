"""What differs between runs: in what they were, and in what came out.

Knows the files of a run's folder; tables are made in `tables.py`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from student_train.figures import FIGURES
from student_train.runs.record import (
    CACHE_FIELDS,
    FREE_ON_RESUME,
    flat_settings,
    last_metrics,
    read_results,
    read_settings,
)
from teacher_cache.errors import UsageError

OF_TRAINING = ("steps", "samples_per_second", "seconds", "wait_seconds")
OF_LAST_LINE = ("step", "loss", "accuracy")  # and all terms of the loss
FREE = FREE_ON_RESUME - {"device"}  # says nothing of the result, but of its cost


def compare_runs(runs: Sequence[Path]) -> dict[str, Any]:
    """Compare what runs wrote down of themselves.

    Returns:
        `runs`: their folders; `settings`: of each setting that differs its value in each run; `same`: how
        many do not differ; `results`: of each figure that any run has its value in each run, or None: of the
        last line of `metrics.jsonl`, of the training, and of each evaluation, as `IMAGES: FIGURE`.

    Raises:
        UsageError: fewer than two runs, no run there, or a damaged record.
    """
    if len(runs) < 2:
        raise UsageError("name at least two runs to compare")
    described = [_described(read_settings(run)) for run in runs]
    names = list(dict.fromkeys(name for one in described for name in one))
    settings = {name: [one.get(name) for one in described] for name in names}
    different = {name: values for name, values in settings.items() if any(v != values[0] for v in values)}
    measured = [_measured(run) for run in runs]
    figures = list(dict.fromkeys(name for one in measured for name in one))
    return {
        "runs": [str(run) for run in runs],
        "settings": different,
        "same": len(settings) - len(different),
        "results": {name: [one.get(name) for one in measured] for name in figures},
    }


def _described(record: dict[str, Any]) -> dict[str, Any]:
    """All that decided a run's result and its cost, by flat names."""
    cache = record["cache"]
    found = {name: value for name, value in flat_settings(record).items() if name not in FREE}
    found |= {f"cache {name}": cache[name] for name in CACHE_FIELDS if name in cache}
    teacher = cache.get("teacher")
    if isinstance(teacher, dict):
        found |= {f"teacher {name}": value for name, value in teacher.items()}
    student = {name: value for name, value in record["student"].items() if name != "config"}
    found |= {f"student {name}": value for name, value in student.items()}
    others = ("templates", "mode", "init", "processes", "samples_per_step", "never_read", "software")
    return found | {name: record.get(name) for name in others if name in record}


def _measured(run: Path) -> dict[str, Any]:
    line = last_metrics(run) or {}
    found = {name: line[name] for name in line if name in OF_LAST_LINE or name.endswith("_loss")}
    results = read_results(run)
    train, evals = results.get("train"), results.get("evals")
    if isinstance(train, dict):
        found |= {name: train[name] for name in OF_TRAINING if name in train}
    for one in evals if isinstance(evals, list) else []:
        if not isinstance(one, dict):
            continue
        who = "zero-shot " if one.get("student") == "zero-shot" else ""
        place = f"{who}{Path(str(one.get('images'))).name}, {one.get('classes')} classes"
        found |= {f"{place}: {name}": one[name] for name in FIGURES if name in one}
    return found
