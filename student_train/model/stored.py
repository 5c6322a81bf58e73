"""Read and write stored students: one safetensors file with the prompts and their record.

The file is in a run's folder (`student.safetensors`), in a folder of Hugging Face's layout
(`model.safetensors` with `config.json`), or anywhere else. `student.py` computes with it.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from student_train.model.settings import PromptSettings
from student_train.runs.record import (
    CONFIG,
    MODEL,
    SETTINGS,
    STUDENT,
    check_teacher,
    provenance,
    read_settings,
    require_student,
)
from teacher_cache.conventions import Conventions
from teacher_cache.distribution import rpp_version
from teacher_cache.errors import RppError, UsageError
from teacher_cache.files.atomic_write import atomic_write, atomic_write_text, make_folder
from teacher_cache.files.json_text import first_problem, parse_json
from teacher_cache.files.places import local_path
from teacher_cache.model_names import portable_model, portable_pretrained

FORMAT, FORMAT_VERSION = "rpp-student", 1
FLOATS = ("F16", "BF16", "F32", "F64")  # dtypes of prompts, as safetensors names them


class ImportRecord(BaseModel):
    """Record of the published checkpoint that a student was imported from.

    Attributes:
        method: the method whose layout the checkpoint has, 'MaPLe' for example.
        file: last name of the checkpoint's path.
        file_digest: digest of the checkpoint.
        used: number of its tensors that became the student's prompts.
        redundant: number of its other tensors, which the frozen model or the class names determine.
    """

    model_config = ConfigDict(frozen=True)

    method: str
    file: str
    file_digest: str
    used: int
    redundant: int


class StudentRecord(BaseModel):
    """Record of a student beside its tensors. Options that did not exist when it was written get defaults.

    Attributes:
        prompts: settings of its prompts.
        model, pretrained: open_clip's name and tag, or folder and file, of the frozen model at training.
        weights_digest: digest of the frozen model's weights.
        imported: the published checkpoint that the prompts come from; None for prompts of our own runs.
        conventions: with which the frozen model was loaded; None in records of earlier versions.
    """

    model_config = ConfigDict(frozen=True)

    format: str = f"{FORMAT}-{FORMAT_VERSION}"
    prompts: PromptSettings
    model: str
    pretrained: str | None
    weights_digest: str
    imported: ImportRecord | None = None
    conventions: Conventions | None = None

    def portable(self) -> "StudentRecord":
        """Return the record without paths of this machine: of folders and files only the last name."""
        model, pretrained = portable_model(self.model), portable_pretrained(self.pretrained)
        return self.model_copy(update={"model": model, "pretrained": pretrained})


class FolderRecord(StudentRecord):
    """Content of `config.json`: the record of `model.safetensors`, its digest, and its training."""

    safetensors_digest: str
    training: dict[str, Any] | None


@dataclass(frozen=True)
class StoredStudent:
    """A student as stored.

    Attributes:
        path: the safetensors file.
        record: its record.
        tensors: [J, n, W] or [n, W] floating point by 'TOWER.NAME', named as in `Prompts.tensors`.
        digest: digest of the file.
        provenance: `record.provenance` of the run that trained it; None if unknown.
    """

    path: Path
    record: StudentRecord
    tensors: dict[str, Tensor]
    digest: str
    provenance: dict[str, Any] | None


def write_student(path: Path, record: StudentRecord, tensors: dict[str, Tensor]) -> Path:
    """Write the prompts and their record, completely or not at all.

    Raises:
        RppError: it cannot be written, for example because the disk is full.
    """
    # one key, because safetensors does not sort keys and equal students should be equal files
    metadata = {"student": json.dumps(record.model_dump())}
    try:
        with atomic_write(path) as temporary:
            save_file({name: x.cpu().contiguous() for name, x in tensors.items()}, temporary, metadata)
    except (OSError, SafetensorError) as error:
        raise RppError(
            f"{path} cannot be written ({error}); free disk space and run the same command again, "
            "rpp-train with --resume"
        ) from error
    return path


def write_folder(
    folder: Path, record: StudentRecord, tensors: dict[str, Tensor], training: dict[str, Any] | None
) -> dict[str, Path]:
    """Write `model.safetensors` and `config.json`, each completely or not at all.

    Args:
        training: the student's provenance.

    Returns:
        Both files by name.

    Raises:
        UsageError: the folder has a run, or cannot be created.
        RppError: a file cannot be written, for example because the disk is full.
    """
    if os.path.exists(folder / STUDENT) or os.path.exists(folder / SETTINGS):
        raise UsageError(f"{folder} has a run or its student; choose another folder")
    make_folder(folder, option="")
    portable = record.portable()
    model = write_student(folder / MODEL, portable, tensors)
    config = FolderRecord(**portable.model_dump(), safetensors_digest=file_digest(model), training=training)
    try:
        atomic_write_text(folder / CONFIG, config.model_dump_json(indent=2) + "\n")
    except OSError as error:
        raise RppError(f"{folder / CONFIG} cannot be written: {error.strerror}") from error
    return {MODEL: model, CONFIG: folder / CONFIG}


def read_student(path: str | Path) -> StoredStudent:
    """Read a student from a run's folder, a folder in Hugging Face's layout, or a safetensors file of either.

    Raises:
        UsageError: no student there, a file that is not a student, or files of a folder that disagree.
    """
    path = local_path(path)
    require_student(path)
    if _is_layout(path):
        return _read_layout(path)
    if os.path.isdir(path):
        stored = _read_file(path / STUDENT, read_provenance(path))
        return replace(stored, record=_with_places_of_today(path, stored.record))
    return _read_file(path, None)


def _with_places_of_today(run: Path, record: StudentRecord) -> StudentRecord:
    """Return the record with the frozen model where the run's own record finds it."""
    if not os.path.isfile(run / SETTINGS):
        return record
    found = read_settings(run)["student"]
    if found.get("weights_digest") != record.weights_digest:
        return record
    return record.model_copy(update={name: found.get(name) for name in ("model", "pretrained")})


def read_provenance(path: Path) -> dict[str, Any] | None:
    """Read how the student of a folder was trained (`record.provenance`); None if unknown.

    Raises:
        UsageError: the record is damaged.
    """
    if _is_layout(path):
        return _read_config(path / CONFIG).training
    return provenance(read_settings(path)) if os.path.isfile(path / SETTINGS) else None


def _is_layout(folder: Path) -> bool:
    a_run = any(os.path.isfile(folder / name) for name in (STUDENT, SETTINGS))
    return not a_run and any(os.path.isfile(folder / name) for name in (MODEL, CONFIG))


def _read_layout(folder: Path) -> StoredStudent:
    for name in (CONFIG, MODEL):
        if not (folder / name).is_file():
            raise UsageError(f"{folder} has no {name}; {CONFIG} and {MODEL} belong together")
    config = _read_config(folder / CONFIG)
    stored = _read_file(folder / MODEL, config.training)
    differ = [name for name, value in stored.record if value != getattr(config, name)]
    if not differ and stored.digest != config.safetensors_digest:
        differ = ["safetensors_digest"]
    if differ:
        raise UsageError(
            f"{CONFIG} and {MODEL} in {folder} disagree ({', '.join(differ)}): one of them was changed or "
            "belongs to another student; fetch or export the folder again"
        )
    return stored


def _read_config(path: Path) -> FolderRecord:
    with _damage(path):
        record = _checked_format(path, parse_json(path.read_text(encoding="utf-8")))
        config = FolderRecord(**record)
        if config.training is not None:
            _check_training(config.training)
        return config


def _check_training(training: dict[str, Any]) -> None:
    for name, kind in {"settings": dict, "teacher": dict, "cache": dict, "templates": list}.items():
        if not isinstance(training.get(name), kind):
            raise ValueError(f"its training has no {name}")
    check_teacher(training["teacher"], training["templates"])


def _read_file(path: Path, training: dict[str, Any] | None) -> StoredStudent:
    with _damage(path), safe_open(path, framework="pt") as file:
        found = parse_json((file.metadata() or {}).get("student", "{}"))
        record = StudentRecord(**_checked_format(path, found))
        tensors = {name: _tensor(file, name) for name in file.keys()}  # noqa: SIM118 - not a dict
        return StoredStudent(path, record, tensors, file_digest(path), training)


def _tensor(file: Any, name: str) -> Tensor:
    """Read a tensor of a safetensors file whose dtype and shape torch can represent."""
    header = file.get_slice(name)
    shape = header.get_shape()
    if header.get_dtype() in FLOATS and len(shape) <= 3 and 0 not in shape:  # [J, n, W] or [n, W]
        tensor: Tensor = file.get_tensor(name)
        if tensor.isfinite().all():
            return tensor
    raise ValueError(f"its prompts {name} are not finite numbers")


def _checked_format(path: Path, record: Any) -> dict[str, Any]:
    if not isinstance(record, dict):
        raise ValueError("it has no record")
    name, _, number = str(record.get("format")).rpartition("-")
    if name != FORMAT or not number.isdecimal() or int(number) < FORMAT_VERSION:
        raise UsageError(f"{path} is not a student (format {record.get('format')}, not {FORMAT}-N)")
    if int(number) > FORMAT_VERSION:
        raise UsageError(
            f"{path} has student format {int(number)}; rpp {rpp_version()} reads format {FORMAT_VERSION}: "
            "install a newer rpp-clip"
        )
    return record


def file_digest(path: Path) -> str:
    """Return the digest of a file's bytes."""
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16))
    return f"blake2b:{digest.hexdigest()}"


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    """Raise a UsageError that names the file for whatever reading a damaged one raises."""
    try:
        yield
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}") from error
    except (SafetensorError, ValueError) as error:  # a ValidationError is a ValueError
        if isinstance(error, ValidationError) and error.errors()[0]["type"] == "extra_forbidden":
            option = error.errors()[0]["loc"][-1]
            raise UsageError(
                f"{path} has the option '{option}', which rpp {rpp_version()} does not know; install a newer "
                "rpp-clip"
            ) from error
        text = first_problem(error) if isinstance(error, ValidationError) else str(error)
        reason = (text or type(error).__name__).splitlines()[0]
        raise UsageError(f"{path} is damaged or not a student: {reason}") from error
