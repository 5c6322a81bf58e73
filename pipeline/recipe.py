"""Read a TOML recipe into the settings of both stages and of the evaluations.

The tables `[build]`, `[train]` and `[[eval]]` have the options of the commands, with `_` for `-`.
"""

import os
import re
import tomllib
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from student_train.evaluation.settings import EvalSettings
from student_train.training.settings import TrainSettings
from teacher_cache.command_settings import BuildSettings
from teacher_cache.errors import UsageError
from teacher_cache.files.places import local_path, same_place
from teacher_cache.files.text_file import read_text
from teacher_cache.settings import from_flat


class Recipe(BaseModel):
    """The settings of an experiment. Without `build`, its cache exists already."""

    model_config = ConfigDict(frozen=True)

    build: BuildSettings | None
    train: TrainSettings
    evals: list[EvalSettings]


def load_recipe(path: str | os.PathLike[str], train: dict[str, Any] | None = None) -> Recipe:
    """Read a recipe.

    `$NAME` and `${NAME}` in strings are environment variables. Paths are relative to the working directory.
    `train.cache` defaults to `build.out`, `eval.cache` to `train.cache` and `eval.student` to `train.out`.

    Args:
        train: settings that override those of [train].

    Raises:
        UsageError: not TOML, an unknown or missing table or setting, or an environment variable is not set.
    """
    path = local_path(path)
    tables = read_toml(path, "recipe")
    unknown = set(tables) - {"build", "train", "eval"}
    if unknown or not isinstance(tables.get("build", {}), dict) or not isinstance(tables.get("train"), dict):
        raise UsageError(
            f"the recipe {path} must have the tables [build] and [train] and may have [[eval]]"
            + (f"; unknown table [{min(unknown)}]" if unknown else "")
        )
    if "build" not in tables and "cache" not in tables["train"]:
        raise UsageError(f"the recipe {path} must have the table [build], or cache in [train]")
    evals = tables.get("eval", [])
    if not (isinstance(evals, list) and all(isinstance(table, dict) for table in evals)):
        raise UsageError(f"the recipe {path}: write [[eval]], in double brackets")
    build = (
        read_settings_table(BuildSettings, tables["build"], f"{path} [build]") if "build" in tables else None
    )
    cache = tables["train"].get("cache") or (build and build.out)
    values = {"cache": cache, **tables["train"], **(train or {})}
    training = read_settings_table(TrainSettings, values, f"{path} [train]")
    if training.out is None:
        raise UsageError(f"{path} [train] must have out, the folder of the run")
    evaluations = [
        read_settings_table(
            EvalSettings, {"cache": training.cache, "student": str(training.out), **table}, f"{path} [[eval]]"
        )
        for table in evals
    ]
    own = {"student": str(training.out)}  # whatever the spelling in the recipe
    evaluations = [
        one.model_copy(update=own) if same_place(one.student, training.out) else one for one in evaluations
    ]
    return Recipe(build=build, train=training, evals=evaluations)


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
