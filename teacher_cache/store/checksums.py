"""Checksums of arrays, files and JSON records: how damage of what is stored is found."""

import hashlib
import io
import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from teacher_cache.errors import CacheDamagedError
from teacher_cache.store.folder import Sink

# What a codec may raise where its bytes were cut or overwritten.
CODEC_ERRORS = (ValueError, RuntimeError, LookupError, TypeError, ArithmeticError, MemoryError)


def bytes_checksum(content: bytes | memoryview) -> str:
    """Checksum of bytes."""
    return f"blake2b:{hashlib.blake2b(content, digest_size=16).hexdigest()}"


def checksum(array: NDArray[Any]) -> str:
    """Checksum of an array's decoded bytes in row-major order."""
    return bytes_checksum(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


def file_checksum(file: Any) -> str:
    """Checksum of all bytes of a file; closes it."""
    digest = hashlib.blake2b(digest_size=16)
    with file:
        while content := file.read(1 << 25):
            digest.update(content)
    return f"blake2b:{digest.hexdigest()}"


def sealed(record: dict[str, Any]) -> dict[str, Any]:
    """The record with the checksum of all that it says."""
    return {**record, "checksum": _seal(record)}


def unsealed(record: Any, what: str) -> dict[str, Any]:
    """The record without its checksum.

    Raises:
        CacheDamagedError: it is not what was sealed; `what` names it.
    """
    if not isinstance(record, dict) or "checksum" not in record:
        raise CacheDamagedError(f"{what} is not readable: it has no checksum")
    content = {name: value for name, value in record.items() if name != "checksum"}
    try:
        seal = _seal(content)
    except (ValueError, RecursionError):  # what cannot be written as JSON was not read from what we wrote
        seal = ""
    if seal != record["checksum"]:
        raise CacheDamagedError(f"{what} is damaged: it differs from its checksum")
    return content


def _seal(record: dict[str, Any]) -> str:
    return bytes_checksum(json.dumps(record, ensure_ascii=False, sort_keys=True).encode())


class ChecksumWriter(io.RawIOBase):
    """A file that is only written, and the checksum of what was written."""

    def __init__(self, file: Sink) -> None:
        super().__init__()
        self._file = file
        self._digest = hashlib.blake2b(digest_size=16)

    def writable(self) -> bool:
        """Yes."""
        return True

    def write(self, content: Any) -> int:
        """Write on."""
        self._digest.update(content)
        self._file.write(content)
        return len(content)

    @property
    def checksum(self) -> str:
        """Checksum of all that was written so far."""
        return f"blake2b:{self._digest.hexdigest()}"
