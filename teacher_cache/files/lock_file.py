"""Files that stand for a lock: opened here, locked by whoever holds what they stand for."""

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

from teacher_cache.errors import UsageError


def open_lock(path: Path) -> BinaryIO:
    """Open a lock's file, and make it where it is not there; nothing is written, and no link is followed.

    Raises:
        UsageError: a link, a folder, a pipe or a device is there.
        OSError: it cannot be opened.
    """
    refused = UsageError(f"{path} has to be a file of its own, which is locked: take away what is there")
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise refused from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise refused
    return os.fdopen(descriptor, "r+b", buffering=0)
