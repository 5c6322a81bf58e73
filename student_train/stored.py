"""Stored students: the prompts and what they belong to, in one safetensors file.

Such a file lies in a run's folder (`student.safetensors`, beside what the run wrote down of itself), or
alone. What a student computes is in `student.py`.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from student_train.prompts import PromptSettings
from student_train.run_record import SETTINGS, provenance, read_settings
from student_train.whole_file import whole_file
from teacher_cache.errors import RppError, UsageError

STUDENT = "student.safetensors"
FORMAT = "rpp-student-1"


class StudentRecord(BaseModel):
    """What a student is, beside its tensors.

    Attributes:
        prompts: what prompts it has.
        model, pretrained: where the frozen model was at training.
        weights_digest: of the frozen model.
    """

    model_config = ConfigDict(frozen=True)

    format: str = FORMAT
    prompts: PromptSettings
    model: str
    pretrained: str | None
    weights_digest: str


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
        with whole_file(path) as temporary:
            save_file({name: x.cpu().contiguous() for name, x in tensors.items()}, temporary, metadata)
    except (OSError, SafetensorError) as error:
        raise RppError(
            f"{path} cannot be written ({error}); make room and run the same command again, a training with "
            "--resume"
        ) from error
    return path


def read_student(path: str | Path) -> StoredStudent:
    """Read what `rpp-train` has written: a run's folder, or its `student.safetensors`.

    Raises:
        UsageError: no student there, or a file that is none.
    """
    path = Path(path)
    if path.is_dir():
        if not (path / STUDENT).is_file() and (path / SETTINGS).is_file():
            raise UsageError(f"the run {path} is not finished; go on with rpp-train --out {path} --resume")
        return _read_file(path / STUDENT, read_provenance(path))
    return _read_file(path, None)


def read_provenance(path: Path) -> dict[str, Any] | None:
    """How the student of a folder was trained, see `run_record.provenance`; None if nothing is known.

    Raises:
        UsageError: a record that is damaged.
    """
    return provenance(read_settings(path)) if (path / SETTINGS).is_file() else None


def _read_file(path: Path, trained: dict[str, Any] | None) -> StoredStudent:
    if not path.is_file():
        raise UsageError(f"no student at {path}")
    with _damage(path), safe_open(path, framework="pt") as file:
        found = json.loads((file.metadata() or {}).get("student", "{}"))
        record = StudentRecord(**_checked_format(path, found))
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        return StoredStudent(path, record, tensors, _digest(path), trained)


def _checked_format(path: Path, record: dict[str, Any]) -> dict[str, Any]:
    if record.get("format") != FORMAT:
        raise UsageError(f"{path} is not a student (format {record.get('format')}, not {FORMAT})")
    return record


def _digest(path: Path) -> str:
    return f"blake2b:{hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()}"


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    try:
        yield
    except (
        SafetensorError,
        OSError,
        ValidationError,
        KeyError,
        TypeError,
        AttributeError,
        ValueError,
    ) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UsageError(f"{path} is damaged or not a student: {reason}") from error
