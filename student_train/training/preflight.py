"""What `rpp-train` refuses before it imports torch and open_clip, which takes seconds.

`train` makes these checks again, and those that have to open files.
"""

import os

from student_train.runs.record import require_startable, require_student
from student_train.training.metric_logs import chosen_logs
from student_train.training.settings import TrainSettings
from teacher_cache.distribution import rpp_version
from teacher_cache.errors import UsageError
from teacher_cache.preflight import require_images, require_model
from teacher_cache.store.presence import require_cache


def is_main_process() -> bool:
    """Whether this process prints for all processes of the run: torchrun's first one, or the only one."""
    return "TORCHELASTIC_RUN_ID" not in os.environ or os.environ["RANK"] == "0"


def check_train(settings: TrainSettings) -> None:
    """Refuse a training whose cache, run, starting prompts, images or weights file do not exist.

    Raises:
        UsageError: the first one that does not.
    """
    if settings.resume and settings.out is None:
        raise UsageError("--resume needs --out with a run's folder")
    rpp_version()
    chosen_logs(settings.log)
    if settings.out is not None:
        require_startable(settings.out, settings.resume)
    require_cache(settings.cache)
    if settings.student_features is not None:
        require_cache(settings.student_features)
    if settings.init is not None and not settings.resume:  # a checkpoint has the prompts
        require_student(settings.init)
    # otherwise it is not known yet whether images are read
    if (
        settings.images is not None
        and settings.prompts.has_prompts("vision")
        and settings.student_features is None
    ):
        require_images(settings.images)
    if settings.student is not None:
        require_model(settings.student, settings.pretrained)
