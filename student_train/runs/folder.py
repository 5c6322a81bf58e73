"""A run's folder: `settings.json` (what it is), `metrics.jsonl` (how it went), `checkpoint.pt`.

Knows how a run is stopped and continued; how its settings are read is in `run_record.py`.
"""

import json
import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from student_train.runs.record import CHECKPOINT, METRICS, SETTINGS, has_steps, last_metrics, read_metrics
from teacher_cache.errors import RppError, UsageError
from teacher_cache.files.atomic_write import atomic_write, atomic_write_text
from teacher_cache.files.lock_file import file_lock
from teacher_cache.teacher.checkpoint_file import load_plain

BAD_STEP = "bad-step.json"  # the samples of a step whose loss or gradient was not finite
LOCK = "run.lock"
# What an optimizer keeps of each parameter.
STATES = {torch.optim.SGD: {"momentum_buffer"}, torch.optim.AdamW: {"step", "exp_avg", "exp_avg_sq"}}


class RunFolder:
    """The folder of one run and the state that its checkpoints hold.

    Attributes:
        last_checkpoint: steps that the last checkpoint has behind it; None without one.

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
        self.last_checkpoint: int | None = None
        self._lock = ExitStack()
        self._parts: dict[str, Any] = {"prompts": prompts, "optimizer": optimizer, "scaler": scaler}
        # what the settings decide; the rate follows from the step
        fixed = {"params", "lr", "initial_lr"}
        groups = optimizer.param_groups
        self._groups = [{name: group[name] for name in group if name not in fixed} for group in groups]

    def begin(self, record: dict[str, Any]) -> None:
        """Make the folder, hold it, and write `settings.json`; one in which no step was taken begins anew.

        Raises:
            UsageError: the folder holds a run already, another process trains in it, or it cannot be written.
        """
        if not self._writes:
            return
        with _written(self.out):
            self.out.mkdir(parents=True, exist_ok=True)
            self._hold()
            if has_steps(self.out):
                raise UsageError(
                    f"{self.out} holds a run already; choose another --out, or go on with --resume"
                )
            atomic_write_text(self.out / SETTINGS, json.dumps(record, indent=1, ensure_ascii=False))

    def _hold(self) -> None:
        """One process trains in a folder. The lock ends with the process; forked workers do not have it."""
        busy = f"another process is training in {self.out}; wait for it, stop it, or choose another --out"
        self._lock.enter_context(file_lock(self.out / LOCK, UsageError(busy)))

    def close(self) -> None:
        """Let go of the folder."""
        self._lock.close()

    def save(self, step: int) -> None:
        """Write the checkpoint in front of step `step`, completely or not at all.

        Raises:
            RppError: it cannot be written, as on a full disk; the one before it stays.
        """
        if not self._writes:
            self.last_checkpoint = step
            return
        state = {"step": step, **{name: part.state_dict() for name, part in self._parts.items()}}
        try:
            with atomic_write(self.out / CHECKPOINT, sync=True) as temporary:
                torch.save(state, temporary)
        except (OSError, RuntimeError) as error:  # torch has its own words for a write that was cut short
            reason = str(error).splitlines()[0]
            raise RppError(
                f"the checkpoint of step {step} cannot be written to {self.out} ({reason}); the one before "
                f"it stays: make room and go on with --out {self.out} --resume"
            ) from error
        self.last_checkpoint = step

    def is_finite(self) -> bool:
        """Whether a run can go on with the prompts, and with what the optimizer keeps of them."""
        kept = list(self._parts["prompts"].state_dict().values())
        for state in self._parts["optimizer"].state.values():
            kept += [value for value in state.values() if isinstance(value, Tensor)]
        # together: a GPU is waited for once
        return bool(torch.stack([tensor.isfinite().all().to(kept[0].device) for tensor in kept]).all())

    def resume(self, total_steps: int) -> int:
        """Hold the folder and take up the checkpoint; metrics of later steps are dropped.

        Args:
            total_steps: of the run's schedule.

        Returns:
            The step to go on with; 0 if the run stopped before its first checkpoint.

        Raises:
            UsageError: the checkpoint cannot be read, another process trains in the folder, or it cannot be
                written.
        """
        if self._writes:
            with _written(self.out):
                self._hold()
        step = 0
        path = self.out / CHECKPOINT
        if path.exists():
            try:
                state = load_plain(path)
                for name, part in self._parts.items():
                    part.load_state_dict(state[name])
                self._check_learned(state, total_steps)
                step = self.last_checkpoint = state["step"]
            except Exception as error:  # bytes that are no checkpoint fail in every way that reading one can
                reason = str(error).splitlines()[0] if str(error) else type(error).__name__
                raise UsageError(
                    f"{path} cannot be read ({reason}); remove it to begin the run anew"
                ) from error
        if self._writes:
            kept = [json.dumps(line) + "\n" for line in read_metrics(self.out) if line["step"] <= step]
            with _written(self.out):
                atomic_write_text(self.out / METRICS, "".join(kept))
        return step

    def _check_learned(self, state: dict[str, Any], total_steps: int) -> None:
        """What loading itself lets through, and the next steps would fail at.

        Raises:
            ValueError: a step that is none of the schedule, prompts that are not finite, or a state of the
                optimizer of other settings or shapes.
        """
        if type(state["step"]) is not int or not 0 <= state["step"] <= total_steps:
            raise ValueError(f"its step is {str(state['step'])[:40]}, the run has {total_steps}")
        if not all(tensor.isfinite().all() for tensor in self._parts["prompts"].state_dict().values()):
            raise ValueError("its prompts are not finite")
        optimizer: torch.optim.Optimizer = self._parts["optimizer"]
        for now, before in zip(optimizer.param_groups, self._groups, strict=True):
            same = {
                name: type(now.get(name)) is type(value) and now[name] == value
                for name, value in before.items()
            }
            if differ := [name for name in same if not same[name]]:
                raise ValueError(f"its optimizer has another {differ[0]}")
            for parameter in now["params"]:
                found = optimizer.state.get(parameter, {})
                if found and set(found) != STATES[type(optimizer)]:
                    raise ValueError(f"its optimizer keeps {', '.join(map(str, found))[:60]}")
                for name, value in found.items():
                    shape = torch.Size() if name == "step" else parameter.shape
                    whole = isinstance(value, Tensor) and value.shape == shape
                    absent = value is None and name == "momentum_buffer"  # before its first step
                    if not absent and not (whole and value.isfinite().all()):
                        raise ValueError(f"its optimizer's {name} does not belong to the prompts")

    def log(self, line: dict[str, Any]) -> None:
        """Append a line to `metrics.jsonl`.

        Raises:
            RppError: it cannot be written, as on a full disk.
        """
        if not self._writes:
            return
        try:
            with open(self.out / METRICS, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise RppError(
                f"{self.out / METRICS} cannot be written ({error.strerror}); go on from the last checkpoint "
                f"with --out {self.out} --resume"
            ) from error

    def write_bad_step(self, record: dict[str, Any]) -> None:
        """Write `bad-step.json`, if it can be written: the run ends either way."""
        if self._writes:
            with suppress(OSError):
                atomic_write_text(self.out / BAD_STEP, json.dumps(record, ensure_ascii=False))

    def last_loss(self) -> float:
        """The loss of the last line of `metrics.jsonl`; not a number if there is none, and in a process that
        does not write it."""
        line = last_metrics(self.out) if self._writes else None
        return math.nan if line is None else float(line["loss"])


@contextmanager
def _written(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UsageError(f"--out {out} cannot be written: {error.strerror}") from error
