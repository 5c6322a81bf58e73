"""Recognise the method of a published checkpoint, and read the prompts that it has after training.

Every tensor is accounted for: it becomes part of a prompt, is redundant, or the checkpoint is refused.
Names are those of the authors' code (github.com/KaiyangZhou/CoOp, amazon-science/prompt-pretraining,
htyao89/KgCoOp, BeierZhu/Prompt-align, muzairkhattak/multimodal-prompt-learning and PromptSRC).

Shapes: n prompt length, W text width, V vision width.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor

from student_train.interchange.checkpoint_state import FLOATS, first_names, is_dense
from student_train.model.settings import LONGEST_PROMPT
from teacher_cache.errors import UsageError

CONTEXT, VISION = "ctx", "image_encoder.VPT"
TEXT_BLOCK = "text_encoder.transformer.resblocks.{}.VPT_shallow"
VISION_BLOCK = "image_encoder.transformer.resblocks.{}.VPT_shallow"
# MaPLe: prompts of text blocks 2 to J, and layers that make the vision prompts from the text prompts.
COMPOUND, PROJECTION = "compound_prompts_text.{}", "compound_prompt_projections.{}"
PROJECTED_CONTEXT = "proj"

CLASS_TOKENS = re.compile(r"(train_|test_)?token_(prefix|suffix)")  # embeddings of the class texts
FROZEN = re.compile(r"logit_scale|(image_encoder|text_encoder|ZS_image_encoder)\..+")
# Parameters of KgCoOp's prompt learner that its forward pass does not use.
KGCOOP_UNUSED = re.compile(r"bias_vectors|meta_net\.linear1\.(weight|bias)")
KGCOOP_MARK = "bias_vectors"
IVLP = "IVLP or PromptSRC"  # PromptSRC's prompts are IVLP's, trained with other losses

# Methods that a student cannot express: a pattern of names, the method, and why.
NOT_EXPRESSIBLE = (
    (r"VPT_image_trans\..*", "PromptKD", "it learns a projection of the image features"),
    (r"adapter_(image|text)\..*|model_distill\..*", "CoPrompt", "it learns adapters behind the towers"),
    (r"film_.*|linear_probe.*", "DePT", "it learns a classifier beside the prompts"),
    (r"text_feature_residuals|base_text_features", "TaskRes", "it learns features of its own classes"),
    (r"text_prompt|img_prompt", "RPO", "its prompts are masked and pooled"),
    (r"(adapter\.)?fc\.[02]\.weight", "CLIP-Adapter", "it learns adapters behind the towers"),
)


@dataclass(frozen=True)
class PublishedPrompts:
    """The prompts of a published checkpoint, and its other tensors.

    Attributes:
        method: the method whose layout the checkpoint has.
        text: prompts of the text blocks from the first on, [n, W] float32; the first without position
            embeddings.
        vision: prompts of the vision blocks from the first on, [n, V] float32; the first in front of the
            tower's first norm.
        used: number of tensors that the prompts come from.
        class_tokens: embeddings of the class texts, by name.
        frozen: tensors named like weights of the frozen model, by name.
        unused: number of tensors that the method does not use after training.
    """

    method: str
    text: list[Tensor]
    vision: list[Tensor]
    used: int
    class_tokens: dict[str, Tensor]
    frozen: dict[str, Tensor]
    unused: int


def published_prompts(checkpoint: Path, state: Mapping[str, Tensor]) -> PublishedPrompts:
    """Return the prompts in the state of a checkpoint.

    Args:
        checkpoint: its path, for messages.
        state: as `read_state` returns it.

    Raises:
        UsageError: a method that a student cannot express, unknown or missing tensors, or prompts of other
            shapes or that are not finite.
    """
    _refuse_not_expressible(checkpoint, state)
    method = _method(state)
    if method is None:
        names = f"; it has {first_names(state)}" if state else ""
        raise UsageError(
            f"{checkpoint} has no context vectors ({CONTEXT}) of a prompt learner and no vision prompts "
            f"({VISION}){names}"
        )
    expected = _expected(state, method)
    class_tokens = {name: x for name, x in state.items() if CLASS_TOKENS.fullmatch(name)}
    unused = {name for name in state if method == "KgCoOp" and KGCOOP_UNUSED.fullmatch(name)}
    rest = [name for name in state if name not in {*expected, *class_tokens, *unused}]
    frozen = {name: state[name] for name in rest if FROZEN.fullmatch(name) and "VPT" not in name}
    if unknown := [name for name in rest if name not in frozen]:
        raise UsageError(
            f"{checkpoint} looks like a checkpoint of {method}, but also has {first_names(unknown)}; it "
            "cannot be imported, because these may be part of what was learned"
        )
    if missing := [name for name in expected if name not in state]:
        raise UsageError(
            f"{checkpoint} looks like a checkpoint of {method}, but lacks {first_names(missing)}: a part of "
            "what was learned is missing; import the complete file"
        )
    text, vision = _prompts(checkpoint, state, method)
    return PublishedPrompts(method, text, vision, len(expected), class_tokens, frozen, len(unused))


def _refuse_not_expressible(checkpoint: Path, state: Mapping[str, Tensor]) -> None:
    found: list[tuple[str, str, list[str]]] = [
        (method, reason, names)
        for pattern, method, reason in NOT_EXPRESSIBLE
        if (names := [name for name in state if re.fullmatch(pattern, name)])
    ]
    meta = [name for name in state if name.startswith("meta_net.")]
    if meta and (KGCOOP_MARK not in state or any(name.startswith("meta_net.linear2.") for name in meta)):
        out, context = state.get("meta_net.linear2.weight"), state.get(CONTEXT)
        # TCP's layer gives several vectors of the text width, CoCoOp's one
        if out is not None and context is not None and out.shape[:1] != context.shape[-1:]:
            found.append(("TCP", "its prompts depend on the class", meta))
        else:
            found.append(("CoCoOp", "its prompts depend on the image", meta))
    if found:
        method, reason, names = found[0]
        raise UsageError(
            f"{checkpoint} is a checkpoint of {method} ({first_names(names)}), which cannot be imported: "
            f"{reason}, and a student has only prompts that are the same for all images and classes"
        )


def _method(state: Mapping[str, Tensor]) -> str | None:
    if any(name.startswith((f"{PROJECTED_CONTEXT}.", "compound_prompt")) for name in state):
        return "MaPLe"
    if any(name.startswith("ZS_image_encoder.") for name in state):
        return "PromptSRC"
    if any(name.partition(".")[0].endswith("_encoder") and "VPT" in name for name in state):
        is_text = CONTEXT in state or any(
            name.startswith("text_encoder.") and "VPT" in name for name in state
        )
        return IVLP if is_text else "VPT"
    if CONTEXT not in state:
        return None
    if KGCOOP_MARK in state:
        return "KgCoOp"
    return "POMP" if any(name.startswith(("train_token_", "test_token_")) for name in state) else "CoOp"


def _expected(state: Mapping[str, Tensor], method: str) -> list[str]:
    """Return the names of the tensors that make the prompts, found or missing."""
    if method == "MaPLe":
        names = (COMPOUND, f"{PROJECTION}.weight", f"{PROJECTION}.bias")
        deep = 1 + max((number for name in names for number in _numbers(state, name)), default=-1)
        layers = [PROJECTED_CONTEXT, *(PROJECTION.format(number) for number in range(deep))]
        return [
            CONTEXT,
            *(COMPOUND.format(number) for number in range(deep)),
            *(f"{layer}.{part}" for layer in layers for part in ("weight", "bias")),
        ]
    if method not in ("PromptSRC", IVLP, "VPT"):
        return [CONTEXT]
    text = [] if method == "VPT" else [CONTEXT, *_blocks(state, TEXT_BLOCK)]
    vision = _blocks(state, VISION_BLOCK)
    return [*text, VISION, *vision] if vision or VISION in state else text


def _blocks(state: Mapping[str, Tensor], name: str) -> list[str]:
    last = max(_numbers(state, name), default=0)
    return [name.format(number) for number in range(1, last + 1)]


def _numbers(state: Mapping[str, Tensor], name: str) -> list[int]:
    pattern = re.compile("(0|[1-9][0-9]{0,3})".join(map(re.escape, name.split("{}"))))
    return [int(found[1]) for key in state if (found := pattern.fullmatch(key))]


def _prompts(checkpoint: Path, state: Mapping[str, Tensor], method: str) -> tuple[list[Tensor], list[Tensor]]:
    """Return the prompts of both towers by block, as in `PublishedPrompts`."""

    def read(names: Iterable[str]) -> list[Tensor]:
        return [_checked(checkpoint, name, state[name], 2) for name in names]

    if method != "MaPLe":
        towers = [
            read(name for name in _expected(state, method) if is_vision == name.startswith("image_encoder."))
            for is_vision in (False, True)
        ]
    else:
        text = read(
            name for name in _expected(state, method) if name.startswith((CONTEXT, "compound_prompts_text."))
        )
        layers = [PROJECTED_CONTEXT, *(PROJECTION.format(number) for number in range(len(text) - 1))]
        vision = []
        for prompt_nW, layer in zip(text, layers, strict=True):
            weight_VW = _checked(checkpoint, f"{layer}.weight", state[f"{layer}.weight"], 2)
            bias_V = _checked(checkpoint, f"{layer}.bias", state[f"{layer}.bias"], 1)
            if weight_VW.shape != (len(bias_V), prompt_nW.shape[1]):
                raise UsageError(
                    f"{checkpoint} has {layer}.weight of shape {list(weight_VW.shape)}; expected "
                    f"{[len(bias_V), prompt_nW.shape[1]]}, the sizes of {layer}.bias and of the text prompts"
                )
            vision.append(F.linear(prompt_nW, weight_VW, bias_V))
        towers = [text, vision]
    for prompts in towers:
        if any(prompt.shape != prompts[0].shape for prompt in prompts):
            shapes = ", ".join(dict.fromkeys(str(list(prompt.shape)) for prompt in prompts))
            raise UsageError(f"{checkpoint} has prompts of several shapes in one tower: {shapes}")
    return towers[0], towers[1]


def _checked(checkpoint: Path, name: str, tensor: Tensor, dimensions: int) -> Tensor:
    """Return a tensor as float32."""
    if tensor.dtype not in FLOATS or not is_dense(tensor):
        raise UsageError(f"{checkpoint} has {name} that is not a dense CPU tensor of floating point numbers")
    shape = list(tensor.shape)
    if len(shape) != dimensions or 0 in shape:
        expected = "[n, width] with n of at least 1" if dimensions == 2 else "[width]"
        which = ""
        if name == CONTEXT:
            which = (
                ": one context for all classes; contexts for each class (CSC of CoOp) and several contexts "
                "(PLOT) cannot be imported"
            )
        raise UsageError(f"{checkpoint} has {name} of shape {shape}; expected {expected}{which}")
    if dimensions == 2 and not name.endswith(".weight") and shape[0] > LONGEST_PROMPT:
        raise UsageError(
            f"{checkpoint} has {name} of shape {shape}; at most {LONGEST_PROMPT} prompts are read"
        )
    numbers = tensor.detach().float()
    if not numbers.isfinite().all():
        raise UsageError(f"{checkpoint} has {name} with numbers that are not finite")
    return numbers
