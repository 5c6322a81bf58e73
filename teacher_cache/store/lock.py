"""The lock of a build: one build at a time writes to a cache.

On a disk it is a lock file. In an object store the lock is an object that only one writer can create; its
owner renews it, and a lock that is no longer renewed is taken over.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from teacher_cache.errors import CacheBusyError
from teacher_cache.files.lock_file import file_lock
from teacher_cache.files.owner_record import HeldError, OwnerRecord
from teacher_cache.store.folder import Folder
from teacher_cache.store.local_folder import LocalFolder, disk_errors
from teacher_cache.store.remote_folder import RemoteFolder

LOCK = "build.lock"


@contextmanager
def build_lock(folder: Folder, lock: bool = True) -> Iterator[None]:
    """Lock a cache for one build, so that two builds do not write the same parts.

    Args:
        lock: if false, nothing is locked.

    Raises:
        CacheBusyError: another build has the lock.
    """
    busy = CacheBusyError(f"another build is writing {folder.url}; wait for it or stop it")
    if lock and isinstance(folder, LocalFolder):
        with ExitStack() as held:
            with disk_errors(folder.url):
                held.enter_context(file_lock(folder.root / LOCK, busy))
            yield
    elif lock and isinstance(folder, RemoteFolder):
        record = OwnerRecord(_RecordObject(folder))
        try:
            record.acquire()
        except HeldError as error:
            raise error.explain(busy) from None
        try:
            yield
        finally:
            record.release()
    else:
        yield


class _RecordObject:
    """The record of a lock's owner as an object of the cache."""

    def __init__(self, folder: RemoteFolder) -> None:
        self.url, self._folder = f"{folder.url}/{LOCK}", folder

    def create(self, content: bytes) -> None:
        """See `RecordPlace`."""
        self._folder.create(LOCK, content)

    def read(self) -> bytes:
        """See `RecordPlace`."""
        return self._folder.read(LOCK)

    def modified(self) -> float:
        """See `RecordPlace`; an object is written completely, so one that cannot be parsed is damaged."""
        return 0.0

    def replace(self, content: bytes) -> None:
        """See `RecordPlace`."""
        self._folder.write(LOCK, content)

    def remove(self) -> None:
        """See `RecordPlace`."""
        self._folder.remove(LOCK)
