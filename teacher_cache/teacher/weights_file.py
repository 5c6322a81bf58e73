"""Read weights files in the forms that training code leaves, and load them into open_clip models.

A state dict may be under a key of a checkpoint, and its names may have a prefix of a wrapper. Exactly one way
to the model's own names is taken; otherwise the error says which names were expected and found.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import open_clip
from safetensors.torch import load_file
from torch import Tensor, nn

from teacher_cache.teacher.checkpoint_file import (
    is_torchscript_file,
    load_plain,
    objects_of,
    require_content,
    skipping,
)
from teacher_cache.teacher.torchscript import read_torchscript

State = dict[str, Tensor]

# Keys of a checkpoint: of open_clip and Lightning, and of others.
CONTAINERS = ("state_dict", "model", "model_state_dict", "module")
# Segments that torch.compile, FSDP and activation checkpointing put into names.
WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
# Numbers beside the parameters in OpenAI's archives, and an index that transformers no longer stores.
OPENAI = ("input_resolution", "context_length", "vocab_size")
REDUNDANT = (*OPENAI, "text.transformer.embeddings.position_ids")
# Names of the transformers library, whose weights of the same models have another layout.
TRANSFORMERS = ("text_model.", "vision_model.")
ARRAYS = (".npy", ".npz")  # of big_vision; open_clip reads them
# In a folder: open_clip's own order.
PREFERRED = (
    *("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors"),
    *("open_clip_pytorch_model.bin", "open_clip_pytorch_model.pth"),
    *("model.safetensors", "pytorch_model.bin", "pytorch_model.pth", "model.pth"),
)


def weights_in(folder: Path) -> Path:
    """Return the weights file that open_clip takes from a model folder.

    Raises:
        ValueError: there is none.
    """
    found = [path for suffix in (".safetensors", ".bin", ".pth") for path in folder.glob(f"*{suffix}")]
    found.sort(key=lambda path: (path.suffix != ".safetensors", path))
    preferred = [path for name in PREFERRED for path in found if path.name == name]
    if not found:
        raise ValueError("the folder has no weights (a .safetensors, .bin or .pth file)")
    return (preferred or found)[0]


def read_weights(path: Path) -> dict[str, State]:
    """Read the state dicts of a weights file on the CPU; no code of the file runs.

    Args:
        path: safetensors, a checkpoint of `torch.save`, or a TorchScript archive.

    Returns:
        Those at the keys of CONTAINERS, and under '' the file itself. Empty for NumPy's files.

    Raises:
        ValueError: the file is damaged, or has no tensors.
        SafetensorError: a damaged safetensors file.
        OSError: the file cannot be read.
        RppError: there is not enough memory for what the file requests.
    """
    if path.suffix in ARRAYS:
        return {}
    require_content(path)
    if _is_safetensors(path):
        return {"": load_file(path)}
    if is_torchscript_file(path):
        return {"": read_torchscript(path)}
    try:
        with skipping(objects_of(path)):
            found = load_plain(path, mmap=True)
    except ValueError as error:
        raise ValueError(f"{path.name} cannot be read as safetensors or as a checkpoint ({error})") from error
    places = {"": found}
    if isinstance(found, dict):
        places |= {name: found.get(name) for name in CONTAINERS}
    states = {place: _tensors(value) for place, value in places.items()}
    if not any(states.values()):
        what = _first([str(name) for name in found]) if isinstance(found, dict) and found else "none"
        raise ValueError(
            f"{path.name} has no tensors by name, neither itself nor under {', '.join(CONTAINERS)} (keys "
            f"found: {what}); save the state dict alone: torch.save(model.state_dict(), FILE)"
        )
    return {place: state for place, state in states.items() if state}


def _tensors(found: Any) -> State:
    if not isinstance(found, dict):
        return {}
    return {name: x for name, x in found.items() if isinstance(name, str) and isinstance(x, Tensor)}


def _is_safetensors(path: Path) -> bool:
    """Return whether a file is safetensors by its name or, as the hub's blobs have none, by its content."""
    if path.suffix == ".safetensors":
        return True
    with open(path, "rb") as file:
        head = file.read(9)
    return head[8:] == b"{" and int.from_bytes(head[:8], "little") < os.path.getsize(path)


def is_openai(states: dict[str, State]) -> bool:
    """Return whether the weights are of OpenAI's own implementation, which has numbers beside them."""
    return any(set(OPENAI) <= state.keys() for state in states.values())


def load_weights(model: nn.Module, path: Path, states: dict[str, State]) -> str:
    """Load a weights file into a model.

    Names and shapes have to be the model's, with or without a prefix. Otherwise open_clip's `load_checkpoint`
    gets the file, which converts other layouts and resizes position embeddings.

    Args:
        states: the result of `read_weights`.

    Returns:
        A remark for the user if position embeddings were resized, else an empty text.

    Raises:
        ValueError: the weights are not the model's (says which names or shapes were expected and found), are
            quantised, or are not finite.
    """
    note = _load(model, path, states)
    if bad := [name for name, x in model.named_parameters() if not x.isfinite().all()]:
        raise ValueError(
            f"{path.name} has numbers that are not finite in {_first(bad)}: the file is damaged, or its "
            "training diverged; take another checkpoint"
        )
    return note


def _load(model: nn.Module, path: Path, states: dict[str, State]) -> str:
    if not states:
        open_clip.load_checkpoint(model, str(path))
        return ""
    own = model.state_dict()
    fits = {place: state for place, found in states.items() if (state := _fitted(found, own)) is not None}
    if len(fits) > 1 and "state_dict" not in fits:
        raise ValueError(f"{path.name} has several state dicts that fit: {', '.join(fits)}; keep one of them")
    if fits:
        state = fits.get("state_dict") or next(iter(fits.values()))
        if other := [
            f"{n} {x.dtype}"
            for n, x in state.items()
            if own[n].is_floating_point() and not x.is_floating_point()
        ]:
            raise ValueError(
                f"{path.name} has integers in place of floating point numbers ({_first(other)}); quantised "
                "weights cannot be loaded, take the original ones"
            )
        model.load_state_dict(state)
        return ""
    if not _is_safetensors(path) and is_torchscript_file(path):
        raise ValueError(_misfit(states, own))
    try:
        with skipping(objects_of(path)):
            open_clip.load_checkpoint(model, str(path), weights_only=True)
    # what open_clip raises for other names and shapes; its resizing has assertions
    except (
        RuntimeError,
        AttributeError,
        LookupError,
        OSError,
        TypeError,
        ValueError,
        AssertionError,
    ) as error:
        raise ValueError(_misfit(states, own)) from error
    state = _closest(states, own)
    resized = [
        f"{name} {list(state[name].shape)} to {list(x.shape)}"
        for name, x in own.items()
        if name in state and name.endswith("positional_embedding") and state[name].shape != x.shape
    ]
    if not resized:
        return ""
    return f"{path.name} is for another size of images or texts; open_clip resized {_first(resized)}"


def _fitted(found: State, own: State) -> State | None:
    """Return the tensors by the model's names, if names and shapes are the model's but for a prefix."""
    for state in _forms(found, own):
        if state.keys() == own.keys():
            return state if all(x.shape == own[name].shape for name, x in state.items()) else None
    return None


def _forms(found: State, own: State) -> Iterator[State]:
    """Yield the tensors without each prefix that the name of the model's first tensor has.

    Some names may lack it: one of open_clip's two layouts has `text.` before those of the text tower only.
    """
    anchor = next(iter(own))
    state = {_unwrapped(name): x for name, x in found.items()}
    ends = {name.removesuffix(anchor) for name in state if name.endswith(anchor)}
    for prefix in sorted((end for end in ends if not end or end.endswith(".")), key=len):
        names = {name.removeprefix(prefix): x for name, x in state.items()}
        if len(names) == len(found):  # else two tensors have the same name
            yield {name: x for name, x in names.items() if name in own or not _is_redundant(name)}


def _is_redundant(name: str) -> bool:
    # the causal mask of a text tower, which TorchScript stores, is made anew
    return name in REDUNDANT or name.rpartition(".")[2] == "attn_mask"


def _unwrapped(name: str) -> str:
    for wrapper in WRAPPERS:
        name = name.replace(wrapper, "")
    return name


def _closest(states: dict[str, State], own: State) -> State:
    forms = [form for found in states.values() for form in (*_forms(found, own), found)]
    return max(forms, key=lambda form: len(form.keys() & own.keys()))


def _misfit(states: dict[str, State], own: State) -> str:
    """Return how the most similar state dict of a file differs from the model's."""
    state = _closest(states, own)
    missing = [name for name in own if name not in state]
    unexpected = [name for name in state if name not in own]
    if not missing and not unexpected:
        differ = [
            f"{name} {list(own[name].shape)}, found {list(x.shape)}"
            for name, x in state.items()
            if x.shape != own[name].shape
        ]
        return (
            f"the weights are of another size: expected {_first(differ, '; ')}; give the model they belong to"
        )
    parts = [f"expected {len(own)} tensors, found {len(state)}"]
    parts += [f"missing: {_first(missing)}"] if missing else []
    parts += [f"unexpected: {_first(unexpected)}"] if unexpected else []
    remedy = "give the model they belong to, or a file with only its state dict"
    if any(name.startswith(TRANSFORMERS) for name in unexpected):
        remedy = (
            "they have the layout of the transformers library; take open_clip's file of the same model, "
            "open_clip_model.safetensors or open_clip_pytorch_model.bin"
        )
    return f"the weights are not those of the model: {'; '.join(parts)}; {remedy}"


def _first(names: list[str], separator: str = ", ") -> str:
    more = f"{separator}... ({len(names)} in all)" if len(names) > 3 else ""
    return separator.join(names[:3]) + more
