"""Which models of open_clip can have prompts, in which tower, and what a step of training costs.

The code that a student runs decides (`text_parts`, `vision_parts`), over towers without weights. Weights and
tokenizers are not read.

Shapes: as `text_plan.py`.
"""

import difflib
import json
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import cache
from typing import Any

import open_clip
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from student_train.model.text_plan import GIB, row_costs
from student_train.model.vision_towers import VisionParts, vision_parts
from teacher_cache.errors import UnsupportedTowerError, UsageError
from teacher_cache.model_names import canonical_model_name, require_model_folder
from teacher_cache.teacher.registry import tag_conventions
from teacher_cache.teacher.text_towers import TextParts, text_parts, transformers_tower

# Rows of a step's texts in a tower with an exact prefix (docs/method.md), by number of class names.
PACKED_ROWS = {1_000: 4_224, 21_841: 79_072}
PACK = 32
IMAGES = 256  # of a step: the default of --batch-size
PROMPTS = 4  # the default of --prompt-length
SMALL = {"width": 64, "layers": 1}  # the other tower, which is not looked at
SMALL_IMAGE = {**SMALL, "image_size": 32, "patch_size": 16, "output_tokens": True}
SMALL_TEXT = {**SMALL, "heads": 1, "vocab_size": 8, "context_length": 8}


@dataclass(frozen=True)
class ModelSupport:
    """What a model can carry.

    Attributes:
        model: its name in open_clip.
        tags: its published weights.
        text, vision: whether the tower can have prompts.
        reason: why not, of each tower that cannot; None if both can.
        exact_prefix: whether all classes share the rows of SOT and text prompts (docs/method.md). If not, a
            step runs every position of every class name.
        image_size: height and width, or one number for both.
        embedding: D.
        preprocessing: conventions of each tag: QuickGELU, mean, std, interpolation, resize mode.
    """

    model: str
    tags: list[str]
    text: bool
    vision: bool
    reason: str | None
    exact_prefix: bool
    image_size: int | list[int]
    embedding: int
    preprocessing: dict[str, dict[str, Any]]


@dataclass(frozen=True)
class PartCost:
    """A rough cost of one tower in a step of training.

    Attributes:
        rows: rows that run through the blocks.
        teraflops: of multiplications and additions in forward and backward pass, 10^12. Stems in front of the
            blocks and recomputation are not counted.
        gib: activations in float32 if all are kept, GiB.
    """

    rows: int
    teraflops: float
    gib: float


def supported_models() -> list[ModelSupport]:
    """Return what each model that open_clip lists can carry, in its order."""
    return [model_support(name) for name in open_clip.list_models()]


def model_support(name: str) -> ModelSupport:
    """Return what a model can carry.

    Args:
        name: open_clip's name, a folder with `open_clip_config.json`, or `hf-hub:ORG/REPO`.

    Raises:
        UsageError: unknown model.
    """
    name, config = _config(name)
    tags = [] if ":" in name else open_clip.list_pretrained_tags_by_model(name)
    one_block = _shallow(config)  # all blocks of open_clip's own towers are alike
    text, vision = _refusal(_text_of, one_block), _refusal(_vision_of, one_block)
    return ModelSupport(
        model=name,
        tags=tags,
        text=not text,
        vision=not vision,
        reason="; ".join(filter(None, (text, vision))) or None,
        exact_prefix=not text and _text_of(one_block).causal,
        image_size=config["vision_cfg"].get("image_size", 224),
        embedding=config["embed_dim"],
        preprocessing={tag: tag_conventions(name, tag) for tag in tags},
    )


def step_costs(name: str) -> dict[str, PartCost]:
    """Return the rough costs of a step by part: '256 images', '1,000 names', '21,841 names'.

    Only towers that can have prompts are listed. Images cost this only if the vision tower has prompts.

    Raises:
        UsageError: unknown model.
    """
    name, config = _config(name)
    found = model_support(name)
    costs = {}
    if found.vision:
        tower = _vision_of(config)
        rows = tower.rows
        costs[f"{IMAGES} images"] = _cost(
            tower.blocks, IMAGES * rows, rows, PROMPTS, tower.pooled_rows / rows
        )
    if found.text:
        parts = _text_of(config)
        positions = int(config["text_cfg"].get("context_length", 77))
        for names, packed in PACKED_ROWS.items():
            if found.exact_prefix:
                cost = _cost(parts.blocks, packed, PACK, 1 + PROMPTS, names / packed)
            else:
                cost = _cost(parts.blocks, names * positions, positions, 0, 1 / positions)
            costs[f"{names:,} names"] = cost
    return costs


def _cost(blocks: Any, rows: int, size: int, prefix: int, pooled: float) -> PartCost:
    """Return the cost of rows in sequences of `size` rows that also attend to `prefix` others."""
    weights = sum(
        parameter.numel()
        for block in blocks
        for module in block.modules()
        for parameter in module.parameters(recurse=False)
        if parameter.ndim == 2
    )
    costs = row_costs(blocks, size, prefix, pooled, element=4)
    width = costs.row / 4
    forward = rows * (2 * weights + 4 * len(blocks) * width * (size + prefix))
    return PartCost(rows, round(2 * forward / 1e12, 2), round(rows * costs.kept() / GIB, 2))


def _config(name: str) -> tuple[str, dict[str, Any]]:
    name = canonical_model_name(name)
    require_model_folder(name)
    config = open_clip.get_model_config(name)
    if config is None:
        near = difflib.get_close_matches(name, open_clip.list_models(), n=4, cutoff=0.4)
        hint = f"; near names: {', '.join(near)}" if near else ""
        raise UsageError(
            f"open_clip has no model '{name}'{hint}; `rpp models` lists all, and a folder with "
            "open_clip_config.json works too"
        )
    return name, config


def _refusal(parts: Callable[[dict[str, Any]], Any], config: dict[str, Any]) -> str:
    """Return why a tower cannot have prompts; empty if it can."""
    try:
        parts(config)
    except UnsupportedTowerError as error:
        return str(error).partition("; what works")[0]
    return ""


def _text_of(config: dict[str, Any]) -> TextParts:
    """Return the parts of a configuration's text tower.

    Raises:
        UnsupportedTowerError: it cannot have prompts.
    """
    if transformer := config["text_cfg"].get("hf_model_name"):  # transformers may not be installed
        raise transformers_tower(transformer)
    return text_parts(_text_model(_selected(config, "text_cfg", "multimodal_cfg", "custom_text")))


def _vision_of(config: dict[str, Any]) -> VisionParts:
    """Return the parts of a configuration's vision tower.

    Raises:
        UnsupportedTowerError: it cannot have prompts.
    """
    return vision_parts(_visual(_selected(config, "vision_cfg")))


def _shallow(config: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration with one block in each of open_clip's own transformers."""
    one = {
        name: {**tower, "layers": 1}
        for name, tower in config.items()
        if isinstance(tower, dict) and isinstance(tower.get("layers"), int)
    }
    return {**config, **one}


def _selected(config: dict[str, Any], *names: str) -> str:
    """Return the part of a configuration that decides, as JSON: many models share it."""
    part = {name: config[name] for name in ("embed_dim", *names) if name in config}
    return json.dumps(part, sort_keys=True)


@cache
def _text_model(config: str) -> nn.Module:
    own: dict[str, Any] = json.loads(config)
    kind = open_clip.CustomTextCLIP if own.pop("custom_text", False) else open_clip.CLIP
    if "multimodal_cfg" in own:
        kind = open_clip.CoCa
    with without_weights():
        model: nn.Module = kind(vision_cfg=SMALL_IMAGE, **own).eval()
    return model


@cache
def _visual(config: str) -> Any:
    with without_weights():
        return open_clip.CLIP(text_cfg=SMALL_TEXT, **json.loads(config)).eval().visual


class _NotInitialised(TorchFunctionMode):
    """Skip operations in place, which initialise weights."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, named = getattr(func, "__name__", ""), kwargs or {}
        if name.endswith("_") and not name.endswith("__") and name != "requires_grad_":
            return args[0] if args else named["tensor"]  # `torch.nn.init` names it
        return func(*args, **named)


def without_weights() -> AbstractContextManager[Any]:
    """Create modules without memory for their weights, on the device `meta`."""
    stack = ExitStack()
    stack.enter_context(torch.device("meta"))
    stack.enter_context(_NotInitialised())
    return stack


__all__ = ["ModelSupport", "PartCost", "model_support", "step_costs", "supported_models", "without_weights"]
