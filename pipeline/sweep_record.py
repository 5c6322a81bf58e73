"""What a sweep wrote down of itself: `sweep.json`, a row for each run, beside the runs' own folders."""

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from teacher_cache.errors import UsageError
from teacher_cache.files.atomic_write import atomic_write_text

SWEEP = "sweep.json"
RUNS = "runs"  # the folder of the runs' folders


class SweepRow(BaseModel):
    """One run of a sweep.

    Attributes:
        settings: value of each axis.
        run: its folder, relative to the sweep's.
        why: of a failed run, one line.
        train: what the training gave: steps, samples, loss, seconds, wait_seconds and others.
        evals: what each evaluation of the recipe gave, in its order; `by_class` is only in the run's own
            `results.json`.
    """

    model_config = ConfigDict(extra="forbid")

    settings: dict[str, Any]
    seed: int
    run: str
    state: Literal["waiting", "done", "failed"] = "waiting"
    why: str | None = None
    train: dict[str, Any] | None = None
    evals: list[dict[str, Any]] = []


class SweepRecord(BaseModel):
    """A grid of runs over one cache.

    Attributes:
        recipe: the recipe's file.
        axes: values of each setting that differs, in the order of the command.
        zero_shot: what the recipe's evaluations gave for the cache's frozen model, `by_class` too; empty if
            they could not.
        seconds: of all calls together.
    """

    model_config = ConfigDict(extra="forbid")

    recipe: str
    cache: str
    axes: dict[str, list[Any]]
    seeds: list[int]
    zero_shot: list[dict[str, Any]] = []
    zero_shot_why: str | None = None
    rows: list[SweepRow]
    seconds: float = 0.0

    @model_validator(mode="after")
    def _rows_have_the_axes(self) -> "SweepRecord":
        if any(set(row.settings) != set(self.axes) for row in self.rows):
            raise ValueError("a row does not have the settings that the axes name")
        return self

    def configurations(self) -> list[list[SweepRow]]:
        """Rows that differ in the seed alone, in the order of the grid."""
        groups: dict[str, list[SweepRow]] = {}
        for row in self.rows:
            groups.setdefault(json.dumps(row.settings, sort_keys=True, default=str), []).append(row)
        return list(groups.values())

    def write(self, out: Path) -> None:
        """Write `sweep.json` into the sweep's folder, completely or not at all."""
        atomic_write_text(out / SWEEP, self.model_dump_json(indent=1))


def read_sweep(out: Path) -> SweepRecord:
    """What a sweep wrote down of itself.

    Raises:
        UsageError: no sweep there, or a file that is not what a sweep writes.
    """
    try:
        return SweepRecord.model_validate_json((out / SWEEP).read_bytes())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UsageError(f"no sweep at {out}: it has no {SWEEP}") from error
    except OSError as error:
        raise UsageError(f"{out / SWEEP} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UsageError(
            f"{out / SWEEP} is damaged: {where + ': ' if where else ''}{first['msg']}"
        ) from error
