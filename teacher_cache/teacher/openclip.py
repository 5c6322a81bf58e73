"""Load open_clip models: their names, configurations, weights and digests.

What a teacher computes with them is in `teacher.py`; where text towers keep their parts is in `text_towers/`.
"""

import difflib
import hashlib
import json
import logging
import os
import pickle
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import open_clip
import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from torch import Tensor, nn

from teacher_cache.compat.open_clip import PreprocessCfg, is_own, preprocessing_of, without_warning
from teacher_cache.conventions import PREPROCESSING, ConventionOptions, Conventions
from teacher_cache.errors import RppError, UnsupportedTowerError, UsageError
from teacher_cache.files.hub import is_on_hub
from teacher_cache.files.json_text import first_problem, parse_json
from teacher_cache.files.remote import local_file
from teacher_cache.files.text_file import read_text
from teacher_cache.model_names import (
    HF_HUB,
    LOCAL_DIR,
    canonical_model_name,
    canonical_pretrained,
    require_model_folder,
)
from teacher_cache.teacher.registry import (
    CONFIG,
    Choice,
    UndecidedConventionsError,
    choose_conventions,
    folder_conventions,
)
from teacher_cache.teacher.weights_file import State, is_openai, load_weights, read_weights, weights_in

log = logging.getLogger(__name__)

# What `open_clip.create_model` raises for weights that are missing, damaged or of other shapes. What files of
# the user hold is checked before; anything else is a defect.
LOAD_ERRORS = (OSError, RuntimeError, ValueError, SafetensorError, pickle.UnpicklingError)

INSTALL_TOKENIZERS = "pip install 'rpp-clip[tokenizers]'"

Tokenizer = Callable[..., Tensor]  # texts, and optionally `context_length` -> [B, T] int64
# Numbers in a configuration that have to be positive. open_clip does not check them.
SIZES = {
    *("embed_dim", "width", "heads", "head_width", "layers", "patch_size", "image_size"),
    *("context_length", "vocab_size"),
}


@dataclass(frozen=True)
class LoadedModel:
    """A frozen open_clip model in evaluation mode, with its tokenizer, preprocessing and identity.

    Attributes:
        conventions: with which it was loaded, and where they are from.
        notes: remarks for the user: what was assumed of its weights.
    """

    name: str
    pretrained: str | None
    model: Any
    tokenizer: Tokenizer
    preprocess: PreprocessCfg
    config: dict[str, Any]
    digest: str
    conventions: Conventions
    notes: tuple[str, ...] = ()

    @property
    def context_length(self) -> int:
        """Number of text positions of the model (77 for CLIP)."""
        return int(getattr(self.model, "text", self.model).context_length)

    @property
    def logit_scale(self) -> float:
        """exp(logit_scale), the factor s in z = s · f·w."""
        return float(self.model.logit_scale.detach().exp())

    @property
    def logit_bias(self) -> float | None:
        """The bias b of a sigmoid model, whose scores are sigmoid(s · f·w + b); None for others."""
        bias = getattr(self.model, "logit_bias", None)
        return None if bias is None else float(bias.detach())


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
            f"open_clip has no model '{name}'{hint}; `rpp models` lists all, and a folder with "
            "open_clip_config.json works too"
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


def load_model(
    name: str,
    pretrained: str | None = None,
    device: torch.device | str = "cpu",
    conventions: ConventionOptions | Conventions | None = None,
) -> LoadedModel:
    """Load a frozen open_clip model in float32.

    Args:
        name: an open_clip model name, a folder with `open_clip_config.json` and weights (also as
            `local-dir:PATH`), or `hf-hub:ORG/REPO`.
        pretrained: a tag of that model or a weights file (safetensors, a checkpoint that loads with
            `weights_only`, or OpenAI's TorchScript archive), also one on Hugging Face's hub
            (`hf://ORG/NAME/FILE`). None for folders and the hub, which have their own weights.
        device: device of the model.
        conventions: those that the user states, or all of them as a record has them. The others are those of
            the tag, the folder or the file (`registry.choose_conventions`).

    Raises:
        UsageError: an unknown model, weights that are missing, damaged or of other names or shapes,
            `pretrained` for a model that has its own weights, or a weights file whose conventions are not
            known.
        RppError: the weights of a known tag could not be downloaded.
    """
    name, pretrained = canonical_model_name(name), canonical_pretrained(pretrained)
    recorded = pretrained
    if pretrained and is_on_hub(pretrained):
        pretrained = local_file(pretrained)
    _check_names(name, pretrained)
    try:
        file = _weights_file(name, pretrained)
        states = None if file is None else read_weights(file)
        choice = _choice(name, pretrained, conventions, file, states)
        model = _create(name, None if file else pretrained, device, choice)
        resized = ""
        if file is not None and states is not None:
            resized = load_weights(model, file, states)
        tokenizer = _tokenizer(name)
    except LOAD_ERRORS as error:
        reason = _reason(error)
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
    config = open_clip.get_model_config(name)
    config = json.loads(json.dumps({**config, "quick_gelu": _quick_gelu(name, pretrained, config, choice)}))
    try:
        used = Conventions(
            quick_gelu=config["quick_gelu"],
            **{field: getattr(preprocess, field) for field in PREPROCESSING},
            source=choice.source,
        )
    except ValidationError as error:
        raise UsageError(f"cannot load {name}: its preprocess_cfg has {first_problem(error)}") from error
    if isinstance(conventions, Conventions) and name.startswith(LOCAL_DIR):
        _warn_of_changes(name, used)
    notes = tuple(note for note in (choice.note, resized, _folder_note(name, choice)) if note)
    digest = weights_digest(model)
    return LoadedModel(name, recorded, model, tokenizer, preprocess, config, digest, used, notes)


def _tokenizer(name: str) -> Any:
    """Return a model's tokenizer, whose files open_clip downloads for some models, such as SigLIP.

    A tokenizer of the transformers library is called once, so that a file that does not fit is found here. It
    runs no code from its folder or repository.

    Raises:
        RppError: they could not be downloaded.
        UsageError: a package is missing, or the files are damaged.
    """
    if not (open_clip.get_model_config(name).get("text_cfg") or {}).get("hf_tokenizer_name"):
        return open_clip.get_tokenizer(name)
    if find_spec("transformers") is None:
        raise UsageError(f"the tokenizer of {name} needs the package transformers: {INSTALL_TOKENIZERS}")
    try:
        tokenizer = open_clip.get_tokenizer(name, trust_remote_code=False)
        tokenizer(["a"])
    except Exception as error:  # transformers raises errors of any kind for files that it cannot read
        reason = _reason(error).rstrip(".:")
        if name.startswith(LOCAL_DIR):
            needs = find_spec("sentencepiece") is None
            hint = f"; files in SentencePiece's form need {INSTALL_TOKENIZERS}" if needs else ""
            raise UsageError(
                f"cannot read the tokenizer in {name.removeprefix(LOCAL_DIR)}: {reason}; the folder needs "
                f"the files that save_pretrained of the tokenizer writes{hint}"
            ) from error
        if not isinstance(error, OSError):
            raise UsageError(f"cannot read the tokenizer of {name}: {reason}") from error
        raise RppError(
            f"the tokenizer of {name} could not be fetched: {reason}; open_clip reads it from Hugging Face's "
            "hub, also if the weights are a file"
        ) from error
    return tokenizer


def _weights_file(name: str, pretrained: str | None) -> Path | None:
    """Return the file that weights are read from; None if open_clip downloads them."""
    if name.startswith(LOCAL_DIR):
        folder = Path(name.removeprefix(LOCAL_DIR))
        _check_config(folder / CONFIG)
        return weights_in(folder)
    if pretrained is None or open_clip.get_pretrained_cfg(name, pretrained):
        return None
    return Path(pretrained)


def _choice(
    name: str,
    pretrained: str | None,
    conventions: ConventionOptions | Conventions | None,
    file: Path | None,
    states: dict[str, State] | None,
) -> Choice:
    if isinstance(conventions, Conventions):
        return Choice(conventions.fields, conventions.source)
    given = conventions or ConventionOptions()
    try:
        return choose_conventions(name, pretrained, given, openai=is_openai(states or {}))
    except UndecidedConventionsError:
        if file is not None and states is not None:  # the file may not be the model's at all
            load_weights(_create(name, None, "cpu", Choice({}, "")), file, states)
        raise


def _create(name: str, pretrained: str | None, device: torch.device | str, choice: Choice) -> Any:
    """Create a model. Its weights are loaded if open_clip downloads them (a tag or the hub)."""
    config = open_clip.get_model_config(name)
    quick_gelu = _quick_gelu(name, pretrained, config, choice)
    own = {"quick_gelu": False} if config.get("quick_gelu", False) and not quick_gelu else {}
    loads = pretrained is not None or name.startswith(HF_HUB)
    with without_warning() if not loads else nullcontext():
        return open_clip.create_model(
            name,
            pretrained=pretrained,
            load_weights=loads,
            device=torch.device(device),
            # open_clip only warns if a tag was trained with QuickGELU and the configuration has GELU. The
            # features would be wrong, so the tag decides.
            force_quick_gelu=quick_gelu,
            force_preprocess_cfg={f: x for f, x in choice.fields.items() if f in PREPROCESSING},
            pretrained_text=False,
            require_pretrained=loads,
            weights_only=True,  # a weights file may be a pickle; no code in it runs
            **own,
        )


def _quick_gelu(name: str, pretrained: str | None, config: dict[str, Any], choice: Choice) -> bool:
    tag = open_clip.get_pretrained_cfg(name, pretrained) if pretrained else {}
    own = config.get("quick_gelu", False) or tag.get("quick_gelu", False)
    return bool(choice.fields.get("quick_gelu", own))


def _warn_of_changes(name: str, recorded: Conventions) -> None:
    """Warn if a model folder's configuration was changed since its conventions were recorded."""
    if recorded.source.startswith("options"):
        return
    now = recorded.model_copy(update=folder_conventions(Path(name.removeprefix(LOCAL_DIR))))
    if changed := now.differ(recorded):
        log.warning("%s now has %s; what was recorded is used", name, "; ".join(changed))


def _folder_note(name: str, choice: Choice) -> str:
    """Return what is assumed of a folder whose configuration has no mean and std of the pixels."""
    if not name.startswith(LOCAL_DIR) or {"mean", "std"} <= choice.fields.keys():
        return ""
    path = Path(name.removeprefix(LOCAL_DIR)) / CONFIG
    found = parse_json(read_text(path)).get("preprocess_cfg") or {}
    if {"mean", "std"} <= found.keys() | choice.fields.keys():
        return ""
    return f"{path} has no preprocess_cfg with mean and std; those of OpenAI's models are assumed"


def _reason(error: Exception) -> str:
    """Return an error of open_clip in one line, with the first names of a state dict that does not fit."""
    lines = [line.strip() for line in str(error).strip().splitlines()] or [type(error).__name__]
    if lines[0].startswith("Error(s) in loading state_dict") and len(lines) > 1:
        return f"{lines[0]} {lines[1][:200]}"
    return lines[0]


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
