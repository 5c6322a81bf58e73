"""The record of a sweep, `sweep.json`: a row for each run, beside the folders of the runs."""

import json
import os
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from student_train.figures import TEACHER, ZERO_SHOT
from student_train.runs.record import SETTINGS
from teacher_cache.errors import UsageError
from teacher_cache.files.atomic_write import atomic_write_text
from teacher_cache.files.json_text import first_problem
from teacher_cache.files.places import local_path

SWEEP = "sweep.json"
RUNS = "runs"  # folder of the run folders


class SweepRow(BaseModel):
    """One run of a sweep.

    Attributes:
        settings: value of each axis.
        run: its folder, relative to the sweep's.
        why: why a run failed, in one line.
        zero_shot: name of the frozen model of its student in `SweepRecord.baselines`.
        train: results of the training: steps, samples, loss, seconds, wait_seconds and others.
        evals: results of each evaluation, in the recipe's order, without `by_class`, which is in the run's
            own `results.json`.
    """

    model_config = ConfigDict(extra="forbid")

    settings: dict[str, Any]
    seed: int
    run: str
    state: Literal["waiting", "done", "failed"] = "waiting"
    why: str | None = None
    train: dict[str, Any] | None = None
    evals: list[dict[str, Any]] = []
    zero_shot: str = ZERO_SHOT


class SweepRecord(BaseModel):
    """A grid of runs over one cache, or over those of a recipe's rows.

    Attributes:
        recipe: the recipe's file.
        cache: that of [train]; rows may name others.
        eval_caches: those with whose teachers the evaluations compare; empty in records of earlier versions.
        axes: values of each axis, in the order of the command. Rows are the first one, `row`.
        row_settings: settings of each row of the recipe, by its name.
        zero_shot: results of the recipe's evaluations for the students' frozen model, with `by_class`; empty
            if they failed, for the reason `zero_shot_why`. Of several models the results follow each other.
        teacher: the same of teachers that are other models than the students.
        seconds: sum over all calls.
        process_seconds: the same, times the processes that ran jobs; None if that is not known: on Dask
            workers, or for calls of earlier versions.
    """

    model_config = ConfigDict(extra="forbid")

    recipe: str
    cache: str
    eval_caches: list[str] = []
    axes: dict[str, list[Any]]
    seeds: list[int]
    zero_shot: list[dict[str, Any]] = []
    zero_shot_why: str | None = None
    teacher: list[dict[str, Any]] = []
    teacher_why: str | None = None
    row_settings: dict[str, dict[str, Any]] = {}
    rows: list[SweepRow]
    seconds: float = 0.0
    process_seconds: float | None = None

    @model_validator(mode="after")
    def _rows_have_the_axes(self) -> "SweepRecord":
        if any(set(row.settings) != set(self.axes) for row in self.rows):
            raise ValueError("a row does not have the settings that the axes name")
        return self

    def configurations(self) -> list[list[SweepRow]]:
        """Return groups of rows that differ only in the seed, in the order of the grid."""
        groups: dict[str, list[SweepRow]] = {}
        for row in self.rows:
            groups.setdefault(json.dumps(row.settings, sort_keys=True, default=str), []).append(row)
        return list(groups.values())

    @property
    def several_teachers(self) -> bool:
        """Whether rows are compared with different caches, which may have other teachers."""
        if self.eval_caches:
            return len(self.eval_caches) > 1
        return any("cache" in settings for settings in self.row_settings.values())

    def baselines(self) -> dict[str, list[dict[str, Any]]]:
        """Return the results of frozen models by name, those of students first."""
        found: dict[str, list[dict[str, Any]]] = {}
        for default, results in ((ZERO_SHOT, self.zero_shot), (TEACHER, self.teacher)):
            for one in results:
                found.setdefault(str(one.get("student", default)), []).append(one)
        return found

    def training_share(self) -> float | None:
        """Return the share of the processes' time that the training loops of finished runs took; None if it
        is not known. The rest is loading, evaluation and waiting for the last run."""
        if not self.process_seconds:
            return None
        trained: float = sum((row.train or {}).get("seconds", 0.0) for row in self.rows)
        return trained / self.process_seconds

    def write(self, out: Path) -> None:
        """Write `sweep.json` into the sweep's folder, atomically."""
        atomic_write_text(out / SWEEP, self.model_dump_json(indent=1))


def read_sweep(out: str | os.PathLike[str]) -> SweepRecord:
    """Read the record of a sweep.

    Raises:
        UsageError: the folder has no sweep, or its record is damaged.
    """
    out = local_path(out)
    try:
        return SweepRecord.model_validate_json((out / SWEEP).read_bytes())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UsageError(f"no sweep at {out}: it has no {SWEEP}") from error
    except OSError as error:
        raise UsageError(f"{out / SWEEP} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        raise UsageError(f"{out / SWEEP} is damaged: {first_problem(error)}") from error


def require_no_sweep(folder: Path | None) -> None:
    """Refuse a folder for a new run that is the folder of a sweep.

    Raises:
        UsageError: it is one.
    """
    if folder is not None and (folder / SWEEP).is_file() and not (folder / SETTINGS).is_file():
        raise UsageError(f"{folder} is the folder of a sweep; choose another out for a single run")
