"""Read a TOML suite: data sets to evaluate on.

A suite has a table `[[data]]` for each data set, with a `name` and the options of `rpp eval`. The folder
`suites/` has ready ones; `suite_run.py` evaluates them. Imports nothing slow.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, Field

from pipeline.recipe import read_settings_table, read_toml
from student_train.evaluation.settings import DataSettings
from teacher_cache.errors import UsageError
from teacher_cache.files.places import local_path
from teacher_cache.files.remote import is_remote

READY = Path(__file__).parent / "suites"
Found = TypeVar("Found")


class SuiteData(DataSettings):
    """One data set of a suite."""

    name: str = Field(description="name in the table")


class Suite(BaseModel):
    """Data sets whose figures are averaged."""

    model_config = ConfigDict(frozen=True)

    name: str
    data: tuple[SuiteData, ...]


def load_suite(suite: str | os.PathLike[str], root: str | os.PathLike[str] | None = None) -> Suite:
    """Read a suite: a ready one by name, or a file.

    Args:
        root: folder that relative paths in the suite start from; None is the working directory.

    Raises:
        UsageError: no such suite, not TOML, or a table with an unknown or missing setting.
    """
    ready = {path.stem: path for path in sorted(READY.glob("*.toml"))}
    path = ready.get(str(suite)) or local_path(suite)
    root = None if root is None else local_path(root)
    if not os.path.isfile(path):
        raise UsageError(f"no suite '{suite}': not a file, and not one of {', '.join(ready)}")
    tables = read_toml(path, "suite")
    entries = tables.get("data")
    if set(tables) != {"data"} or not (
        isinstance(entries, list) and entries and all(isinstance(e, dict) for e in entries)
    ):
        raise UsageError(f"the suite {path} must have one [[data]] for each data set, and nothing else")
    data = []
    for number, entry in enumerate(entries):
        where = f"the suite {path}, data set {entry.get('name', number)}"
        found = read_settings_table(SuiteData, entry, where)
        data.append(found.model_copy(update=_placed(found, None if root is None else Path(root))))
    names = [one.name for one in data]
    if len(set(names)) < len(names):
        raise UsageError(f"the suite {path} has two data sets with the same name: {', '.join(names)}")
    return Suite(name=path.stem, data=tuple(data))


def _placed(data: SuiteData, root: Path | None) -> dict[str, str]:
    """Return the paths below the root; names of known vocabularies and templates stay."""
    if root is None:
        return {}
    placed = {} if is_remote(data.images) else {"images": str(root / data.images)}
    for name in ("classes", "templates"):
        value = getattr(data, name)
        if value is not None and os.path.isfile(root / value):  # False for a text that is too long for a path
            placed[name] = str(root / value)
    return placed


def find_data(
    suites: Sequence[Suite], skip_missing: bool, find: Callable[[SuiteData], Found]
) -> tuple[list[tuple[Suite, SuiteData, Found]], list[str]]:
    """Find the data sets of suites.

    Args:
        skip_missing: return missing data sets, unless all are missing, instead of raising.
        find: returns what was found of a data set, or raises UsageError. `check_layout` reads no images.

    Returns:
        suite, data set and its result for each; name and reason of each missing one.

    Raises:
        UsageError: missing data sets; all are named.
    """
    found, missing = [], []
    for suite in suites:
        for data in suite.data:
            try:
                found.append((suite, data, find(data)))
            except UsageError as error:
                missing.append(f"{data.name}: {error}")
    if missing and (not skip_missing or not found):
        hint = (
            "" if skip_missing else "; give their folder with --root, or leave them out with --skip-missing"
        )
        count = len(found) + len(missing)
        raise UsageError(f"{len(missing)} of {count} data sets cannot be read ({'; '.join(missing)}){hint}")
    return found, missing
