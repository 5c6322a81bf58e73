"""Checksums of arrays, files and JSON records, which find damage of stored data."""

import hashlib
import io
import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from teacher_cache.errors import CacheDamagedError
from teacher_cache.store.folder import Sink


def bytes_checksum(content: bytes | memoryview) -> str:
    """Return the checksum of bytes."""
    return f"blake2b:{hashlib.blake2b(content, digest_size=16).hexdigest()}"


def checksum(array: NDArray[Any]) -> str:
    """Return the checksum of an array's values in row-major order."""
    return bytes_checksum(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


def file_checksum(file: Any) -> str:
    """Return the checksum of a file's bytes, and close it."""
    digest = hashlib.blake2b(digest_size=16)
    with file:
        while content := file.read(1 << 25):
            digest.update(content)
    return f"blake2b:{digest.hexdigest()}"


def with_checksum(record: dict[str, Any]) -> dict[str, Any]:
    """Return the record with a checksum of its content."""
    return {**record, "checksum": _seal(record)}


def without_checksum(record: Any, what: str) -> dict[str, Any]:
    """Return the record without its checksum.

    Args:
        what: name of the record in errors.

    Raises:
        CacheDamagedError: it is not what `with_checksum` returned.
    """
    if not isinstance(record, dict) or "checksum" not in record:
        raise CacheDamagedError(f"{what} is not readable: it has no checksum")
    content = {name: value for name, value in record.items() if name != "checksum"}
    try:
        seal = _seal(content)
    except (ValueError, RecursionError):  # surrogates, or nested too deeply: not written by `with_checksum`
        seal = ""
    if seal != record["checksum"]:
        raise CacheDamagedError(f"{what} is damaged: it differs from its checksum")
    return content


def _seal(record: dict[str, Any]) -> str:
    return bytes_checksum(json.dumps(record, ensure_ascii=False, sort_keys=True).encode())


class ChecksumWriter(io.RawIOBase):
    """Passes bytes on to a file and computes their checksum."""

    def __init__(self, file: Sink) -> None:
        super().__init__()
        self._file = file
        self._digest = hashlib.blake2b(digest_size=16)

    def writable(self) -> bool:
        """Return True."""
        return True

    def write(self, content: Any) -> int:
        """Write bytes to the file."""
        self._digest.update(content)
        self._file.write(content)
        return len(content)

    @property
    def checksum(self) -> str:
        """Checksum of the bytes written so far."""
        return f"blake2b:{self._digest.hexdigest()}"
