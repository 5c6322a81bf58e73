"""Locks between processes on one machine or on a shared file system that supports `flock`.

Written here rather than taken from `filelock`: a sweep passes the descriptor to its child processes, so that
they keep the lock if their parent is killed.
"""

import errno
import fcntl
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from teacher_cache.errors import RppError, UsageError

POLL_SECONDS = 0.2
NOT_SUPPORTED = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)  # of flock, on some network file systems
_locked: set[int] = set()  # descriptors of this process


@contextmanager
def file_lock(path: Path, busy: RppError, wait_seconds: float = 0.0) -> Iterator[int]:
    """Lock a file for the length of the block, and yield its descriptor.

    The operating system releases the lock when the last process with the descriptor ends. A forked process
    closes its copy; a program that is started has one if it is passed on (`pass_fds` of `subprocess`). The
    file is created if it is missing, and stays; its content is neither read nor changed.

    Args:
        path: the lock file.
        busy: raised if another process, or another block of this one, has the lock.
        wait_seconds: how long to wait for the lock.

    Raises:
        UsageError: `path` is a link, a folder, a pipe or a device, or its file system has no locks.
        OSError: the file cannot be created.
    """
    descriptor = _open_regular(path)
    _locked.add(descriptor)
    try:
        deadline = time.monotonic() + wait_seconds
        while not _try_lock(descriptor, path):
            if time.monotonic() >= deadline:
                raise busy
            time.sleep(POLL_SECONDS)
        yield descriptor
    finally:
        if descriptor in _locked:  # a forked process has closed it
            _locked.remove(descriptor)
            os.close(descriptor)


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


def _try_lock(descriptor: int, path: Path) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in NOT_SUPPORTED:
            raise UsageError(
                f"cannot lock {path}: its file system does not support file locks ({error.strerror}); use a "
                "folder on another file system, or mount this one with locks"
            ) from error
        raise
    return True


def _close_in_child() -> None:
    for descriptor in _locked:
        os.close(descriptor)
    _locked.clear()


os.register_at_fork(after_in_child=_close_in_child)
