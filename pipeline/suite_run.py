"""Evaluate students on the data sets of suites, with means."""

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from pipeline.suite import Suite, find_data
from student_train.evaluation.datasets import open_dataset
from student_train.evaluation.evaluate import check_evaluation, evaluate_models, load_models
from student_train.evaluation.evaluators import harmonic_mean
from student_train.evaluation.models import teacher_notes
from student_train.evaluation.settings import EvalOptions
from student_train.figures import FIGURES
from teacher_cache.errors import RppError, UsageError


def run_suites(
    suites: Sequence[Suite],
    students: str | Sequence[str],
    options: EvalOptions,
    skip_missing: bool = False,
    on_note: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Evaluate students on all data sets of suites.

    All data sets are opened before a model is loaded, and checked before an image is read. An image is
    decoded once for all students.

    Args:
        students: a run, or `zero-shot`, or several.
        options: options that all evaluations share; the suite has those of each data set.
        skip_missing: leave out missing data sets, with a note, instead of raising.

    Returns:
        `rows`: for each data set and student the result of `evaluate`, with the names `suite` and `data`;
        `means`: for each suite and student, and over all of several suites, the means of the figures that all
        its rows have, over `datasets` of `of` data sets; `failed`: data sets whose images could not be
        evaluated, with `suite`, `data` and `why`.

    Raises:
        UsageError: missing data sets (all are named), no such run, no data set left, two suites with the same
            name, or a metric or model that does not fit a data set.
    """
    names = [suite.name for suite in suites]
    if len(set(names)) < len(names):
        raise UsageError(f"two suites with the same name: {', '.join(names)}")
    found, missing = find_data(suites, skip_missing, open_dataset)
    for line in missing:
        on_note(f"left out: {line}")
    models = load_models(students, options)
    for line in teacher_notes([model for model, _ in models]):
        on_note(line)
    for _, data, dataset in found:
        try:
            check_evaluation(models, dataset, options)
        except UsageError as error:
            raise UsageError(f"{data.name}: {error}") from error
    rows, failed = [], []
    for suite, data, dataset in found:
        try:
            results = evaluate_models(models, dataset, options)
        except RppError as error:
            failed.append({"suite": suite.name, "data": data.name, "why": str(error)})
            on_note(f"{data.name} failed: {error}")
            continue
        for line in results[0]["notes"]:
            on_note(f"{data.name}: {line}")
        rows += [{"suite": suite.name, "data": data.name, **result} for result in results]
    return {"rows": rows, "means": _means(rows, suites), "failed": failed}


def check_all_evaluated(results: dict[str, Any]) -> None:
    """Raises:
    RppError: a data set of the suites failed.
    """
    if failed := results["failed"]:
        raise RppError(
            f"{len(failed)} data sets could not be evaluated; the first is {failed[0]['data']}: "
            f"{failed[0]['why']}"
        )


def _means(rows: Sequence[dict[str, Any]], suites: Sequence[Suite]) -> list[dict[str, Any]]:
    groups = [(suite.name, [suite.name], len(suite.data)) for suite in suites]
    if len(suites) > 1:
        groups.append(("all", [suite.name for suite in suites], sum(len(suite.data) for suite in suites)))
    means = []
    for name, members, count in groups:
        for student in dict.fromkeys(row["student"] for row in rows):
            own = [row for row in rows if row["suite"] in members and row["student"] == student]
            if not own:
                continue
            figures = {
                figure: statistics.mean(row[figure] for row in own)
                for figure in FIGURES
                if all(figure in row for row in own)
            }
            if "harmonic" in figures:  # of the means, as in the tables of CoCoOp and MaPLe
                figures["harmonic"] = harmonic_mean(figures["base"], figures["new"])
            means.append({"suite": name, "student": student, "datasets": len(own), "of": count, **figures})
    return means
