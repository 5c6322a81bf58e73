"""What a run wrote down of itself: `settings.json` and `metrics.jsonl`, and what of it may be told to others.

What `settings.json` holds is decided in `run_identity.py`; the rest of a run's folder is in `run_folder.py`.
Nothing here takes time to import.
"""

import os
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from teacher_cache.distribution import rpp_version
from teacher_cache.errors import UsageError
from teacher_cache.files.json_text import parse_json
from teacher_cache.model_names import portable_model, portable_pretrained

SETTINGS = "settings.json"
METRICS = "metrics.jsonl"
CHECKPOINT = "checkpoint.pt"
STUDENT = "student.safetensors"
MODEL, CONFIG = "model.safetensors", "config.json"  # as Hugging Face's hub has them
RESULTS = "results.json"  # what a recipe measured of the run
RUN_FORMAT = 1  # of `settings.json` and the folder around it; records that name none are of the first

# What may differ between a run and its continuation without changing its result.
FREE_ON_RESUME = {"resume", "reader", "workers", "log_every", "checkpoint_every", "log", "device", "out"}
# Compared by what they hold.
MAY_MOVE = {"images", "cache", "student_features", "student", "pretrained", "init"}
# What a cache's header says of its content; the rest is where it lies and how it is cut.
OF_CACHE = (
    *("samples", "classes", "encoding", "view_policy", "max_pixels"),
    *("vocabulary", "vocabulary_digest", "sample_table_digest", "software"),
)


def read_settings(out: Path) -> dict[str, Any]:
    """What a run wrote down of itself.

    Raises:
        UsageError: no run there, one of a newer version, or a file that is not what a run writes.
    """
    try:
        record = parse_json((out / SETTINGS).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UsageError(f"no run at {out}: it has no {SETTINGS}") from error
    except OSError as error:
        raise UsageError(f"{out / SETTINGS} cannot be read: {error.strerror}") from error
    except ValueError as error:  # no JSON, or no text
        raise UsageError(f"{out / SETTINGS} is damaged: {error}") from error
    parts = {"settings": dict, "cache": dict, "student": dict, "templates": list}
    try:
        if not isinstance(record, dict):
            raise ValueError("it is no record")
        _require_known_format(out, record)
        for name, kind in parts.items():
            if not isinstance(record.get(name), kind):
                raise ValueError(f"it has no {name}")
        check_read_through(record["cache"].get("teacher"), record["templates"])
    except ValueError as error:
        raise UsageError(f"{out / SETTINGS} is damaged: {error}") from error
    found: dict[str, Any] = record
    return found


def _require_known_format(out: Path, record: dict[str, Any]) -> None:
    stored = record.get("format_version", 1)
    if type(stored) is not int or stored < 1:
        raise ValueError(f"it names run format {stored!r}")
    if stored > RUN_FORMAT:
        writer = record.get("software", "a newer rpp")
        raise UsageError(
            f"the run {out} has run format {stored}, written by {writer}; rpp {rpp_version()} reads format "
            f"{RUN_FORMAT}: install a newer rpp-clip"
        )


def flat_settings(record: dict[str, Any]) -> dict[str, Any]:
    """A run's settings by the flat names that options and recipes use."""
    settings = dict(record["settings"])
    prompts = settings.pop("prompts", None)
    return settings | (prompts if isinstance(prompts, dict) else {})


def read_results(out: Path) -> dict[str, Any]:
    """What a recipe or a sweep measured of a run; empty if nothing is there.

    Raises:
        UsageError: it cannot be read, or is no table of results.
    """
    try:
        found = parse_json((out / RESULTS).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UsageError(f"{out / RESULTS} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise UsageError(f"{out / RESULTS} is damaged: it is no table of results")
    return found


def has_steps(out: Path) -> bool:
    """Whether a run in the folder has left anything behind that beginning anew would lose."""
    kept = any(os.path.exists(out / name) for name in (CHECKPOINT, STUDENT))
    return kept or any(True for _ in read_metrics(out))


def read_metrics(out: Path) -> Iterator[dict[str, Any]]:
    """The lines of `metrics.jsonl`, one at a time; those that cannot be read, as a crash may leave, are left
    out, and so is all that follows where reading fails."""
    with suppress(OSError), open(out / METRICS, encoding="utf-8", errors="replace") as file:
        yield from (line for line in map(_metrics_line, file) if line is not None)


def last_metrics(out: Path) -> dict[str, Any] | None:
    """The last line of `metrics.jsonl`, if there is one."""
    last = deque(read_metrics(out), maxlen=1)
    return last[0] if last else None


def _metrics_line(text: str) -> dict[str, Any] | None:
    try:
        line = parse_json(text) if text.endswith("\n") else None
    except ValueError:
        return None
    whole = isinstance(line, dict) and all(
        isinstance(line.get(name), int | float) for name in ("step", "loss")
    )
    return line if whole else None


def require_student(path: str | Path) -> None:
    """Refuse what is neither a run's folder with a student, nor one of Hugging Face's layout, nor a file.

    Raises:
        UsageError: no student there, or a run that is not finished.
    """
    if not os.path.isdir(path):
        if not os.path.isfile(path):  # a text too long for a path is none; pathlib would raise
            raise UsageError(f"no student at {path}")
    elif not any(os.path.isfile(os.path.join(path, name)) for name in (STUDENT, MODEL, CONFIG)):
        if os.path.isfile(os.path.join(path, SETTINGS)):
            raise UsageError(f"the run {path} is not finished; go on with rpp-train --out {path} --resume")
        raise UsageError(f"no student at {os.path.join(path, STUDENT)}")


def look_into(out: Path, resume: bool) -> dict[str, Any] | None:
    """Refuse a folder in which no run can begin, or go on, before anything takes time.

    Returns:
        What the run to go on with wrote down of itself; None if one begins, as where no step was ever taken.

    Raises:
        UsageError: the folder holds a run, or holds none, or cannot be one.
    """
    if resume:
        record = read_settings(out)
        return record if has_steps(out) else None
    if has_steps(out):
        raise UsageError(f"{out} holds a run already; choose another --out, or go on with --resume")
    there = next(path for path in (out.absolute(), *out.absolute().parents) if os.path.exists(path))
    if not there.is_dir():
        raise UsageError(f"--out {out} cannot be a folder: {there} is a file")
    if not os.access(there, os.W_OK):
        raise UsageError(f"--out {out} cannot be written: no right to write to {there}")
    return None


def described(record: dict[str, Any]) -> dict[str, Any]:
    """`provenance` with the prompt options and the frozen model, for who has no student's file beside it."""
    student = record["student"]
    return {
        **provenance(record),
        "prompts": record["settings"]["prompts"],
        "student": {
            "model": portable_model(student["model"]),
            "pretrained": portable_pretrained(student["pretrained"]),
            "weights_digest": student["weights_digest"],
        },
    }


def check_read_through(teacher: Any, templates: list[Any]) -> None:
    """What an evaluation takes of a record without a further look.

    Raises:
        ValueError: a teacher that does not say what it is, or templates that are no texts.
    """
    if not all(isinstance(text, str) for text in templates):
        raise ValueError("its templates are not texts")
    if not isinstance(teacher, dict):
        raise ValueError("it has no teacher")
    for name in ("model", "weights_digest", *(["pretrained"] if teacher.get("pretrained") else [])):
        if not isinstance(teacher.get(name), str):
            raise ValueError(f"its teacher has no {name}")


def provenance(record: dict[str, Any]) -> dict[str, Any]:
    """Of what `read_settings` gave, all that decided the run's result and nothing of its machine.

    Returns:
        settings (those that a continued run may not change), teacher, cache, templates, mode, init,
        processes, samples_per_step and software. Folders and files go by their last name, or not at all.
    """
    unsaid = FREE_ON_RESUME | MAY_MOVE | {"prompts"}  # prompts are in the student's own record
    cache = record["cache"]
    teacher = {**cache["teacher"], "model": portable_model(cache["teacher"]["model"])}
    if teacher.get("pretrained"):
        teacher["pretrained"] = portable_pretrained(teacher["pretrained"])
    return {
        "settings": {name: value for name, value in record["settings"].items() if name not in unsaid},
        "teacher": teacher,
        "cache": {name: cache[name] for name in OF_CACHE if name in cache},
        "templates": record["templates"],
        **{name: record.get(name) for name in ("mode", "init", "processes", "samples_per_step", "software")},
    }
