"""Checks of evaluation and prediction that need no import of torch or open_clip, which takes seconds.

The functions that do the work repeat these checks and make the others.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from student_train.evaluation.dataset_layouts import check_layout
from student_train.evaluation.frozen_names import named_frozen_model, student_name
from student_train.evaluation.settings import DataSettings, EvalOptions, ModelOptions, ModelWithClasses
from student_train.figures import ZERO_SHOT
from student_train.runs.record import require_student
from teacher_cache.errors import UsageError
from teacher_cache.preflight import require_classes, require_file, require_model
from teacher_cache.store.presence import require_cache


def check_students(students: Sequence[str], options: ModelOptions) -> None:
    """Check that students, or the models and caches of `zero-shot` and `zero-shot:MODEL`, exist.

    Raises:
        UsageError: names the first that does not; or `weights_like` without a weights file to use it for.
    """
    for student in map(student_name, students):
        if named := named_frozen_model(student):
            require_model(*named)
            if options.cache is not None:
                require_cache(options.cache)
        elif student != ZERO_SHOT:
            require_student(student)
        elif options.cache is None:
            raise zero_shot_without_cache()
        else:
            require_cache(options.cache)
    check_weights_like(students, options)


def check_weights_like(students: Sequence[str], options: ModelOptions) -> None:
    """Check that `weights_like`, if it is given, has a weights file to describe.

    Raises:
        UsageError: no student is `zero-shot:MODEL:FILE`.
    """
    named = filter(None, map(named_frozen_model, students))
    if options.weights_like and not any(pretrained for _, pretrained in named):
        raise UsageError(
            f"--weights-like {options.weights_like} is for the weights file of --student "
            "zero-shot:MODEL:FILE; other students record the conventions of their model"
        )


def zero_shot_without_cache() -> UsageError:
    """Return the error for `zero-shot` without a cache."""
    return UsageError("--student zero-shot needs --cache, whose model and templates it uses")


def check_evaluation(students: Sequence[str], options: EvalOptions, images: str) -> None:
    """Check that models, images and class names of an evaluation exist.

    Raises:
        UsageError: names the first that does not.
    """
    data = options.model_dump(include=set(DataSettings.model_fields))
    check_layout(DataSettings(**data, images=images))
    check_students(students, options)


def check_model_and_classes(settings: ModelWithClasses) -> None:
    """Check that a model and class names exist.

    Raises:
        UsageError: names the first that does not.
    """
    check_students([settings.student], settings)
    require_classes(settings.classes)


def require_picture(path: Path) -> None:
    """Check that a picture file exists.

    Raises:
        UsageError: it does not, or is a folder.
    """
    if os.path.isdir(path):
        raise picture_folder(path)
    require_file(path)


def picture_folder(path: Path) -> UsageError:
    """Return the error for a folder instead of a picture."""
    return UsageError(f"{path} is a folder; give the pictures in it, or use rpp eval for all of them")
