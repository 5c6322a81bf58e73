"""Published prompts of CoOp and POMP as students, so that peers are evaluated as our own runs are.

Their checkpoints hold the state of a `prompt_learner`: `ctx`, the context vectors that stand between the
start of text and the class name, without position embeddings. That is a text prompt of the structure `shared`
at depth 1. Beside them Dassl stores the states of optimizer and scheduler, which under warm-up hold the next
scheduler and its optimizer as objects: these are passed over, and nothing of the file runs.

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
from teacher_cache.teacher.checkpoint_file import load_plain
from teacher_cache.teacher.openclip import load_model
from teacher_cache.teacher.text_towers import text_parts

CONTEXT = ("ctx", "prompt_learner.ctx", "module.ctx", "module.prompt_learner.ctx")
# What the schedulers and optimizers that Dassl can be told to use are called, its figures (numpy's numbers),
# and what optimizers keep their states in.
PASSED_OVER = (
    *(f"torch.optim.lr_scheduler.{name}" for name in ("StepLR", "MultiStepLR", "CosineAnnealingLR")),
    *(f"torch.optim.{name}" for name in ("sgd.SGD", "adam.Adam", "adamw.AdamW", "rmsprop.RMSprop")),
    *(f"dassl.optim.radam.{name}" for name in ("RAdam", "PlainRAdam", "AdamW")),
    *(f"numpy.{name}" for name in ("dtype", "core.multiarray.scalar", "_core.multiarray.scalar")),
    "builtins.dict",
)
STATES = "collections.defaultdict"


def import_prompts(settings: ImportSettings, checkpoint: Path) -> Path:
    """Write a CoOp or POMP checkpoint as `student.safetensors`; returns the file.

    The checkpoint is read with `weights_only`.

    Raises:
        UsageError: no such file, one that is no checkpoint or would need code to be run, no context in it,
            one for each class (CoOp's CSC), or of another width than the model's text tower; or the folder
            holds a student already.
    """
    if os.path.exists(settings.out / STUDENT):
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
        with passing_over():
            found: Any = load_plain(checkpoint)
    except OSError as error:
        raise UsageError(f"{checkpoint} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        if needed := re.search(r"GLOBAL (\S+)", str(error)):
            raise UsageError(
                f"{checkpoint} cannot be read without running code that it names ({needed[1]}), and is "
                "therefore not read; ask its authors for the prompt learner's state_dict alone"
            ) from error
        raise UsageError(f"{checkpoint} is no checkpoint of torch.save, or is damaged") from error
    state = found.get("state_dict", found) if isinstance(found, dict) else None
    context = None
    if isinstance(state, dict):
        context = next((state[name] for name in CONTEXT if name in state), None)
    if not isinstance(context, Tensor) or not context.is_floating_point():
        raise UsageError(f"{checkpoint} holds no context vectors (ctx) of a prompt learner")
    # a view of one number can have any shape, and only contiguous ones are as large as they say
    if context.layout != torch.strided or context.device.type != "cpu" or not context.is_contiguous():
        raise UsageError(f"{checkpoint} holds context vectors that are no plain tensor")
    if context.dim() != 2 or not len(context):
        raise UsageError(
            f"{checkpoint} holds context vectors of shape {list(context.shape)}; those of one context for "
            "all classes, [n, width] with n of at least 1, can be imported"
        )
    if not context.isfinite().all():
        raise UsageError(f"{checkpoint} holds context vectors that are not finite")
    return context.float()


class _PassedOver:
    """Stands for an object of the file: takes whatever that one would be made of, and keeps nothing."""

    def __new__(cls, *arguments: object) -> "_PassedOver":
        return super().__new__(cls)

    def __init__(self, *arguments: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


def _states(*arguments: object) -> dict[Any, Any]:
    return {}  # `weights_only` fills plain dictionaries alone


@contextmanager
def passing_over() -> Iterator[None]:
    """Within it, `weights_only` puts stand-ins in the place of what is PASSED_OVER; all else it refuses."""
    stand_ins = [(_PassedOver, name) for name in PASSED_OVER]
    with torch.serialization.safe_globals([*stand_ins, (_states, STATES)]):
        yield
