"""What a run's folder records: `settings.json`, `metrics.jsonl`, `results.json`.

What `settings.json` holds is decided in `training/run_identity.py`; folders are written in `folder.py`.
Nothing here takes time to import.
"""

import os
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from teacher_cache.distribution import rpp_version
from teacher_cache.errors import UsageError
from teacher_cache.files.json_text import parse_json
from teacher_cache.files.places import local_path, place_of
from teacher_cache.files.remote import is_remote
from teacher_cache.model_names import LOCAL_DIR, portable_model, portable_pretrained

SETTINGS = "settings.json"
METRICS = "metrics.jsonl"
CHECKPOINT = "checkpoint.safetensors"
EARLIER_CHECKPOINT = "checkpoint.pt"  # of rpp before checkpoints became safetensors
STUDENT = "student.safetensors"
MODEL, CONFIG = "model.safetensors", "config.json"  # names of Hugging Face's hub
RESULTS = "results.json"  # what a recipe measured of the run
FROM_RUN = "from_run"  # in `settings.json`: places relative to the run's folder
# Of `settings.json` and its folder; a record without one has format 1. Format 2 has safetensors checkpoints.
RUN_FORMAT = 2

# Settings that may change when a run is resumed, without changing its result.
FREE_ON_RESUME = {
    "resume",
    "reader",
    "workers",
    "text_memory",
    "compile",
    "log_every",
    "checkpoint_every",
    "log",
    "device",
    "out",
    "lock",
}
# Settings whose content is compared, not their value.
MAY_MOVE = {"images", "cache", "student_features", "student", "pretrained", "weights_like", "init"}
# Fields of a cache's header that describe its content; the others say where it is and how it is divided.
CACHE_FIELDS = (
    *("samples", "classes", "encoding", "view_policy", "max_pixels", "decoder"),
    *("vocabulary", "vocabulary_digest", "sample_table_digest", "software"),
)


def read_settings(out: Path) -> dict[str, Any]:
    """Read `settings.json` of a run.

    Raises:
        UsageError: no run there, a run of a newer version, or a damaged file.
    """
    parts = {"settings": dict, "cache": dict, "student": dict, "templates": list}
    try:
        record: dict[str, Any] = parse_json((out / SETTINGS).read_text(encoding="utf-8"))
        if not isinstance(record, dict):
            raise ValueError("expected a JSON object")
        _require_known_format(out, record)
        for name, kind in parts.items():
            if not isinstance(record.get(name), kind):
                raise ValueError(f"{name!r} is missing or of another type")
        check_teacher(record["cache"].get("teacher"), record["templates"])
        _find_moved_models(out, record)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UsageError(f"no run at {out}: it has no {SETTINGS}") from error
    except OSError as error:
        raise UsageError(f"{out / SETTINGS} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"{out / SETTINGS} is damaged: {error}") from error
    return record


def places_from_run(out: Path, cache: str, models: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Return the local places that a run reads, relative to its folder, to find them when all moved together.

    Args:
        cache: of the run; a path or a URL.
        models: `model` and `pretrained` of teacher and student, as `load_model` names them.

    Returns:
        Relative paths by name: `cache`, and `teacher_model`, `student_pretrained` and so on for folders and
        files.
    """
    places = {"cache": place_of(cache)}
    for owner, model in models.items():
        for name in ("model", "pretrained"):
            place = str(model.get(name) or "").removeprefix(LOCAL_DIR)
            if os.path.isabs(place):
                places[f"{owner}_{name}"] = place
    folder = os.path.realpath(out)
    local = {name: place for name, place in places.items() if not is_remote(place)}
    return {name: os.path.relpath(os.path.realpath(place), folder) for name, place in local.items()}


def _find_moved_models(out: Path, record: dict[str, Any]) -> None:
    """Replace places of models that do not exist by those relative to the run, where these exist.

    Whoever loads a model compares its digest with the recorded one.
    """
    for owner, model in {"teacher": record["cache"]["teacher"], "student": record["student"]}.items():
        for name, prefix in {"model": LOCAL_DIR, "pretrained": ""}.items():
            stored, moved = model.get(name), _beside(out, record, f"{owner}_{name}")
            if (
                isinstance(stored, str)
                and moved is not None
                and not os.path.exists(stored.removeprefix(prefix))
                and os.path.exists(moved)
            ):
                model[name] = prefix + moved


def _beside(out: Path, record: dict[str, Any], name: str) -> str | None:
    """Return a place of `places_from_run`, seen from where the run is now."""
    places = record.get(FROM_RUN)
    relative = places.get(name) if isinstance(places, dict) else None
    if not isinstance(relative, str):
        return None
    return os.path.normpath(os.path.join(os.path.realpath(out), relative))


def places_of_cache(out: Path, record: dict[str, Any]) -> list[str]:
    """Return where the cache of a run may be: as recorded, and relative to the run's folder.

    Runs of earlier versions recorded their cache as it was typed. It is looked for relative to the working
    directory, and relative to the folder in which the run was trained, if the folder of the run was typed
    relative as well.

    Args:
        out: the run's folder.
        record: its `settings.json`.
    """
    stored = str(record["settings"].get("cache"))
    if is_remote(stored):
        return [place_of(stored)]
    places = [str(Path(stored).absolute())]
    if stored.startswith("~"):
        places.append(os.path.expanduser(stored))
    elif FROM_RUN not in record and not os.path.isabs(stored):
        trained = record["settings"].get("out") or f"runs/{out.absolute().name}"
        if not os.path.isabs(trained):
            relative = os.path.relpath(stored, trained)
            places.append(os.path.normpath(os.path.join(os.path.realpath(out), relative)))
    if beside := _beside(out, record, "cache"):
        places.append(beside)
    return list(dict.fromkeys(places))


def _require_known_format(out: Path, record: dict[str, Any]) -> None:
    stored = record.get("format_version", 1)
    if type(stored) is not int or stored < 1:
        raise ValueError(f"invalid run format {stored!r}")
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
    """Read what a recipe or a sweep measured of a run; empty if it measured nothing.

    Raises:
        UsageError: `results.json` cannot be read or is damaged.
    """
    try:
        found = parse_json((out / RESULTS).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UsageError(f"{out / RESULTS} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise UsageError(f"{out / RESULTS} is damaged: expected a JSON object")
    return found


def find_checkpoint(out: Path) -> Path | None:
    """The checkpoint of a run, if there is one."""
    paths = (out / CHECKPOINT, out / EARLIER_CHECKPOINT)
    return next((path for path in paths if os.path.exists(path)), None)


def has_steps(out: Path) -> bool:
    """Whether the folder has results of training steps, which a new run would lose."""
    kept = find_checkpoint(out) is not None or os.path.exists(out / STUDENT)
    return kept or any(True for _ in read_metrics(out))


def read_metrics(out: str | os.PathLike[str]) -> Iterator[dict[str, Any]]:
    """Yield the lines of `metrics.jsonl`.

    Lines that cannot be read, as a crash may leave, are skipped, and so is everything after a read error.
    """
    with suppress(OSError), open(local_path(out) / METRICS, encoding="utf-8", errors="replace") as file:
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
    complete = isinstance(line, dict) and all(
        isinstance(line.get(name), int | float) for name in ("step", "loss")
    )
    return line if complete else None


def require_student(path: str | Path) -> None:
    """Refuse a path that is neither a run with a student, nor a folder of Hugging Face's layout, nor a file.

    Raises:
        UsageError: no student there, or a run that is not finished.
    """
    if not os.path.isdir(path):
        if not os.path.isfile(path):  # os.path: pathlib raises for a name that is too long
            raise UsageError(f"no student at {path}")
    elif not any(os.path.isfile(os.path.join(path, name)) for name in (STUDENT, MODEL, CONFIG)):
        if os.path.isfile(os.path.join(path, SETTINGS)):
            raise UsageError(
                f"the run {path} is not finished; resume it with rpp-train --out {path} --resume"
            )
        raise UsageError(f"no student at {os.path.join(path, STUDENT)}")


def require_no_run(folder: Path | None) -> None:
    """Refuse a folder for several runs that is itself a run.

    Raises:
        UsageError: it is one.
    """
    if folder is not None and os.path.isfile(folder / SETTINGS):
        raise UsageError(f"{folder} is the folder of one run; choose another out for the runs of this recipe")


def require_startable(out: Path, resume: bool) -> dict[str, Any] | None:
    """Refuse a folder in which no run can start, or resume, before anything takes time.

    Returns:
        The record of the run to resume; None for a new run, also where the earlier one took no step.

    Raises:
        UsageError: the folder has a run already, has none to resume, or cannot be created.
    """
    if resume:
        record = read_settings(out)
        return record if has_steps(out) else None
    if has_steps(out):
        raise UsageError(f"{out} already has a run; choose another --out, or resume with --resume")
    nearest = next(path for path in (out.absolute(), *out.absolute().parents) if os.path.exists(path))
    if not nearest.is_dir():
        raise UsageError(f"--out {out} cannot be a folder: {nearest} is a file")
    if not os.access(nearest, os.W_OK):
        raise UsageError(f"--out {out} cannot be written: no permission to write to {nearest}")
    return None


def public_record(record: dict[str, Any]) -> dict[str, Any]:
    """`provenance` with the prompt options and the frozen model, for logs without the student's file."""
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


def check_teacher(teacher: Any, templates: list[Any]) -> None:
    """Check the types of what an evaluation reads from a record.

    Raises:
        ValueError: a teacher without a name or digest, or templates that are not strings.
    """
    if not all(isinstance(text, str) for text in templates):
        raise ValueError("'templates' are not strings")
    if not isinstance(teacher, dict):
        raise ValueError("'teacher' is missing or of another type")
    for name in ("model", "weights_digest", *(["pretrained"] if teacher.get("pretrained") else [])):
        if not isinstance(teacher.get(name), str):
            raise ValueError(f"the {name!r} of the teacher is missing or not a string")


def provenance(record: dict[str, Any]) -> dict[str, Any]:
    """What decided the result of a run, without anything about its machine.

    Args:
        record: as `read_settings` returns it.

    Returns:
        settings (those that a resumed run may not change), teacher, cache, templates, mode, init,
        processes, samples_per_step and software. Folders and files are reduced to their last name or left
        out.
    """
    left_out = FREE_ON_RESUME | MAY_MOVE | {"prompts"}  # the student's own record has the prompts
    cache = record["cache"]
    teacher = {**cache["teacher"], "model": portable_model(cache["teacher"]["model"])}
    if teacher.get("pretrained"):
        teacher["pretrained"] = portable_pretrained(teacher["pretrained"])
    return {
        "settings": {name: value for name, value in record["settings"].items() if name not in left_out},
        "teacher": teacher,
        "cache": {name: cache[name] for name in CACHE_FIELDS if name in cache},
        "templates": record["templates"],
        **{name: record.get(name) for name in ("mode", "init", "processes", "samples_per_step", "software")},
    }
