"""A TOML suite -> data sets to evaluate on.

A suite has a table `[[data]]` for each data set, with a `name` and the names of `rpp eval`'s options. Ready
ones are in `suites/`. How they are evaluated is in `suite_run.py`; nothing here takes time to import.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from pipeline.recipe import read_toml
from student_train.evaluation.dataset_layouts import check_layout
from student_train.evaluation.settings import DataSettings
from teacher_cache.errors import UsageError
from teacher_cache.images.remote import is_remote
from teacher_cache.settings import from_flat

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


def check_data_there(suites: Sequence[Suite], skip_missing: bool) -> None:
    """Refuse suites whose data sets are not there, by a look at names.

    Raises:
        UsageError: as `missing_data`.
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
    """The error for data sets of suites that cannot be read.

    Args:
        missing: which, and why.
        count: of all data sets.
        skip_missing: whether those that are not there may be left out.
    """
    hint = "" if skip_missing else "; --root says where they are, --skip-missing does without them"
    return UsageError(f"{len(missing)} of {count} data sets cannot be read ({'; '.join(missing)}){hint}")
