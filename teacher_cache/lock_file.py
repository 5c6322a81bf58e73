"""Files that stand for a lock: opened here, locked by whoever holds what they stand for."""

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO, cast

from teacher_cache.errors import UsageError


def open_lock(path: Path) -> BinaryIO:
    """Open a lock's file, and make it where it is not there; nothing is written, and no link is followed.

    Raises:
        UsageError: something else than a file is there.
        OSError: it cannot be opened.
    """
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise _no_file(path) from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _no_file(path)
    return cast(BinaryIO, os.fdopen(descriptor, "rb", buffering=0))


def _no_file(path: Path) -> UsageError:
    return UsageError(
        f"{path} cannot be written: it is a link, a folder or a device; remove it, or choose another --out"
    )
