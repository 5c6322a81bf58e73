"""Stored students: the prompts and what they belong to, in one safetensors file.

Such a file lies in a run's folder (`student.safetensors`, beside what the run wrote down of itself), in a
folder of Hugging Face's layout (`model.safetensors`, with `config.json` beside it), or alone. What a student
computes is in `student.py`.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
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
    check_read_through,
    provenance,
    read_settings,
    require_student,
)
from teacher_cache.distribution import rpp_version
from teacher_cache.errors import RppError, UsageError
from teacher_cache.files.atomic_write import atomic_write
from teacher_cache.files.json_text import first_problem, parse_json
from teacher_cache.model_names import portable_model, portable_pretrained

FORMAT, FORMAT_VERSION = "rpp-student", 1


class StudentRecord(BaseModel):
    """What a student is, beside its tensors.

    Attributes:
        prompts: what prompts it has.
        model, pretrained: where the frozen model was at training.
        weights_digest: of the frozen model.
    """

    model_config = ConfigDict(frozen=True)

    format: str = f"{FORMAT}-{FORMAT_VERSION}"
    prompts: PromptSettings
    model: str
    pretrained: str | None
    weights_digest: str

    def portable(self) -> "StudentRecord":
        """The same without places of this machine: folders and files go by their last name."""
        model, pretrained = portable_model(self.model), portable_pretrained(self.pretrained)
        return self.model_copy(update={"model": model, "pretrained": pretrained})


class FolderRecord(StudentRecord):
    """What `config.json` holds: the record of `model.safetensors`, its digest, and how it was trained."""

    safetensors_digest: str
    training: dict[str, Any] | None


@dataclass(frozen=True)
class StoredStudent:
    """A student as it was stored.

    Attributes:
        path: the safetensors file.
        record: what it is.
        tensors: by 'TOWER.NAME', as `Prompts.tensors` names them.
        digest: of the file.
        provenance: what `run_record.provenance` says of the run that trained it; None if it is not known.
    """

    path: Path
    record: StudentRecord
    tensors: dict[str, Tensor]
    digest: str
    provenance: dict[str, Any] | None


def write_student(path: Path, record: StudentRecord, tensors: dict[str, Tensor]) -> Path:
    """Write the prompts and what they belong to, complete or not at all.

    Raises:
        RppError: it cannot be written, as on a full disk.
    """
    # one key: safetensors writes several in any order, and equal students should be equal files
    metadata = {"student": json.dumps(record.model_dump())}
    try:
        with atomic_write(path) as temporary:
            save_file({name: x.cpu().contiguous() for name, x in tensors.items()}, temporary, metadata)
    except (OSError, SafetensorError) as error:
        raise RppError(
            f"{path} cannot be written ({error}); make room and run the same command again, a training with "
            "--resume"
        ) from error
    return path


def write_folder(
    folder: Path, record: StudentRecord, tensors: dict[str, Tensor], trained: dict[str, Any] | None
) -> dict[str, Path]:
    """Write `model.safetensors` and `config.json`, each complete or not at all; both by name.

    Args:
        trained: the student's provenance.

    Raises:
        UsageError: the folder holds a run, or cannot be one.
        RppError: a file cannot be written, as on a full disk.
    """
    if os.path.exists(folder / STUDENT) or os.path.exists(folder / SETTINGS):
        raise UsageError(f"{folder} holds a run or its student; choose another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{folder} cannot be a folder: {error.strerror}") from error
    portable = record.portable()
    model = write_student(folder / MODEL, portable, tensors)
    config = FolderRecord(**portable.model_dump(), safetensors_digest=_digest(model), training=trained)
    try:
        with atomic_write(folder / CONFIG) as temporary:
            temporary.write_text(config.model_dump_json(indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise RppError(f"{folder / CONFIG} cannot be written: {error.strerror}") from error
    return {MODEL: model, CONFIG: folder / CONFIG}


def read_student(path: str | Path) -> StoredStudent:
    """Read a student: a run's folder, one of Hugging Face's layout, or a safetensors file of either.

    Raises:
        UsageError: no student there, a file that is none, or files of one folder that disagree.
    """
    path = Path(path)
    require_student(path)
    if _is_layout(path):
        return _read_layout(path)
    if os.path.isdir(path):
        return _read_file(path / STUDENT, read_provenance(path))
    return _read_file(path, None)


def read_provenance(path: Path) -> dict[str, Any] | None:
    """How the student of a folder was trained, see `run_record.provenance`; None if nothing is known.

    Raises:
        UsageError: a record that is damaged.
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
            f"{CONFIG} and {MODEL} in {folder} disagree ({', '.join(differ)}): one of them was changed or is "
            "another student's; fetch or export the folder again"
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
    check_read_through(training["teacher"], training["templates"])


def _read_file(path: Path, trained: dict[str, Any] | None) -> StoredStudent:
    with _damage(path), safe_open(path, framework="pt") as file:
        found = parse_json((file.metadata() or {}).get("student", "{}"))
        record = StudentRecord(**_checked_format(path, found))
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        _check_numbers(tensors)
        return StoredStudent(path, record, tensors, _digest(path), trained)


def _check_numbers(tensors: dict[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or not tensor.float().isfinite().all():
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


def _digest(path: Path) -> str:
    return f"blake2b:{hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()}"


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    try:
        yield
    except (
        *(SafetensorError, OSError, ValidationError, ValueError),
        *(LookupError, TypeError, AttributeError, RuntimeError, MemoryError),
    ) as error:
        found = first_problem(error) if isinstance(error, ValidationError) else str(error)
        reason = (found or type(error).__name__).splitlines()[0]
        raise UsageError(f"{path} is damaged or not a student: {reason}") from error
