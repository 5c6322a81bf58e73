"""A TOML suite -> evaluations of many students on many data sets, and their means.

A suite has a table `[[data]]` for each data set, with a `name` and the names of `rpp eval`'s options. Ready
ones are in `suites/`.
"""

import os
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from pipeline.recipe import read_toml
from student_train.datasets import Dataset, DataSettings, open_dataset
from student_train.evaluate import EvalOptions, check_evaluation, evaluate_models, load_models
from student_train.evaluators import FIGURES, harmonic_mean
from teacher_cache.errors import RppError, UsageError
from teacher_cache.images.remote import is_remote
from teacher_cache.options import from_flat

READY = Path(__file__).parent / "suites"


class SuiteData(DataSettings):
    """One data set of a suite."""

    name: str = Field(description="what the table calls it")


class Suite(BaseModel):
    """Data sets whose figures belong together."""

    model_config = ConfigDict(frozen=True)

    name: str
    data: tuple[SuiteData, ...]


def load_suite(suite: str, root: Path | None = None) -> Suite:
    """Read a suite: one of the ready ones by name, or a file.

    Args:
        root: where relative places in the suite start from; the working directory without it.

    Raises:
        UsageError: no such suite, not TOML, or a table with an unknown or missing setting.
    """
    ready = {path.stem: path for path in sorted(READY.glob("*.toml"))}
    path = ready.get(suite, Path(suite))
    if not os.path.isfile(path):
        raise UsageError(f"no suite '{suite}': neither a file nor one of {', '.join(ready)}")
    tables = read_toml(path, "suite")
    entries = tables.get("data")
    if set(tables) != {"data"} or not (
        isinstance(entries, list) and entries and all(isinstance(e, dict) for e in entries)
    ):
        raise UsageError(f"the suite {path} needs one [[data]] for each data set, and nothing else")
    data = []
    for number, entry in enumerate(entries):
        try:
            found = from_flat(SuiteData, entry)
        except UsageError as error:
            raise UsageError(f"the suite {path}, data set {entry.get('name', number)}: {error}") from error
        data.append(found.model_copy(update=_placed(found, root)))
    names = [one.name for one in data]
    if len(set(names)) < len(names):
        raise UsageError(f"the suite {path} has two data sets of one name: {', '.join(names)}")
    return Suite(name=path.stem, data=tuple(data))


def _placed(data: SuiteData, root: Path | None) -> dict[str, str]:
    """Places below the root; names of vocabularies and templates that are no files stay as they are."""
    if root is None:
        return {}
    placed = {} if is_remote(data.images) else {"images": str(root / Path(data.images).expanduser())}
    for name in ("classes", "templates"):
        value = getattr(data, name)
        if value is not None and os.path.isfile(root / value):  # a long text is none
            placed[name] = str(root / value)
    return placed


def run_suites(
    suites: Sequence[Suite],
    students: Sequence[str],
    options: EvalOptions,
    skip_missing: bool = False,
    on_note: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Evaluate students on all data sets of suites. What can be known is known before any image is read: all
    data sets are opened before a model is loaded. An image is decoded once for all students.

    Args:
        students: runs, or `zero-shot`.
        options: all else that the evaluations share. What a data set is, its table in the suite says.
        skip_missing: leave out data sets that are not there, with a note, instead of refusing.

    Returns:
        `rows`: for each data set and student what `evaluate` returns, with `suite` and `data`, its name;
        `means`: for each suite and student, and over all suites where there are several, the means of the
        figures that all its rows have, with `datasets` and `of`: of how many of how many data sets;
        `failed`: data sets whose images could not be evaluated: `suite`, `data`, `why`. The others are.

    Raises:
        UsageError: data sets that are not there, all of them named; no such run; none left; suites of one
            name; a metric or model that does not fit a data set.
    """
    names = [suite.name for suite in suites]
    if len(set(names)) < len(names):
        raise UsageError(f"two suites of one name: {', '.join(names)}; their means would be one")
    found, missing = _open(suites, skip_missing)
    for line in missing:
        on_note(f"left out: {line}")
    models = load_models(students, options)
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
            f"{len(failed)} data sets could not be evaluated; the first, {failed[0]['data']}: "
            f"{failed[0]['why']}"
        )


def _open(
    suites: Sequence[Suite], skip_missing: bool
) -> tuple[list[tuple[Suite, SuiteData, Dataset]], list[str]]:
    found, missing = [], []
    for suite in suites:
        for data in suite.data:
            try:
                found.append((suite, data, open_dataset(data)))
            except UsageError as error:
                missing.append(f"{data.name}: {error}")
    if missing and (not skip_missing or not found):
        hint = "" if skip_missing else "; --root says where they are, --skip-missing does without them"
        count = f"{len(missing)} of {len(found) + len(missing)} data sets"
        raise UsageError(f"{count} cannot be read ({'; '.join(missing)}){hint}")
    return found, missing


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
            if "harmonic" in figures:  # of the means, as CoCoOp's and MaPLe's tables have it
                figures["harmonic"] = harmonic_mean(figures["base"], figures["new"])
            means.append({"suite": name, "student": student, "datasets": len(own), "of": count, **figures})
    return means
