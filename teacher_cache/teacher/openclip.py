"""Load open_clip models: their names, configurations, weights and digests.

What a teacher computes with them is in `teacher.py`; where text towers keep their parts is in `text_towers/`.
"""

import difflib
import hashlib
import json
import os
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from teacher_cache.compat.open_clip import PreprocessCfg, is_own, preprocessing_of
from teacher_cache.errors import RppError, UnsupportedTowerError, UsageError
from teacher_cache.files.json_text import parse_json
from teacher_cache.files.text_file import read_text
from teacher_cache.model_names import (
    HF_HUB,
    LOCAL_DIR,
    canonical_model_name,
    canonical_pretrained,
    require_model_folder,
)
from teacher_cache.teacher.checkpoint_file import load_plain

PICKLES = (".bin", ".pth")  # as open_clip looks for them in a folder, if it has no safetensors file
NO_PICKLES = (".safetensors", ".npy", ".npz")
# What `open_clip.create_model` raises for weights that are missing, damaged or of other shapes. What files of
# the user hold is checked before; anything else is a defect.
LOAD_ERRORS = (OSError, RuntimeError, ValueError, SafetensorError, pickle.UnpicklingError)

Tokenizer = Callable[..., Tensor]  # texts, and optionally `context_length` -> [B, T] int64
# Numbers in a configuration that have to be positive. open_clip does not check them.
SIZES = {
    *("embed_dim", "width", "heads", "head_width", "layers", "patch_size", "image_size"),
    *("context_length", "vocab_size"),
}


@dataclass(frozen=True)
class LoadedModel:
    """A frozen open_clip model in evaluation mode, with its tokenizer, preprocessing and identity."""

    name: str
    pretrained: str | None
    model: Any
    tokenizer: Tokenizer
    preprocess: PreprocessCfg
    config: dict[str, Any]
    digest: str

    @property
    def context_length(self) -> int:
        """Number of text positions of the model (77 for CLIP)."""
        return int(self.model.context_length)

    @property
    def logit_scale(self) -> float:
        """exp(logit_scale), the factor s in z = s · f·w."""
        return float(self.model.logit_scale.detach().exp())


def hub_repository(name: str, pretrained: str | None) -> str | None:
    """Return the Hugging Face repository 'ORG/REPO' of a model's weights; None if they are not on the hub."""
    if name.startswith(HF_HUB):
        return name.removeprefix(HF_HUB)
    tag = open_clip.get_pretrained_cfg(name, pretrained) if pretrained else None
    place = str((tag or {}).get("hf_hub") or "").split("/")  # 'ORG/REPO/' or 'ORG/REPO/FILE'
    return "/".join(place[:2]) if len(place) > 1 else None


def _check_names(name: str, pretrained: str | None) -> None:
    if name.startswith(LOCAL_DIR):
        require_model_folder(name)
    if name.startswith((LOCAL_DIR, HF_HUB)):
        if pretrained is not None:
            raise UsageError(f"{name} has its own weights; leave out --pretrained '{pretrained}'")
        return
    if name not in open_clip.list_models():
        near = difflib.get_close_matches(name, open_clip.list_models(), n=4, cutoff=0.4)
        hint = f"; near names: {', '.join(near)}" if near else ""
        raise UsageError(
            f"open_clip has no model '{name}'{hint}; a folder with open_clip_config.json works too"
        )
    tags = open_clip.list_pretrained_tags_by_model(name)
    if pretrained is None:
        raise UsageError(
            f"model '{name}' needs --pretrained: a weights file or one of {', '.join(tags) or '(no tags)'}"
        )
    if open_clip.get_pretrained_cfg(name, pretrained) or os.path.isfile(pretrained):
        return
    near = difflib.get_close_matches(pretrained, tags, n=1, cutoff=0.6)
    raise UsageError(
        f"'{pretrained}' is neither a file nor a pretrained tag of '{name}'"
        f"{f'; did you mean {near[0]}?' if near else ''} (tags: {', '.join(tags) or 'none'})"
    )


def weights_digest(model: nn.Module) -> str:
    """Return a digest of all parameters and persistent buffers (names, dtypes, shapes and bytes) and of the
    activation: the same weights with QuickGELU and with GELU are two models, which are often confused."""
    digest = hashlib.blake2b(digest_size=16)
    if any(is_own(module, "QuickGELU") for module in model.modules()):
        digest.update(b"quick_gelu;")
    for key, tensor in sorted(model.state_dict().items()):
        digest.update(f"{key}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        digest.update(tensor.detach().contiguous().cpu().flatten().view(torch.uint8).numpy().data)
    return f"blake2b:{digest.hexdigest()}"


def _check_files(name: str, pretrained: str | None) -> None:
    """Check the user's configuration and weights files before open_clip reads them.

    open_clip raises errors of any type for files that are not what it expects.

    Raises:
        ValueError: the file is damaged or is not what it should be.
    """
    if name.startswith(LOCAL_DIR):
        folder = Path(name.removeprefix(LOCAL_DIR))
        _check_config(folder / "open_clip_config.json")
        if not list(folder.glob("*.safetensors")):
            for path in folder.iterdir():
                if path.suffix in PICKLES:
                    _check_state_dict(path)
    elif pretrained and os.path.isfile(pretrained) and Path(pretrained).suffix not in NO_PICKLES:
        _check_state_dict(Path(pretrained))


def _check_config(path: Path) -> None:
    record = parse_json(read_text(path))
    model = record.get("model_cfg") if isinstance(record, dict) else None
    parts: list[Any] = [None]
    if isinstance(model, dict):
        parts = [model, model.get("vision_cfg"), model.get("text_cfg")]
    if not all(isinstance(part, dict) for part in parts) or "embed_dim" not in parts[0]:
        raise ValueError(f"{path.name} needs a model_cfg with embed_dim, vision_cfg and text_cfg")
    for part in parts:
        for name in SIZES & part.keys():
            sizes = part[name] if isinstance(part[name], list) else [part[name]]
            optional = name != "embed_dim"
            if not all((optional and size is None) or (type(size) is int and size > 0) for size in sizes):
                raise ValueError(f"{path.name}: {name} must be a positive integer, found {part[name]!r}")


def _check_state_dict(path: Path) -> None:
    found = load_plain(path, mmap=True)
    state = found.get("state_dict", found) if isinstance(found, dict) else None
    if not isinstance(state, dict) or not any(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path.name} does not hold a state dict")


def load_model(name: str, pretrained: str | None = None, device: torch.device | str = "cpu") -> LoadedModel:
    """Load a frozen open_clip model in float32.

    Args:
        name: an open_clip model name, a folder with `open_clip_config.json` and weights (also as
            `local-dir:PATH`), or `hf-hub:ORG/REPO`.
        pretrained: a tag of that model or a weights file (safetensors, or a checkpoint that loads with
            `weights_only`). None for folders and the hub, which have their own weights.
        device: device of the model.

    Raises:
        UsageError: an unknown model, weights that are missing, damaged or of other shapes, or `pretrained`
            for a model that has its own weights.
        RppError: the weights of a known tag could not be downloaded.
    """
    name, pretrained = canonical_model_name(name), canonical_pretrained(pretrained)
    _check_names(name, pretrained)
    tag = open_clip.get_pretrained_cfg(name, pretrained) if pretrained else None
    try:
        _check_files(name, pretrained)
        config = open_clip.get_model_config(name)
        model = open_clip.create_model(
            name,
            pretrained=pretrained,
            device=torch.device(device),
            # open_clip only warns if a tag was trained with QuickGELU and the configuration has GELU. The
            # features would be wrong, so the tag decides.
            force_quick_gelu=bool(tag and tag.get("quick_gelu", False)),
            require_pretrained=True,
            weights_only=True,  # a weights file may be a pickle; no code in it runs
        )
        tokenizer = open_clip.get_tokenizer(name)
    except LOAD_ERRORS as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if "download" in reason.lower():
            raise RppError(f"the weights of {name} / {pretrained} could not be fetched: {reason}") from error
        raise UsageError(f"cannot load {name} with weights '{pretrained or name}': {reason}") from error
    except TypeError as error:
        if "unexpected keyword argument" not in str(error):
            raise
        option = str(error).rpartition(" ")[2]
        raise UsageError(
            f"cannot load {name}: its configuration has the option {option}, which open_clip "
            f"{open_clip.__version__} does not know"
        ) from error
    model.eval().requires_grad_(False)
    preprocess = preprocessing_of(model)
    quick_gelu = bool(config.get("quick_gelu", False) or (tag and tag.get("quick_gelu", False)))
    config = json.loads(json.dumps({**config, "quick_gelu": quick_gelu}))
    return LoadedModel(name, pretrained, model, tokenizer, preprocess, config, weights_digest(model))


def vision_transformer(model: nn.Module) -> Any:
    """Return the model's vision tower, if it is open_clip's own VisionTransformer.

    Raises:
        UnsupportedTowerError: another kind of vision tower (ResNet, timm).
    """
    visual = getattr(model, "visual", None)
    if not is_own(visual, "VisionTransformer"):
        raise UnsupportedTowerError(
            f"the vision tower {type(visual).__name__} cannot carry prompts; what works: open_clip's own "
            "VisionTransformer (the ViT-* models without a timm tower)"
        )
    return visual
