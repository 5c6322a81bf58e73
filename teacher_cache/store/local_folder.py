"""A cache on a disk: files are replaced, never changed, and only regular files are read."""

import errno
import os
import shutil
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
from zarr.abc.store import Store
from zarr.storage import LocalStore

from teacher_cache.errors import CacheDamagedError, RppError, UsageError
from teacher_cache.files.atomic_write import atomic_write
from teacher_cache.store.folder import Folder, Sink
from teacher_cache.store.presence import require_nameable


class LocalFolder(Folder):
    """A folder on a disk. Objects become visible by rename."""

    def __init__(self, path: str) -> None:
        self.url = path
        self.root = Path(path).absolute()
        self.absolute = str(self.root)
        require_nameable(path)

    def read(self, key: str) -> bytes:
        return _file(self.root / key).read_bytes()

    def open(self, key: str) -> Any:
        return pa.memory_map(str(_file(self.root / key)))

    def write(self, key: str, content: bytes) -> None:
        with self.writing(key) as file:
            file.write(content)

    @contextmanager
    def writing(self, key: str) -> Iterator["Sink"]:
        path = self.root / key
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise UsageError(f"cannot write {path} ({error.strerror}); remove what is there") from error
        # shared: Dask may run a part twice when it loses sight of a worker
        with atomic_write(path, shared=True) as temporary, open(temporary, "wb") as file:
            yield file

    def entries(self, key: str = "") -> dict[str, bool]:
        try:
            with os.scandir(self.root / key) as entries:
                return {entry.name: entry.is_file() for entry in entries}
        except (FileNotFoundError, NotADirectoryError):
            return {}

    def sizes(self, key: str = "") -> dict[str, int]:
        found = {}
        for path in (Path(top, name) for top, _, names in os.walk(self.root / key) for name in names):
            with suppress(OSError):  # a link to nowhere
                status = path.stat()
                if stat.S_ISREG(status.st_mode):
                    found[path.relative_to(self.root).as_posix()] = status.st_size
        return found

    def exists(self, key: str) -> bool:
        return (self.root / key).is_file()

    def remove(self, key: str) -> None:
        (self.root / key).unlink(missing_ok=True)

    def advise(self, key: str, offset: int, length: int) -> None:
        if not hasattr(os, "posix_fadvise"):  # only Linux has it
            return
        with open(_file(self.root / key), "rb") as file:
            os.posix_fadvise(file.fileno(), offset, length, os.POSIX_FADV_WILLNEED)

    def is_writable(self) -> bool:
        return os.access(self.root, os.W_OK)

    def zarr_store(self, writable: bool) -> Store:
        return _LocalStore(self.root, read_only=not writable)

    @contextmanager
    def create_atomically(self) -> Iterator["LocalFolder"]:
        """Fill a new folder, which is renamed to this one when the block ends without an error."""
        temporary = self.root.with_name(f".{self.root.name}.new-{uuid.uuid4().hex[:8]}")
        try:
            temporary.mkdir(parents=True)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise UsageError(f"cannot write {self.url}: {error.strerror}") from error
        try:
            yield LocalFolder(str(temporary))
            if self.root.is_dir() and not os.listdir(self.root):
                self.root.rmdir()
            if self.root.exists():
                raise FileExistsError(self.root)
            os.rename(temporary, self.root)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def _file(path: Path) -> Path:
    """Return the path if it is a regular file or does not exist.

    Raises:
        CacheDamagedError: it is something else, for example a pipe, which a reader would wait for.
    """
    if path.exists() and not path.is_file():
        raise CacheDamagedError(f"{path} is not a regular file; remove it, or copy the cache again")
    return path


class _LocalStore(LocalStore):
    """Zarr's store, restricted to regular files."""

    async def get(self, key: str, *arguments: Any, **more: Any) -> Any:
        _file(self.root / key)
        return await super().get(key, *arguments, **more)

    def get_sync(self, key: str, *arguments: Any, **more: Any) -> Any:
        _file(self.root / key)
        return super().get_sync(key, *arguments, **more)


@contextmanager
def disk_errors(place: str | os.PathLike[str]) -> Iterator[None]:
    """Report a full or read-only disk in one line."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise RppError(
                f"no space to write {place} ({error.strerror}); what is committed is safe: free some space "
                "and run the same command again"
            ) from error
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
            raise UsageError(f"cannot write {place}: {error.strerror}") from error
        raise
