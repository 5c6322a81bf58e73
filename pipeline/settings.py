"""Settings of the commands `sweep` and `demo`. Imports nothing slow.

A description that ends in `[default: ...]` describes the default in words.
"""

from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from teacher_cache.command_settings import Lock
from teacher_cache.settings import MOST_PROCESSES, Device, LocalPlace, OneOrMore, Panels

MOST_SEEDS = 10_000


class SweepSettings(BaseModel):
    """Settings of a sweep."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    PANELS: ClassVar[Panels] = {
        "Grid": ("set", "seeds"),
        "Compute": ("jobs", "scheduler"),
        "Output": ("out", "lock"),
    }

    set: Annotated[tuple[str, ...], OneOrMore] = Field(
        default=(),
        description="train.NAME=VALUE,VALUE,...: an axis of the grid; may be repeated [default: the rows of "
        "the recipe, or one run]",
    )
    seeds: int | None = Field(
        default=None,
        ge=1,
        le=MOST_SEEDS,
        description="runs per setting, with consecutive seeds from the recipe's [default: seeds of the "
        "recipe, or 1]",
    )
    out: LocalPlace | None = Field(default=None, description="folder of the sweep [default: sweeps/RECIPE]")
    jobs: int | None = Field(
        default=None,
        ge=1,
        le=MOST_PROCESSES,
        description="parallel runs on this machine, each in its own process [default: jobs of the recipe, or "
        "1]",
    )
    scheduler: str | None = Field(
        default=None,
        description="address of a Dask scheduler whose workers run the grid, tcp://HOST:PORT [default: this "
        "machine]",
    )
    lock: Lock = True


class DemoSettings(BaseModel):
    """Settings of the demo."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    PANELS: ClassVar[Panels] = {
        "Training": ("seeds", "epochs"),
        "Compute": ("device",),
        "Output": ("out",),
    }

    out: LocalPlace = Field(
        default=Path("rpp-demo"), description="folder for the cache, the runs and the figures"
    )
    seeds: int = Field(default=3, ge=1, description="trainings per row")
    epochs: int = Field(default=4, ge=1, description="passes over the base pictures")
    device: Device = Field(default="auto", description="auto, cpu, cuda or cuda:N")
