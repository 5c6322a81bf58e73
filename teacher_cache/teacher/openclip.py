"""How open_clip models are named, loaded, identified and laid out.

Knows where `CLIP` and `CustomTextCLIP` keep the parts of their towers. What a teacher computes with them
is in `teacher.py`; how prompts enter them is the student's business.
"""

import difflib
import hashlib
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import open_clip
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from teacher_cache.compat.open_clip import PreprocessCfg, is_own, preprocessing_of
from teacher_cache.errors import RppError, UnsupportedTowerError, UsageError
from teacher_cache.model_names import (
    HF_HUB,
    LOCAL_DIR,
    canonical_model_name,
    canonical_pretrained,
    require_model_folder,
)
from teacher_cache.teacher.checkpoint_file import require_plain

PICKLES, NO_PICKLES = (".bin", ".pt", ".pth"), (".safetensors", ".npy")
# What open_clip and torch raise at a configuration or weights that are not as they should be.
LOAD_ERRORS = (
    *(RuntimeError, OSError, ValueError, LookupError, TypeError, AttributeError, AssertionError),
    *(ArithmeticError, MemoryError, StopIteration, EOFError),
    *(SafetensorError, pickle.UnpicklingError, zipfile.BadZipFile),
)

Tokenizer = Callable[..., Tensor]  # texts, and perhaps `context_length` -> [B, T] int64


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


@dataclass(frozen=True)
class TextParts:
    """The parts of a causal open_clip text tower, wherever the model keeps them."""

    token_embedding: nn.Embedding
    positional_embedding: Tensor
    blocks: nn.ModuleList
    ln_final: nn.Module
    projection: nn.Module | Tensor | None
    pool: Literal["argmax", "eos"]
    eos_id: int
    attn_mask: Tensor

    def pool_positions(self, tokens_BT: Tensor) -> Tensor:
        """Position whose output is the text feature, [B] int64."""
        if self.pool == "argmax":
            return tokens_BT.argmax(dim=-1)
        return (tokens_BT == self.eos_id).int().argmax(dim=-1)

    def project(self, pooled_BW: Tensor) -> Tensor:
        """Text width W to the joint embedding D."""
        if self.projection is None:
            return pooled_BW
        if isinstance(self.projection, nn.Module):
            projected: Tensor = self.projection(pooled_BW)
            return projected
        return pooled_BW @ self.projection


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


def _weights_files(name: str, pretrained: str | None) -> list[Path]:
    """The files on this machine that may hold the weights as `torch.save` writes them."""
    if name.startswith(LOCAL_DIR):
        return [path for path in Path(name.removeprefix(LOCAL_DIR)).iterdir() if path.suffix in PICKLES]
    named = Path(pretrained) if pretrained and os.path.isfile(pretrained) else None
    return [named] if named and named.suffix not in NO_PICKLES else []


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
        for weights in _weights_files(name, pretrained):
            require_plain(weights)
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


WORKING_TOWERS = (
    "open_clip models with their own causal text transformer (ViT-B-32, ViT-B-16, ViT-L-14, ViT-H-14, "
    "ViT-g-14, ViT-bigG-14 and their -quickgelu, -336 and similar forms)"
)


def text_parts(model: nn.Module) -> TextParts:
    """Parts of the model's text tower, if it is one whose outputs depend on earlier tokens alone.

    Raises:
        UnsupportedTowerError: another kind of text tower; the message names it and lists what works.
    """
    try:
        return _text_parts(model)
    except AttributeError as error:  # undocumented names; a teacher then runs the tower's own `encode_text`
        raise UnsupportedTowerError(
            f"the text tower of this release of open_clip cannot carry text prompts ({error}); rpp was tried "
            "with open_clip 3.2 and 3.3"
        ) from error


def _text_parts(model: nn.Module) -> TextParts:
    def refuse(what: str) -> UnsupportedTowerError:
        return UnsupportedTowerError(f"{what} cannot carry text prompts; what works: {WORKING_TOWERS}")

    # CLIP keeps the parts of its text transformer on itself, CustomTextCLIP in `.text`. Other classes
    # (CoCa, say) may look alike but run the tower differently.
    tower: Any = model
    if type(model) is open_clip.CLIP:
        pool, eos_id = tower.text_pool_type, tower.text_eos_id
    elif type(model) is open_clip.CustomTextCLIP:
        tower = tower.text
        if not is_own(tower, "TextTransformer"):
            raise refuse(f"the text tower {type(tower).__name__}")
        pool, eos_id = tower.pool_type, tower.eos_id
        if tower.cls_emb is not None:
            raise refuse("a text tower with a class embedding behind the text (CoCa's)")
    else:
        raise refuse(f"the model class {type(model).__name__}")
    if tower.attn_mask is None:
        raise refuse("a bidirectional text tower (SigLIP's)")
    if pool not in ("argmax", "eos"):
        raise refuse(f"a text tower pooled by '{pool}'")
    return TextParts(
        token_embedding=tower.token_embedding,
        positional_embedding=tower.positional_embedding,
        blocks=tower.transformer.resblocks,
        ln_final=tower.ln_final,
        projection=tower.text_projection,
        pool=pool,
        eos_id=int(eos_id),
        attn_mask=tower.attn_mask,
    )


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
