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
from typing import Annotated, Any

import open_clip
import torch
from pydantic import BaseModel, Field, ValidationError
from safetensors import SafetensorError
from torch import Tensor, nn

from teacher_cache.compat.open_clip import PreprocessCfg, is_own, preprocessing_of
from teacher_cache.errors import RppError, UnsupportedTowerError, UsageError
from teacher_cache.files.json_text import first_problem, parse_json
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
Size = Annotated[int, Field(ge=1, strict=True)] | None


class TowerConfig(BaseModel):
    """The sizes of a tower in open_clip's configuration. open_clip checks none of them."""

    width: Size = None
    heads: Size = None
    head_width: Size = None
    layers: Size | tuple[Size, ...] = None
    patch_size: Size = None
    image_size: Size | tuple[Size, ...] = None
    context_length: Size = None
    vocab_size: Size = None


class ModelConfig(BaseModel):
    """A model in open_clip's configuration."""

    embed_dim: Annotated[int, Field(ge=1, strict=True)]
    vision_cfg: TowerConfig
    text_cfg: TowerConfig


class ConfigFile(BaseModel):
    """What `open_clip_config.json` needs to have; it may have more."""

    model_cfg: ModelConfig


@dataclass(frozen=True)
class LoadedModel:
    """A frozen open_clip model in evaluation mode, with what is needed to feed and to identify it."""

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
    """The Hugging Face repository 'ORG/REPO' that open_clip has a model's weights from; None if from none."""
    if name.startswith(HF_HUB):
        return name.removeprefix(HF_HUB)
    tag = open_clip.get_pretrained_cfg(name, pretrained) if pretrained else None
    place = str((tag or {}).get("hf_hub") or "").split("/")  # 'ORG/REPO/', some with a file's name behind
    return "/".join(place[:2]) if len(place) > 1 else None


def _check_names(name: str, pretrained: str | None) -> None:
    if name.startswith(LOCAL_DIR):
        require_model_folder(name)
    if name.startswith((LOCAL_DIR, HF_HUB)):
        if pretrained is not None:
            raise UsageError(f"{name} carries its own weights; leave out --pretrained '{pretrained}'")
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
    """Digest of all parameters and persistent buffers (names, dtypes, shapes and bytes) and of the
    activation: the same weights under QuickGELU and GELU are two models, and are often confused."""
    digest = hashlib.blake2b(digest_size=16)
    if any(is_own(module, "QuickGELU") for module in model.modules()):
        digest.update(b"quick_gelu;")
    for key, tensor in sorted(model.state_dict().items()):
        digest.update(f"{key}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        digest.update(tensor.detach().contiguous().cpu().flatten().view(torch.uint8).numpy().data)
    return f"blake2b:{digest.hexdigest()}"


def _check_files(name: str, pretrained: str | None) -> None:
    """Check what the user's configuration and weights files hold, before open_clip reads them.

    Raises:
        ValueError: a file that does not hold what it should; the message names the file.
    """
    if name.startswith(LOCAL_DIR):
        folder = Path(name.removeprefix(LOCAL_DIR))
        config = folder / "open_clip_config.json"
        try:
            ConfigFile.model_validate(parse_json(read_text(config)))
        except ValidationError as error:
            raise ValueError(f"{config.name}: {first_problem(error)}") from error
        except ValueError as error:
            raise ValueError(f"{config.name} is not JSON: {error}") from error
        if not list(folder.glob("*.safetensors")):
            for path in folder.iterdir():
                if path.suffix in PICKLES:
                    _check_state_dict(path)
    elif pretrained and os.path.isfile(pretrained) and Path(pretrained).suffix not in NO_PICKLES:
        _check_state_dict(Path(pretrained))


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
            `weights_only`). None for folders and the hub, which carry their weights.
        device: where the model goes.

    Raises:
        UsageError: no such model or weights, weights of another shape, or weights named for a model that
            carries its own.
        RppError: the weights of a known tag could not be fetched.
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
            # open_clip only warns when a tag was trained with QuickGELU and the config says GELU;
            # the features would be wrong, so the tag decides.
            force_quick_gelu=bool(tag and tag.get("quick_gelu", False)),
            require_pretrained=True,
            weights_only=True,  # a weights file may be a pickle: no code of it runs
        )
        tokenizer = open_clip.get_tokenizer(name)
    except LOAD_ERRORS as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if "download" in reason.lower():
            raise RppError(f"the weights of {name} / {pretrained} could not be fetched: {reason}") from error
        raise UsageError(f"cannot load {name} with weights '{pretrained or name}': {reason}") from error
    model.eval().requires_grad_(False)
    preprocess = preprocessing_of(model)
    quick_gelu = bool(config.get("quick_gelu", False) or (tag and tag.get("quick_gelu", False)))
    config = json.loads(json.dumps({**config, "quick_gelu": quick_gelu}))
    return LoadedModel(name, pretrained, model, tokenizer, preprocess, config, weights_digest(model))


def vision_transformer(model: nn.Module) -> Any:
    """The model's vision tower, if it is open_clip's own VisionTransformer.

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
