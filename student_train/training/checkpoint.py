"""Checkpoints: the prompts, and what the optimizer and the gradient scaler keep, in one file.

`checkpoint.safetensors` has the tensors `prompts.NAME` and `optimizer.I.NAME` (I counts the learnable
parameters) and a JSON record in its metadata. Everything else that a step needs (order of the samples, views,
sampled classes, learning rate) follows from the settings and the number of the step. Earlier versions wrote
`checkpoint.pt` with `torch.save`: it is read, and removed when the next checkpoint is written.
"""

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
from teacher_cache.files.atomic_write import atomic_write
from teacher_cache.files.json_text import first_problem, parse_json
from teacher_cache.teacher.checkpoint_file import load_plain

FORMAT = 1


class Record(BaseModel):
    """What a checkpoint holds beside its tensors.

    Attributes:
        step: steps that were taken.
        optimizer: its name in `OPTIMIZERS`.
        scaler: state of the gradient scaler; empty where none is enabled.
    """

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    format: int = FORMAT
    step: int
    optimizer: str
    scaler: dict[str, int | float]


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
        record = Record(step=step, optimizer=optimizer.name, scaler=optimizer.scaler.state_dict())
        tensors = _flat_tensors(self._prompts.state_dict(), optimizer.optimizer.state_dict()["state"])
        # shared prompts are one tensor of three names, which safetensors does not store
        plain = {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}
        self._check(record, plain, step)  # an OptimizerKind with other tensors fails here, not on resume
        with atomic_write(self._out / CHECKPOINT, sync=True) as temporary:
            save_file(plain, temporary, {"checkpoint": record.model_dump_json()})
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
            earlier = path.name == EARLIER_CHECKPOINT
            record, tensors = _read_pickle(path, self._optimizer.name) if earlier else _read(path)
            self._check(record, tensors, total_steps)
        except OSError as error:
            raise UsageError(f"{path} cannot be read: {error.strerror or error}") from error
        except (ValueError, SafetensorError) as error:
            reason = first_problem(error) if isinstance(error, ValidationError) else str(error)
            raise UsageError(
                f"{path} is damaged or of another run ({' '.join(reason.split())}); remove it to restart the "
                "run from its first step"
            ) from error
        prompts: dict[str, Tensor] = {}
        states: dict[int, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            part, _, name = key.partition(".")
            if part == "prompts":
                prompts[name] = tensor
            else:
                number, _, name = name.partition(".")
                states.setdefault(int(number), {})[name] = tensor
        self._prompts.load_state_dict(prompts)
        optimizer = self._optimizer.optimizer
        optimizer.load_state_dict(optimizer.state_dict() | {"state": states})
        self._optimizer.scaler.load_state_dict(record.scaler)
        self.last_step = record.step
        return record.step

    def _check(self, record: Record, tensors: dict[str, Tensor], total_steps: int) -> None:
        """Refuse a state that loading would accept and later steps would fail at.

        Raises:
            ValueError: a step outside the schedule, another optimizer or scaler, or tensors of other names or
                shapes, or that are not finite.
        """
        if record.optimizer != self._optimizer.name:
            raise ValueError(f"its optimizer is {record.optimizer}, expected {self._optimizer.name}")
        if not 0 <= record.step <= total_steps:
            raise ValueError(f"its step is {record.step}, the run has {total_steps}")
        if record.scaler.keys() != self._optimizer.scaler.state_dict().keys():
            raise ValueError("its gradient scaler is of another precision")
        shapes = {f"prompts.{name}": tensor.shape for name, tensor in self._prompts.state_dict().items()}
        for number, parameter in enumerate(self._optimizer.parameters):
            if any(key.startswith(f"optimizer.{number}.") for key in tensors):  # none before its first step
                of_kind = {"parameter": parameter.shape, "scalar": torch.Size()}
                for name, kind in OPTIMIZERS[record.optimizer].state.items():
                    shapes[f"optimizer.{number}.{name}"] = of_kind[kind]
        if differ := sorted(tensors.keys() ^ shapes.keys()):
            raise ValueError(f"it {'has' if differ[0] in tensors else 'lacks'} the tensor {differ[0][:60]}")
        for name, tensor in tensors.items():
            if tensor.shape != shapes[name]:
                found, expected = tuple(tensor.shape), tuple(shapes[name])
                raise ValueError(f"its tensor {name} has shape {found}, expected {expected}")
            plain = tensor.layout == torch.strided and tensor.device.type == "cpu"
            if not (plain and tensor.is_floating_point() and tensor.float().isfinite().all()):
                raise ValueError(f"its tensor {name} is not finite")


def _flat_tensors(prompts: dict[str, Tensor], states: dict[int, dict[str, Tensor]]) -> dict[str, Tensor]:
    return {f"prompts.{name}": tensor for name, tensor in prompts.items()} | {
        f"optimizer.{number}.{name}": tensor
        for number, state in states.items()
        for name, tensor in state.items()
    }


def _require_known(path: Path, stored: Any) -> None:
    """Refuse a checkpoint of a later version before its fields are checked: it is not damaged."""
    if not isinstance(stored, dict):
        raise ValueError("it has no record")
    version, optimizer = stored.get("format"), stored.get("optimizer")
    later = type(version) is int and version > FORMAT
    if later or (isinstance(optimizer, str) and optimizer not in OPTIMIZERS):
        raise UsageError(
            f"{path} has checkpoint format {version} and the optimizer {optimizer!r}; rpp {rpp_version()} "
            f"reads format {FORMAT} and has {', '.join(OPTIMIZERS)}; keep the checkpoint and resume with the "
            "version that wrote it"
        )


def _read(path: Path) -> tuple[Record, dict[str, Tensor]]:
    with safe_open(path, framework="pt") as file:
        stored = parse_json((file.metadata() or {}).get("checkpoint", ""))
        _require_known(path, stored)
        record = Record.model_validate(stored)
        return record, {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict


class _Pickled(BaseModel):
    """What an earlier version wrote."""

    model_config = ConfigDict(strict=True, arbitrary_types_allowed=True)

    class States(BaseModel):
        model_config = ConfigDict(strict=True, arbitrary_types_allowed=True)
        state: dict[int, dict[str, Tensor]]

    step: int
    scaler: dict[str, int | float]
    prompts: dict[str, Tensor]
    optimizer: States


def _read_pickle(path: Path, optimizer: str) -> tuple[Record, dict[str, Tensor]]:
    found = _Pickled.model_validate(load_plain(path))
    record = Record(step=found.step, optimizer=optimizer, scaler=found.scaler)
    return record, _flat_tensors(found.prompts, found.optimizer.state)
