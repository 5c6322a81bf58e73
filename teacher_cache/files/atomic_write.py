"""Write a local file atomically: readers see the complete file or none."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from teacher_cache.errors import UsageError


@contextmanager
def atomic_write(path: Path, shared: bool = False, sync: bool = False) -> Iterator[Path]:
    """Yield a temporary path to write to; it is renamed to `path` if the block ends without an error.

    After an error the temporary file is removed: on a full disk it would take the last of the room. The
    permissions are those that the umask gives to new files, whichever library wrote the file (safetensors
    gives access to the owner only).

    Args:
        path: the file to create or replace, in a folder that exists.
        shared: other processes or threads may write the same file at the same time; each then has its own
            temporary file. Without it, a temporary file left by a killed process is replaced.
        sync: flush the content to the disk before the rename, so that a power failure leaves the old file
            or the new one.

    Raises:
        UsageError: `path` is a folder.
        OSError: the file cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}") if shared else _temporary(path)
    try:
        if not shared and temporary.is_file():
            temporary.unlink()  # its permissions may be others than those of a new file
        with open(temporary, "wb") as created:
            mode = os.fstat(created.fileno()).st_mode & 0o777
        yield temporary
        if temporary.is_file() and temporary.stat().st_mode & 0o777 != mode:
            with suppress(OSError):  # a file system without permissions
                temporary.chmod(mode)
        if sync:
            with open(temporary, "rb") as written:
                os.fsync(written.fileno())
        try:
            os.replace(temporary, path)
        except (IsADirectoryError, NotADirectoryError) as error:
            raise UsageError(f"cannot write {path} ({error.strerror}); remove what is there") from error
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def atomic_write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def make_folder(folder: Path, option: str = "--out ") -> None:
    """Create a folder for output, and its parents.

    Raises:
        UsageError: it cannot be created, or is a file; the message names `option`.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{option}{folder} cannot be a folder: {error.strerror}") from error


def require_writable(path: Path) -> None:
    """Check that `atomic_write(path)` can create a file, before long work whose result goes there.

    Raises:
        UsageError: no permission, a read-only disk, a missing folder or a name that is too long.
    """
    temporary = _temporary(path)
    try:
        temporary.touch()
        temporary.unlink()
    except OSError as error:
        raise UsageError(f"--out {path} cannot be written: {error.strerror}") from error


def _temporary(path: Path) -> Path:
    return path.with_name(f"{path.name}.tmp")
