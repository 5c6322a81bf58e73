"""Read a TOML recipe into the settings of both stages and of the evaluations.

The tables `[build]`, `[train]` and `[[eval]]` have the options of the commands, with `_` for `-`. A `[[row]]`
has a name and settings that override those of [train].
"""

import os
import re
import tomllib
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from pipeline.settings import SweepSettings
from student_train.evaluation.settings import EvalSettings
from student_train.figures import TEACHER, ZERO_SHOT
from student_train.training.settings import TrainSettings
from teacher_cache.command_settings import BuildSettings
from teacher_cache.errors import UsageError
from teacher_cache.files.places import local_path, same_place
from teacher_cache.files.text_file import read_text
from teacher_cache.settings import from_flat, to_flat

TABLES = ("build", "train", "row", "eval")
OF_SWEEP = ("seeds", "jobs")  # settings at the top of a recipe
NOT_OF_A_ROW = ("out", "resume", "seed", "lock")  # the sweep sets them


class Row(BaseModel):
    """A named setting of a recipe, which a sweep trains beside the others.

    Attributes:
        settings: those that override [train], by the flat names of options.
        train: the settings of its runs.
        evals: the recipe's evaluations; those that name no cache use that of the row.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    settings: dict[str, Any]
    train: TrainSettings
    evals: list[EvalSettings]


class Recipe(BaseModel):
    """The settings of an experiment.

    Attributes:
        builds: caches to build before training; other caches exist already.
        train: settings of the run, or those that all rows share.
        evals: evaluations; those that name no cache use that of `train`.
        rows: named settings, each for several runs. Without rows, `train` is the only one.
        seeds, jobs: how many seeds a sweep trains, and how many runs at a time; None for the default.
    """

    model_config = ConfigDict(frozen=True)

    builds: list[BuildSettings] = []
    train: TrainSettings
    evals: list[EvalSettings]
    rows: list[Row] = []
    seeds: int | None = None
    jobs: int | None = None

    @property
    def build(self) -> BuildSettings | None:
        """The first of the caches to build."""
        return self.builds[0] if self.builds else None

    @property
    def is_sweep(self) -> bool:
        """Whether it describes several runs."""
        return bool(self.rows) or (self.seeds or 1) > 1


def load_recipe(path: str | os.PathLike[str], train: dict[str, Any] | None = None) -> Recipe:
    """Read a recipe.

    `$NAME` and `${NAME}` in strings are environment variables. Paths are relative to the working directory.
    `train.cache` defaults to `out` of the first build, `eval.cache` to the cache of the run and
    `eval.student` to the run.

    Args:
        train: settings that override those of [train]; settings of a row override both.

    Raises:
        UsageError: not TOML, an unknown or missing table or setting, an environment variable that is not set,
            two builds of one cache, or a row without a name of its own or without settings of its own.
    """
    path = local_path(path)
    tables = read_toml(path, "recipe")
    unknown = set(tables) - {*TABLES, *OF_SWEEP}
    if settings := sorted(name for name in unknown if not isinstance(tables[name], dict | list)):
        raise UsageError(
            f"{path}: no such setting at the top of a recipe: {settings[0]} (known: {', '.join(OF_SWEEP)}; "
            "others belong to a table, below its line)"
        )
    if unknown or not isinstance(tables.get("train"), dict):
        raise UsageError(
            f"the recipe {path} must have the tables [build] and [train] and may have [[eval]] and [[row]]"
            + (f"; unknown table [{min(unknown)}]" if unknown else "")
        )
    table, evals, rows = tables["train"], _several(tables, "eval", path), _several(tables, "row", path)
    one = isinstance(tables.get("build"), dict)
    builds = [
        read_settings_table(BuildSettings, build, f"{path} [build]")
        for build in ([tables["build"]] if one else _several(tables, "build", path))
    ]
    for number, build in enumerate(builds):
        if any(same_place(build.out, other.out) for other in builds[:number]):
            raise UsageError(f'{path}: two [[build]] tables have out = "{build.out}"')
    if not builds and "cache" not in table and not (rows and all("cache" in row for row in rows)):
        raise UsageError(f"the recipe {path} must have the table [build], or cache in [train]")
    for name in OF_SWEEP:
        if name in table:
            raise UsageError(f"{path} [train]: {name} stands at the top of the recipe, above all tables")
    cache = table.get("cache") or (builds[0].out if builds else next((row.get("cache") for row in rows), ""))
    values = {"cache": cache, **table, **(train or {})}
    training = read_settings_table(TrainSettings, values, f"{path} [train]")
    if training.out is None:
        raise UsageError(f"{path} [train] must have out, the folder of the run")
    asked = read_settings_table(SweepSettings, {n: tables[n] for n in OF_SWEEP if n in tables}, str(path))
    return Recipe(
        builds=builds,
        train=training,
        evals=_evaluations(evals, training, path),
        rows=_rows(rows, values, evals, path),
        seeds=asked.seeds,
        jobs=asked.jobs,
    )


def _several(tables: dict[str, Any], name: str, path: Path) -> list[dict[str, Any]]:
    found = tables.get(name, [])
    if not (isinstance(found, list) and all(isinstance(table, dict) for table in found)):
        raise UsageError(f"the recipe {path}: write [[{name}]], in double brackets")
    return found


def _evaluations(tables: list[dict[str, Any]], train: TrainSettings, path: Path) -> list[EvalSettings]:
    own = {"student": str(train.out)}
    evaluations = [
        read_settings_table(EvalSettings, {"cache": train.cache, **own, **table}, f"{path} [[eval]]")
        for table in tables
    ]
    return [  # whatever the spelling in the recipe
        one.model_copy(update=own) if same_place(one.student, str(train.out)) else one for one in evaluations
    ]


def _rows(
    tables: list[dict[str, Any]], train: dict[str, Any], evals: list[dict[str, Any]], path: Path
) -> list[Row]:
    """Read the rows of a recipe.

    Args:
        train: the settings that they override.
    """
    rows: list[Row] = []
    for number, table in enumerate(tables, start=1):
        name, settings = table.get("name"), {n: value for n, value in table.items() if n != "name"}
        if not isinstance(name, str) or not name.strip() or not name.isprintable():
            raise UsageError(f"{path}: [[row]] number {number} needs a name in one line, found {name!r}")
        name = name.strip()
        where = f"{path} [[row]] '{name}'"
        if name.casefold() in (ZERO_SHOT, TEACHER):
            raise UsageError(f"{where}: tables have a line of this name for a frozen model; choose another")
        if alike := [row.name for row in rows if row.name.casefold() == name.casefold()]:
            # their folders would be one on a file system that does not distinguish cases
            raise UsageError(f"{path}: two rows have the name '{name}' ('{alike[0]}')")
        if taken := [setting for setting in settings if setting in NOT_OF_A_ROW]:
            raise UsageError(f"{where}: {taken[0]} cannot differ between rows, because the sweep sets it")
        training = read_settings_table(TrainSettings, {**train, **settings}, where)
        if same := [row.name for row in rows if to_flat(row.train) == to_flat(training)]:
            raise UsageError(f"{where} has the same settings as the row '{same[0]}'; remove one of them")
        evaluations = _evaluations(evals, training, path)
        rows.append(Row(name=name, settings=settings, train=training, evals=evaluations))
    return rows


def read_toml(path: Path, what: str) -> dict[str, Any]:
    """Read a TOML file and expand environment variables in its strings.

    Args:
        what: the kind of file, for messages.

    Raises:
        UsageError: it cannot be read, is not TOML, or names a variable that is not set.
    """
    try:
        tables = tomllib.loads(read_text(path))
    except OSError as error:
        raise UsageError(f"cannot read the {what} {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # deeply nested brackets exceed the stack
        raise UsageError(f"the {what} {path} is not TOML: {error}") from error
    expanded: dict[str, Any] = _expand(tables, path)
    return expanded


def read_settings_table(settings: Any, values: dict[str, Any], where: str) -> Any:
    """Return a table of a TOML file as settings of a class.

    Raises:
        UsageError: an unknown, missing or invalid setting; begins with `where`.
    """
    try:
        return from_flat(settings, values)
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from error


def _expand(value: Any, path: Path) -> Any:
    if isinstance(value, dict):
        return {key: _expand(item, path) for key, item in value.items()}
    if isinstance(value, list):
        return [_expand(item, path) for item in value]
    if not isinstance(value, str):
        return value
    expanded = os.path.expandvars(value)
    left = re.search(r"\$\{?([A-Za-z_]\w*)\}?", expanded)
    if left:
        raise UsageError(f"{path}: the environment variable {left[1]} is not set (in '{value}')")
    return expanded
