"""Read the state of a published checkpoint: its tensors by name, without running code of the file.

Dassl stores the state of a prompt learner, or of the complete model, under `state_dict`, beside states of
optimizer and scheduler; under warm-up these include a scheduler and an optimizer as objects. Those are
skipped. `methods.py` decides what the tensors mean.
"""

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from teacher_cache.errors import UsageError
from teacher_cache.teacher.checkpoint_file import load_plain, skipping

# Wrappers of a model: DataParallel, Lightning, torch.compile.
WRAPPERS = ("module.", "model.", "_orig_mod.")
LEARNER = "prompt_learner."
# Entries of a checkpoint with tensors of the training, not of the model.
OF_TRAINING = re.compile(r"optim|sched|scaler|callback|loops|hyper_parameters|rng|val_result")
LONGEST_NAME = 80
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def read_state(checkpoint: Path) -> dict[str, Tensor]:
    """Read the tensors of a checkpoint by name, without the prefixes of wrappers and of the prompt learner.

    The checkpoint is read with `weights_only`.

    Raises:
        UsageError: the checkpoint does not exist, is not a checkpoint, needs code to be run, has a tensor
            twice, or has tensors outside its state.
    """
    try:
        with skipping():
            found: Any = load_plain(checkpoint, mmap=True)
    except OSError as error:
        raise UsageError(f"{checkpoint} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        if needed := re.search(r"GLOBAL (\S+)", str(error)):
            raise UsageError(
                f"{checkpoint} cannot be read without running code that it names ({needed[1]}); ask its "
                "authors for a file with only the prompt learner's state_dict"
            ) from error
        raise UsageError(f"{checkpoint} cannot be read as a checkpoint of torch.save ({error})") from error
    outer = found if isinstance(found, dict) else {}
    state = outer.get("state_dict", outer)
    if not isinstance(state, dict):
        state = {}
    beside = [*state.items()] if state is outer else [*state.items(), *outer.items()]
    unknown = [
        name
        for name, value in beside
        if not (isinstance(value, Tensor) and isinstance(name, str))
        and value is not state
        and not OF_TRAINING.search(str(name).lower())
        and _has_tensor(value)
    ]
    if unknown:
        raise UsageError(
            f"{checkpoint} has tensors in entries that are not imported: {first_names(unknown)}; expected "
            "tensors by name, or these under state_dict"
        )
    return _without_prefixes(
        checkpoint,
        {name: x for name, x in state.items() if isinstance(x, Tensor) and isinstance(name, str)},
    )


def _without_prefixes(checkpoint: Path, state: dict[str, Tensor]) -> dict[str, Tensor]:
    while state and (
        wrapper := next((w for w in WRAPPERS if all(name.startswith(w) for name in state)), None)
    ):
        state = {name.removeprefix(wrapper): tensor for name, tensor in state.items()}
    short = {name.removeprefix(LEARNER): tensor for name, tensor in state.items()}
    if len(short) < len(state):
        twice = [name for name in state if LEARNER + name in state]
        raise UsageError(
            f"{checkpoint} has tensors twice, with and without '{LEARNER}': {first_names(twice)}; remove one "
            "of each"
        )
    return short


def is_dense(tensor: Tensor) -> bool:
    """Return whether a tensor has floating point or int64 numbers of its own, on the CPU.

    A view of one number can have any shape, and would need more memory than the file has bytes. A view of a
    part is read: Dassl's buffers of class texts are such views if the training ran on a CPU.
    """
    if (
        tensor.layout != torch.strided
        or tensor.device.type != "cpu"
        or tensor.dtype not in (*FLOATS, torch.int64)
    ):
        return False
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


def _has_tensor(value: object) -> bool:
    """Return whether there is a tensor somewhere in containers, which may contain themselves."""
    rest, seen = [value], set()
    while rest:
        value = rest.pop()
        if isinstance(value, Tensor):
            return True
        if isinstance(value, dict | list | tuple) and id(value) not in seen:
            seen.add(id(value))
            rest += value.values() if isinstance(value, dict) else value
    return False


def first_names(names: Any) -> str:
    """Return the first three names for a message, and how many there are if there are more."""
    names = [str(name) for name in names]
    shown = ", ".join(n if len(n) <= LONGEST_NAME else f"{n[:LONGEST_NAME]}..." for n in names[:3])
    return shown if len(names) <= 3 else f"{shown}, ... ({len(names):,} in all)"
