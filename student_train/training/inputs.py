"""The inputs of a run: the student's frozen model, and features or images joined with the cache."""

import logging
from typing import Any

import torch

from student_train.data.join import Join, locate_images
from student_train.data.order import select_rows
from student_train.data.pixels import PixelWorkers
from student_train.data.rendered import RenderedViews, why_not_rendered
from student_train.model.named_model import load_named_model
from student_train.training.distributed import Processes
from student_train.training.run_identity import base_conventions
from student_train.training.settings import TrainSettings
from student_train.training.step_classes import check_classes_per_step
from teacher_cache.compat.open_clip import PreprocessCfg
from teacher_cache.conventions import recorded_conventions
from teacher_cache.cores import usable_cores
from teacher_cache.errors import UsageError
from teacher_cache.images.table import SampleTable
from teacher_cache.softlabels import TeacherCache, open_cache
from teacher_cache.store.pixels import one_codec
from teacher_cache.teacher.openclip import LoadedModel, load_model
from teacher_cache.teacher.registry import earlier_choice
from teacher_cache.views import ViewRenderer

log = logging.getLogger(__name__)


def load_student_base(
    settings: TrainSettings, cache: TeacherCache, device: torch.device, record: dict[str, Any] | None = None
) -> LoadedModel:
    """The student's frozen model: the teacher's own unless the settings name another.

    It keeps the conventions that the cache, or the run to resume, records.

    Args:
        record: `settings.json` of the run to resume.

    Raises:
        UsageError: no such model, or the teacher's model has other weights than the cache was built with.
    """
    teachers = recorded_conventions(cache.teacher)
    if settings.weights_like and settings.pretrained is None:
        raise UsageError(
            f"--weights-like {settings.weights_like} is for a weights file; give the file with --pretrained, "
            "or leave the option out: the teacher's model keeps the conventions that the cache records"
        )
    if settings.student is not None or settings.pretrained is not None:
        name = settings.student or cache.teacher["model"]
        if record is not None and (conventions := base_conventions(record)):
            return load_model(name, settings.pretrained, device, conventions)
        return load_named_model(name, settings.pretrained, settings.weights_like, cache.teacher, device)
    try:
        base = load_model(cache.teacher["model"], cache.teacher["pretrained"], device, teachers)
    except UsageError as error:
        raise UsageError(
            f"the teacher's model, which the student is by default: {error}; if it moved, name its new place "
            "with --student (and --pretrained)"
        ) from error
    if base.digest != cache.teacher["weights_digest"]:
        raise UsageError(
            f"{base.name} has weights {base.digest}, the cache {cache.path} was built with "
            f"{cache.teacher['weights_digest']}; name the student's weights with --student and --pretrained"
        )
    if warning := earlier_choice(cache.teacher, base.conventions):
        log.warning(warning)
    return base


def make_join(
    settings: TrainSettings,
    cache: TeacherCache,
    base: LoadedModel,
    processes: Processes,
    device: torch.device,
    soft_labels: bool,
) -> Join:
    """The run's batches.

    Stored features are used where no vision prompt changes them and a cache has those of the student's model.

    Args:
        soft_labels: whether the batches need the teacher's logits.
    """
    features: TeacherCache | None = None
    valid = cache.valid
    if settings.student_features is not None:
        features = open_cache(settings.student_features)
        check_student_features(settings, cache, features, base)
        valid = valid & features.valid  # an image may have become unreadable between the two builds
    elif not settings.prompts.has_prompts("vision") and _is_made_by(cache, base):
        features = cache if cache.keeps_image_features else None
    num_classes = len(cache.vocabulary)
    rows = select_rows(cache.labels, valid, num_classes, settings.class_subset, settings.shots, settings.seed)
    check_classes_per_step(settings, cache.labels[rows], num_classes)
    pixels = None
    if features is None:
        pixels = make_pixels(settings, cache, base.preprocess, processes, device)
    return Join(
        cache,
        rows,
        settings.batch_size,
        settings.seed,
        soft_labels=soft_labels,
        student_features=features,
        pixels=pixels,
        reader=settings.reader,
        device=device if pixels is None else torch.device("cpu"),  # small beside the pixels
        rank=processes.rank,
        ranks=processes.size,
        ranks_here=processes.local_size,
    )


def make_pixels(
    settings: TrainSettings,
    cache: TeacherCache,
    preprocess: PreprocessCfg,
    processes: Processes,
    device: torch.device,
) -> PixelWorkers:
    """The workers that read and decode views for a model with this preprocessing.

    Raises:
        UsageError: as `locate_images`, or rendered views are required that the model cannot use.
    """
    samples, renderer = _pixel_source(settings, cache, preprocess), ViewRenderer(preprocess)
    workers, pin = settings.workers, device.type == "cuda"
    if workers is None:
        workers = max(1, min(16, usable_cores() // processes.local_size))
    header = cache.header
    return PixelWorkers(samples, header.part_size, renderer, workers, pin, header.max_pixels)


def _pixel_source(
    settings: TrainSettings, cache: TeacherCache, preprocess: PreprocessCfg
) -> SampleTable | RenderedViews:
    """Where the pixels of views are.

    Raises:
        UsageError: rendered views are required, and the student cannot use them; or as `locate_images`.
    """
    wanted = settings.pixels
    if wanted == "rendered" or (wanted == "auto" and settings.images is None):
        reason = why_not_rendered(cache, preprocess)
        if reason is None:
            return RenderedViews(cache)
        if wanted == "rendered":
            raise UsageError(f"--pixels rendered: {reason}")
        if cache.store.pixels.committed():
            log.warning("the original images are read, not the rendered views: %s", reason)
    return locate_images(cache, settings.images)


def as_recorded(settings: TrainSettings, record: dict[str, Any], cache: TeacherCache) -> TrainSettings:
    """The settings that read the pixels which the run to resume has read.

    Args:
        record: `settings.json` of the run; earlier versions read original images only.

    Raises:
        UsageError: it has read rendered views of another codec than the cache has now.
    """
    before = record.get("pixels") or "originals"
    if before == "originals":
        return settings.model_copy(update={"pixels": "originals"})
    now = one_codec(cache.store.pixels.records(), cache.path)
    if now not in (None, before):
        raise UsageError(
            f"the run has read rendered views of --pixels {before}, the cache {cache.path} has {now} now; "
            f"render the cache with --pixels {before}"
        )
    return settings.model_copy(update={"pixels": "rendered", "images": None})


def _is_made_by(cache: TeacherCache, base: LoadedModel) -> bool:
    """Return whether a cache has the features of a model, with its preprocessing."""
    recorded = recorded_conventions(cache.teacher)
    same = recorded is None or recorded.fields == base.conventions.fields
    return same and bool(cache.teacher["weights_digest"] == base.digest)


def check_student_features(
    settings: TrainSettings, cache: TeacherCache, features: TeacherCache, base: LoadedModel
) -> None:
    """Refuse features of another model than the student's, or of other samples or views.

    Raises:
        UsageError: what differs.
    """
    if settings.prompts.has_prompts("vision"):
        raise UsageError(
            "--student-features works with text prompts only: vision prompts change the features"
        )
    if features.teacher["weights_digest"] != base.digest:
        raise UsageError(
            f"{features.path} has features of {features.teacher['model']} "
            f"({features.teacher['weights_digest']}), the student is {base.name} ({base.digest})"
        )
    recorded = recorded_conventions(features.teacher)
    if recorded and (differ := recorded.differ(base.conventions)):
        raise UsageError(
            f"{features.path} has features of {features.teacher['model']} with other conventions than the "
            f"student's model: {'; '.join(differ)}; build those features with the student's"
        )
    for name in ("sample_table_digest", "view_policy"):
        ours, theirs = getattr(cache.header, name), getattr(features.header, name)
        if ours != theirs:
            raise UsageError(f"{features.path} has another {name} ({theirs}) than {cache.path} ({ours})")
