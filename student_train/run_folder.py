"""A run's folder: `settings.json` (what it is), `metrics.jsonl` (how it went), `checkpoint.pt`.

Knows how a run is stopped and continued; what is in its settings is the loop's business.
"""

import json
import math
import os
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import nn

from teacher_cache.errors import RppError, UsageError

SETTINGS = "settings.json"
METRICS = "metrics.jsonl"
CHECKPOINT = "checkpoint.pt"


def read_settings(out: Path) -> dict[str, Any]:
    """What a run wrote down of itself.

    Raises:
        UsageError: no run there.
    """
    try:
        record: dict[str, Any] = json.loads((out / SETTINGS).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UsageError(f"no run at {out}: it has no {SETTINGS}") from error
    except json.JSONDecodeError as error:
        raise UsageError(f"{out / SETTINGS} is damaged: {error}") from error
    return record


def write_whole(path: Path, text: str) -> None:
    """Write a file completely or not at all."""
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


class RunFolder:
    """The folder of one run and the state that its checkpoints hold.

    Everything else that a step needs (order of the samples, views, sampled classes, learning rate) follows
    from the settings and the step number.
    """

    def __init__(
        self,
        out: Path,
        prompts: nn.ModuleDict,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        writes: bool = True,
    ) -> None:
        """Args:
        writes: false in a process of several that leaves writing to the first one.
        """
        self.out, self._writes = out, writes
        self._parts: dict[str, Any] = {"prompts": prompts, "optimizer": optimizer, "scaler": scaler}

    def begin(self, record: dict[str, Any]) -> None:
        """Make the folder and write `settings.json`.

        Raises:
            UsageError: the folder holds a run already.
        """
        if not self._writes:
            return
        if (self.out / SETTINGS).exists():
            raise UsageError(f"{self.out} holds a run already; choose another --out, or go on with --resume")
        self.out.mkdir(parents=True, exist_ok=True)
        write_whole(self.out / SETTINGS, json.dumps(record, indent=1, ensure_ascii=False))

    def save(self, step: int) -> None:
        """Write the checkpoint in front of step `step`, completely or not at all.

        Raises:
            RppError: it cannot be written, as on a full disk; the one before it stays.
        """
        if not self._writes:
            return
        state = {"step": step, **{name: part.state_dict() for name, part in self._parts.items()}}
        temporary = self.out / f"{CHECKPOINT}.tmp"
        try:
            with open(temporary, "wb") as file:
                torch.save(state, file)
                file.flush()
                os.fsync(file.fileno())  # a machine that goes down must not leave an empty checkpoint behind
            os.replace(temporary, self.out / CHECKPOINT)
        except (OSError, RuntimeError) as error:  # torch has its own words for a write that was cut short
            reason = str(error).splitlines()[0]
            raise RppError(
                f"the checkpoint of step {step} cannot be written to {self.out} ({reason}); the one before "
                f"it stays: make room and go on with --out {self.out} --resume"
            ) from error

    def resume(self) -> int:
        """Take up the checkpoint; metrics of later steps are dropped.

        Returns:
            The step to go on with; 0 if the run stopped before its first checkpoint.

        Raises:
            UsageError: the checkpoint cannot be read.
        """
        step = 0
        path = self.out / CHECKPOINT
        if path.is_file():
            try:
                state = torch.load(path, weights_only=True, map_location="cpu")
                for name, part in self._parts.items():
                    part.load_state_dict(state[name])
                step = int(state["step"])
            except (RuntimeError, ValueError, KeyError, EOFError, pickle.UnpicklingError) as error:
                reason = str(error).splitlines()[0] if str(error) else type(error).__name__
                raise UsageError(
                    f"{path} cannot be read ({reason}); remove it to begin the run anew"
                ) from error
        if self._writes and (self.out / METRICS).is_file():
            kept = [json.dumps(line) + "\n" for line in self.metrics() if line["step"] <= step]
            write_whole(self.out / METRICS, "".join(kept))
        return step

    def log(self, line: dict[str, Any]) -> None:
        """Append a line to `metrics.jsonl`."""
        if not self._writes:
            return
        with open(self.out / METRICS, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def last_loss(self) -> float:
        """The loss of the last line of `metrics.jsonl`; not a number in a process that does not write it."""
        return float(self.metrics()[-1]["loss"]) if self._writes else math.nan

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of `metrics.jsonl`; one that a crash cut off in the middle is left out."""
        text = (self.out / METRICS).read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
