"""A TOML recipe -> validated settings of both stages and of the evaluations.

The tables `[build]`, `[train]` and `[[eval]]` take the names of the commands' options, with `_` for `-`.
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
from teacher_cache.files.text_file import read_text
from teacher_cache.settings import from_flat


class Recipe(BaseModel):
    """Everything that one experiment needs; without `build` its cache is there already."""

    model_config = ConfigDict(frozen=True)

    build: BuildSettings | None
    train: TrainSettings
    evals: list[EvalSettings]


def load_recipe(path: Path, train: dict[str, Any] | None = None) -> Recipe:
    """Read a recipe. `$NAME` and `${NAME}` in strings are environment variables; paths are relative to where
    the command runs. Without a value, `train.cache` is `build.out`, `eval.cache` is `train.cache` and
    `eval.student` is `train.out`.

    Args:
        train: settings that go before those of the recipe's [train].

    Raises:
        UsageError: not TOML, an unknown table or setting, a missing one, an environment variable not set.
    """
    tables = read_toml(path, "recipe")
    unknown = set(tables) - {"build", "train", "eval"}
    if unknown or not isinstance(tables.get("build", {}), dict) or not isinstance(tables.get("train"), dict):
        raise UsageError(
            f"the recipe {path} needs the tables [build] and [train], may have [[eval]]"
            + (f", and does not know [{min(unknown)}]" if unknown else "")
        )
    if "build" not in tables and "cache" not in tables["train"]:
        raise UsageError(f"the recipe {path} needs the table [build], or cache in [train]")
    evals = tables.get("eval", [])
    if not (isinstance(evals, list) and all(isinstance(table, dict) for table in evals)):
        raise UsageError(f"the recipe {path}: an evaluation begins with [[eval]], in double brackets")
    build = _table(BuildSettings, tables["build"], f"{path} [build]") if "build" in tables else None
    cache = tables["train"].get("cache") or (build and build.out)
    values = {"cache": cache, **tables["train"], **(train or {})}
    training = _table(TrainSettings, values, f"{path} [train]")
    if training.out is None:
        raise UsageError(f"{path} [train] needs out: the run's folder")
    evaluations = [
        _table(
            EvalSettings, {"cache": training.cache, "student": str(training.out), **table}, f"{path} [[eval]]"
        )
        for table in tables.get("eval", [])
    ]
    return Recipe(build=build, train=training, evals=evaluations)


def read_toml(path: Path, what: str) -> dict[str, Any]:
    """A TOML file, with environment variables put into its strings.

    Raises:
        UsageError: it cannot be read, is not TOML, or names a variable that is not set.
    """
    try:
        tables = tomllib.loads(read_text(path))
    except OSError as error:
        raise UsageError(f"cannot read the {what} {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets without end
        raise UsageError(f"the {what} {path} is not TOML: {error}") from error
    expanded: dict[str, Any] = _expand(tables, path)
    return expanded


def _table(settings: Any, values: dict[str, Any], where: str) -> Any:
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
