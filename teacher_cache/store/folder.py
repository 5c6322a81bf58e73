"""Where a cache lies: a folder on a disk or under a URL of an object store, behind one interface.

Knows how one object is read, listed and written complete or not at all. What the objects mean is the other
rooms' business; keys are relative, with `/`.
"""

import errno
import io
import os
import shutil
import stat
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
from fsspec.core import url_to_fs
from zarr.abc.store import Store
from zarr.storage import FsspecStore, LocalStore

from teacher_cache.errors import CacheDamagedError, CacheUnreachableError, RppError, UsageError

# Another process may write the cache: a listing is never answered from memory.
_OPTIONS: dict[str, Any] = {"use_listings_cache": False}


class Sink(Protocol):
    """Takes the bytes of an object, piece by piece."""

    def write(self, content: Any, /) -> int:
        """Write on."""


class Folder(ABC):
    """A folder of objects. `url` is how the user named it, `absolute` finds it from any process."""

    url: str
    absolute: str

    @abstractmethod
    def read(self, key: str) -> bytes:
        """Content of an object.

        Raises:
            FileNotFoundError: it is not there.
        """

    def read_many(self, keys: Sequence[str]) -> list[bytes]:
        """Contents of several objects."""
        return [self.read(key) for key in keys]

    @abstractmethod
    def open(self, key: str) -> Any:
        """An object as a seekable binary file that pyarrow reads.

        Raises:
            FileNotFoundError: it is not there.
        """

    @abstractmethod
    def write(self, key: str, content: bytes) -> None:
        """Write an object, complete or not at all; one of that name is replaced."""

    @abstractmethod
    def writing(self, key: str) -> AbstractContextManager["Sink"]:
        """A file to stream an object into; it appears, complete, when the block ends without an error."""

    @abstractmethod
    def names(self, key: str = "") -> list[str]:
        """Names directly below, of objects and folders, ascending; none if there is no such folder."""

    @abstractmethod
    def objects(self, key: str = "") -> list[str]:
        """Names directly below of objects alone, ascending."""

    @abstractmethod
    def sizes(self, key: str = "") -> dict[str, int]:
        """Bytes of every object below, by key."""

    @abstractmethod
    def exists(self, key: str) -> bool:
        """Whether there is such an object."""

    @abstractmethod
    def remove(self, key: str) -> None:
        """Remove an object, if it is there."""

    def is_writable(self) -> bool:
        """Whether objects may be written here, as far as that can be told without trying."""
        return True

    @abstractmethod
    def zarr_store(self, writable: bool) -> Store:
        """The same folder for zarr."""


class LocalFolder(Folder):
    """A folder on a disk. Objects become visible by rename."""

    def __init__(self, path: str) -> None:
        self.url = path
        self.root = Path(path).absolute()
        self.absolute = str(self.root)
        try:
            os.lstat(self.root)
        except OSError as error:  # whether anything is there is others' question, not whether it can be
            if error.errno == errno.ENAMETOOLONG:
                raise UsageError(f"{path} cannot be a folder: {error.strerror}") from error

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
        with _in_the_way(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        # A name of its own: Dask may run a part twice when it loses sight of a worker.
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
        try:
            with open(temporary, "wb") as file:
                yield file
            with _in_the_way(path):
                os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    def names(self, key: str = "") -> list[str]:
        try:
            return sorted(os.listdir(self.root / key))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def objects(self, key: str = "") -> list[str]:
        try:
            with os.scandir(self.root / key) as entries:
                return sorted(entry.name for entry in entries if entry.is_file())
        except (FileNotFoundError, NotADirectoryError):
            return []

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

    def is_writable(self) -> bool:
        return os.access(self.root, os.W_OK)

    def zarr_store(self, writable: bool) -> Store:
        return _LocalStore(self.root, read_only=not writable)

    @contextmanager
    def made_at_once(self) -> Iterator["LocalFolder"]:
        """A new folder that takes this one's place, complete, when the block ends without an error."""
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
    """The path, if a file is there or nothing.

    Raises:
        CacheDamagedError: something else is, as a pipe, whose reading would never end.
    """
    if path.exists() and not path.is_file():
        raise CacheDamagedError(f"{path} is no file: take it away, or copy the cache again")
    return path


@contextmanager
def _in_the_way(path: Path) -> Iterator[None]:
    """A file where a folder has to be, or a folder where a file has to be, as one line."""
    try:
        yield
    except (FileExistsError, IsADirectoryError, NotADirectoryError) as error:
        raise UsageError(f"cannot write {path} ({error.strerror}): take away what is there") from error


class _LocalStore(LocalStore):
    """Zarr's store, which reads files alone."""

    async def get(self, key: str, *arguments: Any, **more: Any) -> Any:
        _file(self.root / key)
        return await super().get(key, *arguments, **more)


class RemoteFolder(Folder):
    """A prefix of an object store that fsspec knows. A PUT is atomic: an object is complete or absent."""

    def __init__(self, url: str) -> None:
        self.url = self.absolute = url.rstrip("/")
        try:
            self.fs, self.root = url_to_fs(self.url, **_OPTIONS)
        except ImportError as error:
            extra = "; pip install 'rpp[s3]'" if url.startswith("s3") else ""
            raise UsageError(f"{url} needs a package that is not installed: {error}{extra}") from error
        except ValueError as error:
            raise UsageError(f"{url} is no place that fsspec knows: {error}") from error

    def _at(self, key: str) -> str:
        return f"{self.root}/{key}" if key else self.root

    def read(self, key: str) -> bytes:
        with reaching(self.url):
            return bytes(self.fs.cat_file(self._at(key)))

    def read_many(self, keys: Sequence[str]) -> list[bytes]:
        if not keys:
            return []
        with reaching(self.url):
            found = self.fs.cat([self._at(key) for key in keys])  # all at a time
        # a single path may come back alone
        return list(found.values()) if isinstance(found, dict) else [bytes(found)]

    def open(self, key: str) -> Any:
        with reaching(self.url):
            return _RemoteFile(self, self._at(key), int(self.fs.size(self._at(key))))

    def write(self, key: str, content: bytes) -> None:
        with reaching(self.url, writing=True):
            self.fs.pipe_file(self._at(key), content)

    def create(self, key: str, content: bytes) -> None:
        """Write an object that is not there.

        Raises:
            FileExistsError: it is there.
        """
        with reaching(self.url, writing=True):
            self.fs.pipe_file(self._at(key), content, mode="create")

    @contextmanager
    def writing(self, key: str) -> Iterator["Sink"]:
        with reaching(self.url, writing=True):
            file = self.fs.open(self._at(key), "wb")
        try:
            yield _Upload(self.url, file)
        except BaseException:
            file.discard()
            file.closed = True  # or the garbage collector would complete what is discarded
            raise
        with reaching(self.url, writing=True):
            file.close()

    def names(self, key: str = "") -> list[str]:
        with reaching(self.url), suppress(FileNotFoundError):
            return sorted(path.rsplit("/", 1)[-1] for path in self.fs.ls(self._at(key), detail=False))
        return []

    def objects(self, key: str = "") -> list[str]:
        with reaching(self.url), suppress(FileNotFoundError):
            found = self.fs.ls(self._at(key), detail=True)
            return sorted(entry["name"].rsplit("/", 1)[-1] for entry in found if entry["type"] == "file")
        return []

    def sizes(self, key: str = "") -> dict[str, int]:
        with reaching(self.url):
            found = self.fs.find(self._at(key), detail=True)
        return {path.removeprefix(f"{self.root}/"): int(facts["size"]) for path, facts in found.items()}

    def exists(self, key: str) -> bool:
        with reaching(self.url):
            return bool(self.fs.isfile(self._at(key)))

    def remove(self, key: str) -> None:
        with reaching(self.url), suppress(FileNotFoundError):
            self.fs.rm_file(self._at(key))

    def zarr_store(self, writable: bool) -> Store:
        return _RemoteStore.from_url(self.url, storage_options=_OPTIONS, read_only=not writable)


class _Upload:
    """A file of fsspec's that is written, with our errors."""

    def __init__(self, url: str, file: Any) -> None:
        self._url, self._file = url, file

    def write(self, content: Any, /) -> int:
        with reaching(self._url, writing=True):
            return int(self._file.write(content))


class _RemoteFile(io.RawIOBase):
    """An object that is read from anywhere, without reading ahead, with our errors."""

    def __init__(self, folder: RemoteFolder, path: str, size: int) -> None:
        super().__init__()
        self._folder, self._path, self._size, self._at = folder, path, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        end = self._size if size is None or size < 0 else min(self._at + size, self._size)
        if end <= self._at:
            return b""
        with reaching(self._folder.url):
            content = bytes(self._folder.fs.cat_file(self._path, start=self._at, end=end))
        self._at += len(content)
        return content


class _RemoteStore(FsspecStore):
    """Zarr's store with our errors."""

    async def get(self, *arguments: Any, **more: Any) -> Any:
        with reaching(self.path):
            return await super().get(*arguments, **more)

    async def get_partial_values(self, *arguments: Any, **more: Any) -> Any:
        with reaching(self.path):
            return await super().get_partial_values(*arguments, **more)

    async def set(self, *arguments: Any, **more: Any) -> None:
        with reaching(self.path, writing=True):
            await super().set(*arguments, **more)

    async def exists(self, key: str) -> bool:
        with reaching(self.path):
            return await super().exists(key)


def folder_at(place: str | os.PathLike[str]) -> Folder:
    """The folder that a path or URL names; it need not exist.

    Raises:
        UsageError: a URL of a kind that is not known here.
    """
    url = os.fspath(place)
    if url.startswith("file://"):
        url = url.removeprefix("file://")
    return RemoteFolder(url) if "://" in url else LocalFolder(url)


@contextmanager
def reaching(url: str, writing: bool = False) -> Iterator[None]:
    """Errors on the way to an object store, as one line. What is absent or already there stays an error
    of Python's own: the caller knows what it means."""
    try:
        yield
    except FileNotFoundError as error:
        if not writing:
            raise
        raise UsageError(f"cannot write {url}: {error}") from error
    except (FileExistsError, RppError):
        raise
    except PermissionError as error:
        raise UsageError(f"{url}: access denied ({error}); check the credentials") from error
    except Exception as error:  # every client library has exceptions of its own, without a common base
        reason = (str(error).strip().splitlines() or [""])[0]
        raise CacheUnreachableError(
            f"cannot reach {url} ({type(error).__name__}: {reason}); what is committed is safe: run the same "
            "command again"
        ) from error


@contextmanager
def disk_errors(place: str | os.PathLike[str]) -> Iterator[None]:
    """A full or forbidden disk, as one line."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise RppError(
                f"no room to write {place} ({error.strerror}); what is committed is safe: make room and run "
                "the same command again"
            ) from error
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
            raise UsageError(f"cannot write {place}: {error.strerror}") from error
        raise
