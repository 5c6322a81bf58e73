"""Locks between processes on one machine or on a shared file system.

`flock` locks the file. Where the file system does not have it, `lockf` does, and where that is missing too,
an exclusive file with its owner (`owner_record.py`). That file is written in each case, so that machines
that lock in different ways exclude each other.

Written here rather than taken from `filelock`: a sweep passes the descriptor to its child processes, so that
they keep a `flock` if their parent is killed, and `filelock` has neither `lockf` nor an owner to take over.
"""

import errno
import fcntl
import os
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from teacher_cache.errors import RppError, UsageError
from teacher_cache.files.atomic_write import atomic_write
from teacher_cache.files.owner_record import HeldError, OwnerRecord, read_record, say

POLL_SECONDS = 0.2
LONGEST_RECORD = 4096  # bytes


@dataclass(frozen=True)
class _Held:
    """A lock of this process. `record` is None if the lock file alone protects, as on a full disk."""

    descriptor: int
    record: OwnerRecord | None


_held: dict[tuple[int, int], _Held] = {}  # by device and inode
_mutex = threading.Lock()


@contextmanager
def file_lock(path: Path, busy: RppError, wait_seconds: float = 0.0) -> Iterator[int]:
    """Lock a file for the length of the block, and yield its descriptor.

    The operating system releases the lock when the last process with the descriptor ends; a `lockf` ends with
    this process, and an exclusive file is taken over. A forked process closes its copy; a program that is
    started has one if it is passed on (`pass_fds` of `subprocess`). The file is created if it is missing, and
    stays; its content is neither read nor changed. `PATH.owner` exists while the lock is held.

    Args:
        path: the lock file.
        busy: raised, with the holder if it is known, if another process or another block of this one has the
            lock.
        wait_seconds: how long to wait for the lock.

    Raises:
        UsageError: `path` is a link, a folder, a pipe or a device.
        OSError: the file cannot be created.
    """
    deadline = time.monotonic() + wait_seconds
    while True:
        try:
            key, held = _acquire(path)
            break
        except HeldError as error:
            if time.monotonic() >= deadline:
                raise error.explain(busy) from None
        time.sleep(POLL_SECONDS)
    try:
        yield held.descriptor
    finally:
        with _mutex:
            if _held.get(key) is held:  # a forked process has closed it
                if held.record is not None:
                    held.record.release()
                del _held[key]
                os.close(held.descriptor)


def _acquire(path: Path) -> tuple[tuple[int, int], _Held]:
    place = RecordFile(path.with_name(f"{path.name}.owner"))
    with _mutex:
        # before the file is opened: closing it would release a `lockf` that this process has
        with suppress(FileNotFoundError):
            known = os.lstat(path)
            if (known.st_dev, known.st_ino) in _held:
                raise HeldError(None)
        descriptor = _open_regular(path)
        try:
            kind = _lock_descriptor(descriptor, path, place)
            if kind is None:
                with suppress(OSError):
                    raise HeldError(read_record(place))
                raise HeldError(None)
            record: OwnerRecord | None = None
            try:
                record = OwnerRecord(place, kind)
                record.acquire(settle=kind == "record")
            except OSError:  # a full disk, or a folder of someone else
                if kind == "record":
                    raise
                record = None
            opened = os.fstat(descriptor)
            key, held = (opened.st_dev, opened.st_ino), _Held(descriptor, record)
            _held[key] = held
        except BaseException:
            os.close(descriptor)
            raise
    return key, held


def _open_regular(path: Path) -> int:
    """Open a regular file without following a link or waiting for a pipe's other end."""
    refused = UsageError(f"{path} is a lock file and has to be a regular file; remove what is there")
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise refused from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise refused
    return descriptor


def _lock_descriptor(descriptor: int, path: Path, place: "RecordFile") -> str | None:
    """Lock a file; return how, `record` if only the exclusive file remains, or None if another has the lock.

    Lustre without `-o flock` and some container mounts answer ENOSYS, NFS without its lock service ENOLCK,
    other network file systems EOPNOTSUPP, EINVAL or EBADF: any answer but a conflict leads to the next way.
    """
    answers = []
    for kind, lock, conflicts in (
        ("flock", fcntl.flock, (errno.EAGAIN,)),
        ("lockf", fcntl.lockf, (errno.EAGAIN, errno.EACCES)),
    ):
        try:
            lock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in conflicts:
                return None
            answers.append(f"{kind}: {error.strerror}")
        else:
            return kind
    say(
        f"the file system of {path} has no file locks ({', '.join(answers)}); so that no two processes "
        f"write the same files, {place.url} locks instead: it names this process and is renewed every minute"
    )
    return "record"


class RecordFile:
    """The record of a lock's owner in a file beside it."""

    def __init__(self, path: Path) -> None:
        self.url, self._path = str(path), path

    def create(self, content: bytes) -> None:
        """See `RecordPlace`."""
        descriptor = os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        try:
            with open(descriptor, "wb") as file:
                file.write(content)
        except OSError:
            self.remove()
            raise

    def read(self) -> bytes:
        """See `RecordPlace`."""
        descriptor = os.open(self._path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(descriptor, "rb") as file:
            return file.read(LONGEST_RECORD)

    def modified(self) -> float:
        """See `RecordPlace`."""
        try:
            return os.lstat(self._path).st_mtime
        except FileNotFoundError:
            return 0.0

    def replace(self, content: bytes) -> None:
        """See `RecordPlace`."""
        with atomic_write(self._path, shared=True) as temporary:
            temporary.write_bytes(content)

    def remove(self) -> None:
        """See `RecordPlace`."""
        self._path.unlink(missing_ok=True)


def _close_in_child() -> None:
    global _mutex
    _mutex = threading.Lock()  # another thread of the parent may have held it
    for held in _held.values():
        os.close(held.descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_close_in_child)
