"""Checkpoints: the prompts, and what the optimizer and the gradient scaler keep, in one file.

`checkpoint.safetensors` has the tensors `prompts.NAME` and `optimizer.I.NAME` (I counts the learnable
parameters) and a JSON record in its metadata. Everything else that a step needs (order of the samples, views,
sampled classes, learning rate) follows from the settings and the number of the step. Earlier versions wrote
`checkpoint.pt` with `torch.save`: it is read, and removed when the next checkpoint is written.
"""

import json
import os
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from student_train.runs.record import CHECKPOINT, EARLIER_CHECKPOINT, find_checkpoint
from student_train.training.optimizer import PromptOptimizer
from student_train.training.optimizers import OPTIMIZERS
from teacher_cache.distribution import rpp_version
from teacher_cache.errors import RppError, UsageError
from teacher_cache.files.json_text import first_problem, parse_json
from teacher_cache.files.whole_file import whole_file
from teacher_cache.teacher.checkpoint_file import load_plain

FORMAT = 1


class State(BaseModel):
    """What a checkpoint holds.

    Attributes:
        step: steps that were taken.
        optimizer: its name in `OPTIMIZERS`.
        scaler: state of the gradient scaler; empty where none is enabled.
        prompts: tensors by their name in the student's `prompts`.
        states: what the optimizer keeps of each learnable parameter, by its number.
    """

    model_config = ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)

    format: int = FORMAT
    step: int
    optimizer: str
    scaler: dict[str, int | float]
    prompts: dict[str, Tensor]
    states: dict[int, dict[str, Tensor]]


class Checkpoint:
    """The state of a run between two steps, and the file in which it is kept.

    Attributes:
        last_step: the step of the last checkpoint; None without one.
    """

    def __init__(
        self, out: Path, prompts: nn.ModuleDict, optimizer: PromptOptimizer, writes: bool = True
    ) -> None:
        """Args:
        out: the run's folder.
        writes: false in a process of several that leaves writing to the first one.
        """
        self.last_step: int | None = None
        self._out, self._prompts, self._optimizer, self._writes = out, prompts, optimizer, writes

    def save(self, step: int) -> None:
        """Write the checkpoint after `step` steps, completely or not at all.

        Raises:
            RppError: it cannot be written, as on a full disk; the previous one is kept.
        """
        if self._writes:
            try:
                self._write(step)
            except (OSError, SafetensorError) as error:
                raise RppError(
                    f"the checkpoint of step {step} cannot be written to {self._out} ({error}); the previous "
                    f"one is kept: free some space and resume with --out {self._out} --resume"
                ) from error
        self.last_step = step

    def _write(self, step: int) -> None:
        optimizer = self._optimizer
        tensors = {f"prompts.{name}": tensor for name, tensor in self._prompts.state_dict().items()}
        for number, state in optimizer.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{name}": tensor for name, tensor in state.items()}
        scaler = optimizer.scaler.state_dict()
        record = {"format": FORMAT, "step": step, "optimizer": optimizer.name, "scaler": scaler}
        plain = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        with whole_file(self._out / CHECKPOINT) as temporary:
            save_file(plain, temporary, {"checkpoint": json.dumps(record)})
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())  # a power failure must not leave an empty checkpoint
        (self._out / EARLIER_CHECKPOINT).unlink(missing_ok=True)

    def is_finite(self) -> bool:
        """Whether the prompts, and what the optimizer keeps of them, are finite."""
        tensors = list(self._prompts.state_dict().values())
        for state in self._optimizer.optimizer.state.values():
            tensors += state.values()
        # one transfer for all of them: each waits for the GPU
        return bool(torch.stack([x.isfinite().all().to(tensors[0].device) for x in tensors]).all())

    def load(self, total_steps: int) -> int:
        """Restore the state of the last checkpoint, if there is one.

        Args:
            total_steps: of the run's schedule.

        Returns:
            Steps that were taken; 0 without a checkpoint.

        Raises:
            UsageError: a checkpoint that is damaged, of another run, of another version of rpp, or that
                cannot be read.
        """
        path = find_checkpoint(self._out)
        if path is None:
            return 0
        try:
            pickled = path.name == EARLIER_CHECKPOINT
            state = _read_pickled(path, self._optimizer.name) if pickled else _read(path)
            self._check(path, state, total_steps)
        except OSError as error:
            raise UsageError(f"{path} cannot be read: {error.strerror or error}") from error
        except (ValueError, SafetensorError) as error:
            reason = first_problem(error) if isinstance(error, ValidationError) else str(error)
            raise UsageError(
                f"{path} is damaged or of another run ({' '.join(reason.split())}); remove it to restart the "
                "run from its first step"
            ) from error
        self._prompts.load_state_dict(state.prompts)
        optimizer = self._optimizer.optimizer
        optimizer.load_state_dict(optimizer.state_dict() | {"state": state.states})
        self._optimizer.scaler.load_state_dict(state.scaler)
        self.last_step = state.step
        return state.step

    def _check(self, path: Path, state: State, total_steps: int) -> None:
        """Refuse a state that loading would accept and later steps would fail at.

        Raises:
            UsageError: an optimizer or a format that this version does not have.
            ValueError: a step outside the schedule, another optimizer or scaler, or tensors of other names or
                shapes, or that are not finite.
        """
        if state.format > FORMAT or state.optimizer not in OPTIMIZERS:
            raise UsageError(
                f"{path} has checkpoint format {state.format} and the optimizer {state.optimizer!r}; rpp "
                f"{rpp_version()} reads format {FORMAT} and has {', '.join(OPTIMIZERS)}; keep the checkpoint "
                "and resume with the version that wrote it"
            )
        if state.optimizer != self._optimizer.name:
            raise ValueError(f"its optimizer is {state.optimizer}, expected {self._optimizer.name}")
        if not 0 <= state.step <= total_steps:
            raise ValueError(f"its step is {state.step}, the run has {total_steps}")
        if state.scaler.keys() != self._optimizer.scaler.state_dict().keys():
            raise ValueError("its gradient scaler is of another precision")
        own = self._prompts.state_dict()
        _check_tensors("prompts", state.prompts, {name: tensor.shape for name, tensor in own.items()})
        parameters = self._optimizer.parameters
        for number, found in state.states.items():
            if not 0 <= number < len(parameters):
                raise ValueError(f"its optimizer has a parameter {number}, the run has {len(parameters)}")
            shapes = {"parameter": parameters[number].shape, "scalar": torch.Size()}
            kinds = OPTIMIZERS[state.optimizer].state.items()
            if found:  # empty before the parameter's first step
                _check_tensors("optimizer", found, {name: shapes[kind] for name, kind in kinds})


def _check_tensors(where: str, found: dict[str, Tensor], shapes: dict[str, torch.Size]) -> None:
    if found.keys() != shapes.keys():
        raise ValueError(
            f"its {where} has {', '.join(sorted(found))[:60]}, expected {', '.join(sorted(shapes))[:60]}"
        )
    for name, tensor in found.items():
        if tensor.shape != shapes[name]:
            raise ValueError(
                f"its {where} {name} has shape {tuple(tensor.shape)}, expected {tuple(shapes[name])}"
            )
        plain = tensor.layout == torch.strided and tensor.device.type == "cpu" and tensor.is_floating_point()
        if not plain or not tensor.float().isfinite().all():
            raise ValueError(f"its {where} {name} is not finite")


def _read(path: Path) -> State:
    prompts: dict[str, Tensor] = {}
    states: dict[int, dict[str, Tensor]] = {}
    with safe_open(path, framework="pt") as file:
        record = parse_json((file.metadata() or {}).get("checkpoint", "{}"))
        if not isinstance(record, dict):
            raise ValueError("its record is not a JSON object")
        for key in file.keys():  # noqa: SIM118 - not a dict
            part, _, name = key.partition(".")
            if part == "prompts":
                prompts[name] = file.get_tensor(key)
            else:
                number, _, name = name.partition(".")
                states.setdefault(int(number), {})[name] = file.get_tensor(key)
    return State.model_validate({**record, "prompts": prompts, "states": states})


def _read_pickled(path: Path, optimizer: str) -> State:
    """Read what an earlier version wrote, which does not name the optimizer."""
    found: Any = load_plain(path)
    if not isinstance(found, dict) or not isinstance(state := found.get("optimizer"), dict):
        raise ValueError("expected the state of a run")
    return State.model_validate({**found, "optimizer": optimizer, "states": state.get("state")})
