"""Import published prompts of CoOp and POMP as students, to evaluate them like our own runs.

Their checkpoints store the state of a `prompt_learner`: `ctx`, the context vectors between the start of text
and the class name, without position embeddings. That is a text prompt of structure `shared` and depth 1.
Dassl also stores states of optimizer and scheduler, under warm-up even a scheduler and an optimizer as
objects. Those are skipped; no code of the file runs.

Shapes: n prompt length, W text tower width.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from student_train.interchange.settings import ImportSettings
from student_train.model.prompts import Prompts
from student_train.model.settings import PromptSettings
from student_train.model.student import PromptedCLIP, save_student
from student_train.runs.record import STUDENT
from teacher_cache.errors import UsageError
from teacher_cache.files.atomic_write import make_folder
from teacher_cache.teacher.checkpoint_file import load_plain
from teacher_cache.teacher.openclip import load_model
from teacher_cache.teacher.text_towers import text_parts

CONTEXT = ("ctx", "prompt_learner.ctx", "module.ctx", "module.prompt_learner.ctx")
# Dassl's schedulers and optimizers, its figures (numpy's numbers), and the containers of optimizers' states.
SKIPPED = (
    *(f"torch.optim.lr_scheduler.{name}" for name in ("StepLR", "MultiStepLR", "CosineAnnealingLR")),
    *(f"torch.optim.{name}" for name in ("sgd.SGD", "adam.Adam", "adamw.AdamW", "rmsprop.RMSprop")),
    *(f"dassl.optim.radam.{name}" for name in ("RAdam", "PlainRAdam", "AdamW")),
    *(f"numpy.{name}" for name in ("dtype", "core.multiarray.scalar", "_core.multiarray.scalar")),
    "builtins.dict",
)
STATES = "collections.defaultdict"


def import_prompts(settings: ImportSettings, checkpoint: Path) -> Path:
    """Write a CoOp or POMP checkpoint as `student.safetensors` and return the file.

    The checkpoint is read with `weights_only`.

    Raises:
        UsageError: the checkpoint does not exist, is not a checkpoint, needs code to be run, or has no
            context; its context differs for each class (CoOp's CSC) or has another width than the model's
            text tower; or the folder already has a student.
    """
    if os.path.exists(settings.out / STUDENT):
        raise UsageError(f"{settings.out} already has a student; choose another --out")
    context_nW = read_context(checkpoint)
    base = load_model(settings.model, settings.pretrained)
    parts = text_parts(base.model)
    n, width = context_nW.shape
    if width != parts.positional_embedding.shape[1]:
        raise UsageError(
            f"{checkpoint} has context vectors of width {width}, but the text tower of {base.name} has width "
            f"{parts.positional_embedding.shape[1]}: the prompts were trained on another model"
        )
    prompts = PromptSettings(towers="text", prompt_structure="shared", prompt_depth=1, prompt_length=n)
    student = PromptedCLIP(base, prompts)
    with torch.no_grad():
        first_nW = context_nW + parts.positional_embedding[1 : 1 + n]
        cast(Prompts, student.tower_prompts("text")).q[0].copy_(first_nW)
    make_folder(settings.out)
    return save_student(student, settings.out)


def read_context(checkpoint: Path) -> Tensor:
    """Read the context vectors of a checkpoint, [n, W] float32.

    Raises:
        UsageError: as `import_prompts`.
    """
    try:
        with skipping():
            found: Any = load_plain(checkpoint)
    except OSError as error:
        raise UsageError(f"{checkpoint} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        if needed := re.search(r"GLOBAL (\S+)", str(error)):
            raise UsageError(
                f"{checkpoint} cannot be read without running code that it names ({needed[1]}); ask its "
                "authors for a file with only the prompt learner's state_dict"
            ) from error
        raise UsageError(f"{checkpoint} cannot be read as a checkpoint of torch.save ({error})") from error
    state = found.get("state_dict", found) if isinstance(found, dict) else None
    context = None
    if isinstance(state, dict):
        context = next((state[name] for name in CONTEXT if name in state), None)
    if not isinstance(context, Tensor) or not context.is_floating_point():
        raise UsageError(f"{checkpoint} has no context vectors (ctx) of a prompt learner")
    # a view of one number can have any shape; a contiguous tensor has as many numbers as its shape
    if context.layout != torch.strided or context.device.type != "cpu" or not context.is_contiguous():
        raise UsageError(f"{checkpoint} has context vectors that are not a dense CPU tensor")
    if context.dim() != 2 or not len(context):
        raise UsageError(
            f"{checkpoint} has context vectors of shape {list(context.shape)}; expected [n, width] with n of "
            "at least 1: one context for all classes"
        )
    if not context.isfinite().all():
        raise UsageError(f"{checkpoint} has context vectors that are not finite")
    return context.float()


class _Skipped:
    """Stand-in for an object of the file: accepts its arguments and state, and keeps nothing."""

    def __new__(cls, *arguments: object) -> "_Skipped":
        return super().__new__(cls)

    def __init__(self, *arguments: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


def _states(*arguments: object) -> dict[Any, Any]:
    return {}  # `weights_only` fills only plain dictionaries


@contextmanager
def skipping() -> Iterator[None]:
    """Make `weights_only` replace the classes in SKIPPED by stand-ins; it refuses all other code."""
    stand_ins = [(_Skipped, name) for name in SKIPPED]
    with torch.serialization.safe_globals([*stand_ins, (_states, STATES)]):
        yield
