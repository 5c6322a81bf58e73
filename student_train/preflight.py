"""What can be refused at once: places that the options of a command name and that are not there.

The commands call this before they import torch and open_clip, which takes seconds. The functions that do the
work make the same checks, and those that need more than a look at names.
"""

import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from student_train.command_settings import DataSettings, EvalOptions, ModelOptions, ModelWithClasses
from student_train.dataset_layouts import check_layout
from student_train.figures import ZERO_SHOT
from student_train.metric_logs import chosen_logs
from student_train.run_record import look_into, require_student
from student_train.settings import TrainSettings
from teacher_cache.distribution import rpp_version
from teacher_cache.errors import UsageError
from teacher_cache.preflight import require_classes, require_images, require_model
from teacher_cache.store.presence import require_cache

ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def is_main_process() -> bool:
    """Whether this is the process of a run that prints what all of them know: the first one of torchrun's, or
    the only one."""
    return "TORCHELASTIC_RUN_ID" not in os.environ or os.environ["RANK"] == "0"


def check_train(settings: TrainSettings) -> None:
    """Refuse a training whose cache, run, starting prompts, images or weights file are not there.

    Raises:
        UsageError: the first of them.
    """
    if settings.resume and settings.out is None:
        raise UsageError("--resume needs --out with a run's folder")
    rpp_version()
    chosen_logs(settings.log)
    if settings.out is not None:
        look_into(settings.out, settings.resume)
    require_cache(settings.cache)
    if settings.student_features is not None:
        require_cache(settings.student_features)
    if settings.init is not None and not settings.resume:  # a checkpoint holds the prompts
        require_student(settings.init)
    # else images may not be read at all
    if (
        settings.images is not None
        and settings.prompts.towers != "text"
        and settings.student_features is None
    ):
        require_images(settings.images)
    if settings.student is not None:
        require_model(settings.student, settings.pretrained)


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


def require_onnx() -> None:
    """Refuse an export to ONNX without the packages that it needs.

    Raises:
        UsageError: what is missing, and how it is installed.
    """
    if missing := [name for name in ONNX_PACKAGES if find_spec(name) is None]:
        raise onnx_packages_missing(missing)


def onnx_packages_missing(names: Sequence[str]) -> UsageError:
    """The error for packages of the extra `onnx` that cannot be imported."""
    return UsageError(f"an export to ONNX needs {', '.join(names)}: pip install 'rpp-clip[onnx]'")


def require_file(path: Path) -> None:
    """Refuse a file that is not there.

    Raises:
        UsageError: nothing is there, or a folder.
    """
    if not os.path.exists(path):
        raise UsageError(f"{path} cannot be read: No such file or directory")
    if os.path.isdir(path):
        raise UsageError(f"{path} cannot be read: Is a directory")


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
