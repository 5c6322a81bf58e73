"""The identity of a run: what `settings.json` records, and which settings may resume it."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from student_train.data.join import Join
from student_train.model.stored import StoredStudent
from student_train.model.student import PromptedCLIP
from student_train.model.text_plan import TextPlan
from student_train.runs.record import (
    FREE_ON_RESUME,
    FROM_RUN,
    MAY_MOVE,
    RUN_FORMAT,
    flat_settings,
    places_from_run,
)
from student_train.training.settings import TrainSettings
from teacher_cache.command_settings import ViewPolicy
from teacher_cache.conventions import Conventions, described, recorded_conventions
from teacher_cache.distribution import rpp_version
from teacher_cache.errors import UsageError
from teacher_cache.files.places import absolute_place
from teacher_cache.images.sources import absolute_source
from teacher_cache.settings import from_flat, to_flat
from teacher_cache.softlabels import TeacherCache
from teacher_cache.teacher.openclip import LoadedModel
from teacher_cache.teacher.registry import earlier_conventions


def describe_run(
    settings: TrainSettings,
    out: Path,
    cache: TeacherCache,
    student: PromptedCLIP,
    join: Join,
    processes: int,
    init: StoredStudent | None,
    plan: TextPlan | None,
) -> dict[str, Any]:
    """The content of `settings.json`: everything that decides the run's result."""
    inputs = {
        "cache": absolute_place(settings.cache),
        "images": settings.images and absolute_source(settings.images),
        "student_features": settings.student_features and absolute_place(settings.student_features),
        "init": settings.init and absolute_place(settings.init),
    }
    return {
        "format_version": RUN_FORMAT,
        "settings": settings.model_dump(mode="json") | inputs,
        FROM_RUN: places_of_inputs(settings, out, cache, student.base),
        "cache": asdict(cache.header),
        "student": {
            "model": student.base.name,
            "pretrained": student.base.pretrained,
            "weights_digest": student.base.digest,
            "config": student.base.config,
            "conventions": student.base.conventions.model_dump(mode="json"),
        },
        "templates": list(cache.vocabulary.templates),
        "mode": join.mode,
        "pixels": join.pixels,
        "init": None if init is None else init.digest,
        "processes": processes,
        "text_memory": student.text_memory,
        "text_plan": None if plan is None else asdict(plan),
        "samples_per_step": join.batch_size,
        "never_read": student.describe_unused(),
        "software": f"rpp {rpp_version()}, torch {torch.__version__}",
    }


def base_conventions(record: dict[str, Any]) -> Conventions | None:
    """Return the conventions of a recorded run's frozen model; None if they are those of a folder or the hub.

    Args:
        record: the run's `settings.json`.

    Raises:
        UsageError: the record is damaged.
    """
    student, teacher = record["student"], record["cache"]["teacher"]
    if stored := student.get("conventions"):
        try:
            return Conventions(**stored)
        except (TypeError, ValidationError) as error:
            raise UsageError(f"the run's record of its model's conventions is damaged: {stored}") from error
    if teacher["weights_digest"] == student.get("weights_digest"):
        return recorded_conventions(teacher)
    if not student.get("pretrained"):
        return None
    return earlier_conventions(student["model"], student["pretrained"])


def places_of_inputs(
    settings: TrainSettings, out: Path, cache: TeacherCache, base: LoadedModel
) -> dict[str, str]:
    """Where the cache, the teacher and the frozen model are, relative to the run's folder."""
    student = {"model": base.name, "pretrained": base.pretrained}
    return places_from_run(out, settings.cache, {"teacher": cache.teacher, "student": student})


def check_same_run(
    settings: TrainSettings,
    out: Path,
    record: dict[str, Any],
    cache: TeacherCache,
    base: LoadedModel,
    init: str | None,
) -> None:
    """Refuse to resume a run with settings, a cache or a model that would change its result.

    Args:
        record: the run's `settings.json`.
        base: the student's frozen model now; its place may differ.
        init: digest of the prompts that the run starts from; after a checkpoint, the recorded one.

    Raises:
        UsageError: what differs.
    """
    changed = changed_settings(record, settings)
    header = asdict(cache.header)
    compared = [
        ("cache weights", record["cache"]["teacher"]["weights_digest"], header["teacher"]["weights_digest"]),
        ("student weights", record["student"].get("weights_digest"), base.digest),
        ("prompts of --init", record.get("init"), init),
        ("student config", record["student"].get("config"), base.config),
    ]
    before, now = (recorded_conventions(teacher) for teacher in (record["cache"]["teacher"], cache.teacher))
    if before and now and before.fields != now.fields:
        compared.append(("cache conventions", described(before.fields), described(now.fields)))
    compared.append(("cache decoder", record["cache"].get("decoder", "pillow"), header["decoder"]))
    for name in ("sample_table_digest", "vocabulary_digest"):
        compared.append((f"cache {name}", record["cache"].get(name), header[name]))
    policy = record["cache"].get("view_policy")
    if isinstance(policy, dict):
        policy = ViewPolicy().model_dump() | policy  # an earlier version lacks later options
    compared.append(("cache view_policy", policy, header["view_policy"]))
    changed += [
        f"{name}: stored {stored}, requested {now}" for name, stored, now in compared if stored != now
    ]
    if changed:
        raise UsageError(
            f"the run {out} was created with different settings ({'; '.join(changed)}); use the stored "
            "settings or choose another --out"
        )


def changed_settings(record: dict[str, Any], settings: TrainSettings) -> list[str]:
    """What differs between the settings that decide a recorded run's result and the requested ones.

    Settings that the record lacks have their defaults: an earlier version did not have them. Settings that
    this version does not have are reported.
    """
    requested, recorded = to_flat(settings), flat_settings(record)
    unknown = {name: value for name, value in recorded.items() if name not in requested}
    try:
        known = {name: value for name, value in recorded.items() if name in requested}
        stored = to_flat(from_flat(type(settings), known))
    except UsageError as error:
        return [f"stored settings that this version of rpp does not accept: {error}"]
    return [
        f"{name}: stored {stored[name]}, requested {value}"
        for name, value in requested.items()
        if name not in FREE_ON_RESUME | MAY_MOVE and stored[name] != value
    ] + [f"{name}: stored {value}, not known to this version of rpp" for name, value in unknown.items()]
