"""Names of frozen models in place of a student: `zero-shot`, `zero-shot:MODEL:PRETRAINED`."""

from pathlib import Path

from student_train.figures import TEACHER, ZERO_SHOT
from teacher_cache.errors import UsageError
from teacher_cache.model_names import (
    HF_HUB,
    LOCAL_DIR,
    canonical_model_name,
    portable_model,
    portable_pretrained,
)

PREFIX = f"{ZERO_SHOT}:"


def frozen_name(model: str, pretrained: str | None) -> str:
    """Return the name of a frozen model as `--student` takes it."""
    return PREFIX + model + (f":{pretrained}" if pretrained else "")


def named_frozen_model(student: str) -> tuple[str, str | None] | None:
    """Return model and weights of `zero-shot:MODEL` or `zero-shot:MODEL:PRETRAINED`; None for other students.

    A folder and a model of Hugging Face's hub have their own weights, so everything behind the prefix names
    them. A name of open_clip has no colon, so everything behind its colon names the weights.

    Raises:
        UsageError: no model behind the prefix, or no weights behind the second colon.
    """
    if not student.startswith(PREFIX):
        return None
    name = student.removeprefix(PREFIX)
    if name and canonical_model_name(name).startswith((LOCAL_DIR, HF_HUB)):
        return name, None
    model, colon, pretrained = name.partition(":")
    if not model or (colon and not pretrained):
        raise UsageError(f"--student {student}: expected zero-shot:MODEL or zero-shot:MODEL:PRETRAINED")
    return model, pretrained or None


def student_name(student: str) -> str:
    """Return a student as results name it; paths are normalized."""
    return student if student.startswith(PREFIX) else str(Path(student))


def is_frozen(student: object) -> bool:
    """Return whether results name a frozen model, and not a student with prompts."""
    return student in (ZERO_SHOT, TEACHER) or (isinstance(student, str) and student.startswith(PREFIX))


def portable_name(student: str) -> str:
    """Return `zero-shot:MODEL:PRETRAINED` without local folders; other students are unchanged."""
    named = named_frozen_model(student)
    if named is None:
        return student
    model, pretrained = named
    return frozen_name(portable_model(canonical_model_name(model)), portable_pretrained(pretrained))
