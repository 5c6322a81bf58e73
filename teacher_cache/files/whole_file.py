"""A local file that appears complete or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from teacher_cache.errors import UsageError


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Where to write what shall be `path`; it gets there when the block ends without an error.

    It may be read by whom the umask lets read, whatever wrote it: safetensors would keep it to its owner.
    After an error nothing is left of it: on a full disk it would take the little room that is left.
    """
    temporary = _temporary(path)
    try:
        yield temporary
        if temporary.is_file() and temporary.stat().st_mode & 0o777 != _usual_mode():
            with suppress(OSError):  # a file system without modes
                temporary.chmod(_usual_mode())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def require_writable(path: Path) -> None:
    """Refuse a place that `whole_file` cannot write to, before the work whose result shall get there.

    Raises:
        UsageError: no right to write there, a disk that is only read, or a name that is too long.
    """
    temporary = _temporary(path)
    try:
        temporary.touch()
        temporary.unlink()
    except OSError as error:
        raise UsageError(f"--out {path} cannot be written: {error.strerror}") from error


def _temporary(path: Path) -> Path:
    return path.with_name(f"{path.name}.tmp")


def _usual_mode() -> int:
    """Rights of a new file. The umask can only be read by setting it; for that moment to a strict one."""
    mask = os.umask(0o077)
    os.umask(mask)
    return 0o666 & ~mask


def write_whole(path: Path, text: str) -> None:
    """Write a file completely or not at all."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
