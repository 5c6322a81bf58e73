"""Read a TOML suite: data sets to evaluate on.

A suite has a table `[[data]]` for each data set, with a `name` and the options of `rpp eval`. The folder
`suites/` has ready ones; `suite_run.py` evaluates them. Imports nothing slow.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from pipeline.recipe import read_toml
from student_train.evaluation.dataset_layouts import check_layout
from student_train.evaluation.settings import DataSettings
from teacher_cache.errors import UsageError
from teacher_cache.files.remote import is_remote
from teacher_cache.settings import from_flat

READY = Path(__file__).parent / "suites"


class SuiteData(DataSettings):
    """One data set of a suite."""

    name: str = Field(description="name in the table")


class Suite(BaseModel):
    """Data sets whose figures are averaged."""

    model_config = ConfigDict(frozen=True)

    name: str
    data: tuple[SuiteData, ...]


def load_suite(suite: str, root: Path | None = None) -> Suite:
    """Read a suite: a ready one by name, or a file.

    Args:
        root: folder that relative paths in the suite start from; None is the working directory.

    Raises:
        UsageError: no such suite, not TOML, or a table with an unknown or missing setting.
    """
    ready = {path.stem: path for path in sorted(READY.glob("*.toml"))}
    path = ready.get(suite, Path(suite))
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
        try:
            found = from_flat(SuiteData, entry)
        except UsageError as error:
            raise UsageError(f"the suite {path}, data set {entry.get('name', number)}: {error}") from error
        data.append(found.model_copy(update=_placed(found, root)))
    names = [one.name for one in data]
    if len(set(names)) < len(names):
        raise UsageError(f"the suite {path} has two data sets with the same name: {', '.join(names)}")
    return Suite(name=path.stem, data=tuple(data))


def _placed(data: SuiteData, root: Path | None) -> dict[str, str]:
    """Return the paths below the root; names of known vocabularies and templates stay."""
    if root is None:
        return {}
    placed = {} if is_remote(data.images) else {"images": str(root / Path(data.images).expanduser())}
    for name in ("classes", "templates"):
        value = getattr(data, name)
        if value is not None and os.path.isfile(root / value):  # False for a text that is too long for a path
            placed[name] = str(root / value)
    return placed


def check_data_there(suites: Sequence[Suite], skip_missing: bool) -> None:
    """Check that the data sets of suites exist, without reading images.

    Raises:
        UsageError: see `missing_data`.
    """
    missing, count = [], 0
    for data in (data for suite in suites for data in suite.data):
        count += 1
        try:
            check_layout(data)
        except UsageError as error:
            missing.append(f"{data.name}: {error}")
    if missing and (not skip_missing or len(missing) == count):
        raise missing_data(missing, count, skip_missing)


def missing_data(missing: Sequence[str], count: int, skip_missing: bool) -> UsageError:
    """Return the error for data sets that cannot be read.

    Args:
        missing: name and reason of each.
        count: number of all data sets.
        skip_missing: whether missing ones may be left out.
    """
    hint = "" if skip_missing else "; give their folder with --root, or leave them out with --skip-missing"
    return UsageError(f"{len(missing)} of {count} data sets cannot be read ({'; '.join(missing)}){hint}")
