"""What a run is: what `settings.json` records of it, and when another may continue it."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from student_train.model.stored import StoredStudent
from student_train.model.student import PromptedCLIP
from student_train.runs.record import FREE_ON_RESUME, MAY_MOVE, RUN_FORMAT
from student_train.training.settings import TrainSettings
from teacher_cache.distribution import rpp_version
from teacher_cache.errors import UsageError
from teacher_cache.softlabels import TeacherCache
from teacher_cache.teacher.openclip import LoadedModel


def describe_run(
    settings: TrainSettings,
    cache: TeacherCache,
    student: PromptedCLIP,
    mode: str,
    processes: int,
    samples_per_step: int,
    init: StoredStudent | None = None,
) -> dict[str, Any]:
    """What `settings.json` holds: everything that decides the run's result."""
    return {
        "format_version": RUN_FORMAT,
        "settings": settings.model_dump(mode="json"),
        "cache": asdict(cache.header),
        "student": {
            "model": student.base.name,
            "pretrained": student.base.pretrained,
            "weights_digest": student.base.digest,
            "config": student.base.config,
        },
        "templates": list(cache.vocabulary.templates),
        "mode": mode,
        "init": None if init is None else init.digest,
        "processes": processes,
        "samples_per_step": samples_per_step,
        "never_read": student.describe_unused(),
        "software": f"rpp {rpp_version()}, torch {torch.__version__}",
    }


def check_same_run(
    settings: TrainSettings,
    out: Path,
    record: dict[str, Any],
    cache: TeacherCache,
    base: LoadedModel,
    init: str | None,
) -> None:
    """Refuse to continue a run with settings, a cache or a model that would change its result.

    Args:
        record: what the run wrote down of itself.
        base: the student's frozen model now; where it lies does not matter.
        init: digest of the prompts that the run starts from now, or, behind a checkpoint, then.

    Raises:
        UsageError: what differs.
    """
    changed = changed_settings(record, settings)
    now_cache = asdict(cache.header)
    weights_now = now_cache["teacher"]["weights_digest"]  # not where the teacher lies
    compared = [
        ("cache weights", record["cache"].get("teacher", {}).get("weights_digest"), weights_now),
        ("student weights", record["student"].get("weights_digest"), base.digest),
        ("prompts of --init", record.get("init"), init),
        ("student config", record["student"].get("config"), base.config),
    ]
    for name in ("sample_table_digest", "vocabulary_digest", "view_policy"):
        compared.append((f"cache {name}", record["cache"].get(name), now_cache[name]))
    changed += [f"{name}: {there} there, {now} now" for name, there, now in compared if there != now]
    if changed:
        raise UsageError(f"the run {out} was begun otherwise ({'; '.join(changed)})")


def changed_settings(record: dict[str, Any], settings: TrainSettings) -> list[str]:
    """What is asked otherwise than a run has it, of the settings that decide its result by their value; and
    settings of the run's that are not known here, of another version of rpp."""
    asked = settings.model_dump(mode="json")
    changed = [
        f"{name}: {record['settings'].get(name)} there, {value} asked"
        for name, value in asked.items()
        if name not in FREE_ON_RESUME | MAY_MOVE and record["settings"].get(name) != value
    ]
    unknown = {name: value for name, value in record["settings"].items() if name not in asked}
    return changed + [f"{name}: {value} there, not known to this rpp" for name, value in unknown.items()]
