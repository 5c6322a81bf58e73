"""What evaluation and prediction refuse before they import torch and open_clip, which takes seconds.

The functions that do the work make the same checks, and those that need more than a look at names.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from student_train.evaluation.dataset_layouts import check_layout
from student_train.evaluation.settings import DataSettings, EvalOptions, ModelOptions, ModelWithClasses
from student_train.figures import ZERO_SHOT
from student_train.runs.record import require_student
from teacher_cache.errors import UsageError
from teacher_cache.preflight import require_classes, require_file
from teacher_cache.store.presence import require_cache


def check_students(students: Sequence[str], options: ModelOptions) -> None:
    """Refuse students, or the cache that `zero-shot` means, that are not there.

    Raises:
        UsageError: the first of them.
    """
    for student in (str(Path(name)) for name in students):
        if student != ZERO_SHOT:
            require_student(student)
        elif options.cache is None:
            raise zero_shot_without_cache()
        else:
            require_cache(options.cache)


def zero_shot_without_cache() -> UsageError:
    """The error where nothing says which frozen model is meant."""
    return UsageError("--student zero-shot needs --cache: its model and templates are meant")


def check_evaluation(students: Sequence[str], options: EvalOptions, images: str) -> None:
    """Refuse an evaluation whose models, images or class names are not there.

    Raises:
        UsageError: the first of them.
    """
    data = options.model_dump(include=set(DataSettings.model_fields))
    check_layout(DataSettings(**data, images=images))
    check_students(students, options)


def check_model_and_classes(settings: ModelWithClasses) -> None:
    """Refuse a model or class names that are not there.

    Raises:
        UsageError: the first of them.
    """
    check_students([settings.student], settings)
    require_classes(settings.classes)


def require_picture(path: Path) -> None:
    """Refuse a picture file that is not there.

    Raises:
        UsageError: nothing is there, or a folder.
    """
    if os.path.isdir(path):
        raise picture_folder(path)
    require_file(path)


def picture_folder(path: Path) -> UsageError:
    """The error for a folder in the place of a picture."""
    return UsageError(f"{path} is a folder; name the pictures in it, or use rpp eval for all of them")
