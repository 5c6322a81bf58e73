"""Published prompts of CoOp and POMP as students, so that peers are evaluated as our own runs are.

Their checkpoints hold the state of a `prompt_learner`: `ctx`, the context vectors that stand between the
start of text and the class name, without position embeddings. That is a text prompt of the structure `shared`
at depth 1.

Shapes: n prompt length, W text tower width.
"""

import pickle
from pathlib import Path
from typing import Any, cast

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from student_train.prompts import Prompts, PromptSettings
from student_train.stored import STUDENT
from student_train.student import PromptedCLIP, save_student
from teacher_cache.errors import UsageError
from teacher_cache.openclip import load_model, text_parts

CONTEXT = ("ctx", "prompt_learner.ctx", "module.ctx", "module.prompt_learner.ctx")


class ImportSettings(BaseModel):
    """Settings of an import."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    out: Path = Field(description="folder for the student; rpp eval and rpp-train --init take it")
    model: str = Field(description="open_clip model that the prompts were trained on")
    pretrained: str | None = Field(default=None, description="its pretrained tag or weights file")


def import_prompts(settings: ImportSettings, checkpoint: Path) -> Path:
    """Write a CoOp or POMP checkpoint as `student.safetensors`; returns the file.

    The checkpoint is read with `weights_only`.

    Raises:
        UsageError: no such file, no context in it, one for each class (CoOp's CSC), or of another width than
            the model's text tower; or the folder holds a student already.
    """
    if (settings.out / STUDENT).exists():
        raise UsageError(f"{settings.out} holds a student already; choose another --out")
    context_nW = read_context(checkpoint)
    base = load_model(settings.model, settings.pretrained)
    parts = text_parts(base.model)
    n, width = context_nW.shape
    if width != parts.positional_embedding.shape[1]:
        raise UsageError(
            f"{checkpoint} holds vectors of {width} numbers, the text tower of {base.name} takes "
            f"{parts.positional_embedding.shape[1]}: the prompts were trained on another model"
        )
    prompts = PromptSettings(towers="text", prompt_structure="shared", prompt_depth=1, prompt_length=n)
    student = PromptedCLIP(base, prompts)
    with torch.no_grad():
        first_nW = context_nW + parts.positional_embedding[1 : 1 + n]
        cast(Prompts, student.tower_prompts("text")).q[0].copy_(first_nW)
    try:
        settings.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out {settings.out} cannot be a folder: {error.strerror}") from error
    return save_student(student, settings.out)


def read_context(checkpoint: Path) -> Tensor:
    """The context vectors of a checkpoint, [n, W] float32.

    Raises:
        UsageError: as `import_prompts`.
    """
    try:
        found: Any = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UsageError(f"{checkpoint} cannot be read: {error.strerror}") from error
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UsageError(
            f"{checkpoint} is not a checkpoint that can be read without running its code: {reason}"
        ) from error
    state = found.get("state_dict", found) if isinstance(found, dict) else None
    context = None
    if isinstance(state, dict):
        context = next((state[name] for name in CONTEXT if name in state), None)
    if not isinstance(context, Tensor) or not context.is_floating_point():
        raise UsageError(f"{checkpoint} holds no context vectors (ctx) of a prompt learner")
    if context.dim() != 2:
        raise UsageError(
            f"{checkpoint} holds context vectors of shape {list(context.shape)}; those of one context for "
            "all classes, [n, width], can be imported"
        )
    if not context.isfinite().all():
        raise UsageError(f"{checkpoint} holds context vectors that are not finite")
    return context.float()
