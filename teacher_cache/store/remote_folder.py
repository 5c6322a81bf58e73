"""A cache in an object store that fsspec knows, and the errors on the way there."""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from fsspec import url_to_fs
from zarr.abc.store import Store
from zarr.storage import FsspecStore

from teacher_cache.errors import CacheUnreachableError, RppError, UsageError
from teacher_cache.store.folder import Folder, Sink

# Another process may write the cache: a listing is never answered from memory.
_OPTIONS: dict[str, Any] = {"use_listings_cache": False}


class RemoteFolder(Folder):
    """A prefix of an object store that fsspec knows. A PUT is atomic: an object is complete or absent."""

    def __init__(self, url: str) -> None:
        self.url = self.absolute = url.rstrip("/")
        try:
            self.fs, self.root = url_to_fs(self.url, **_OPTIONS)
        except ImportError as error:
            extra = "; pip install 'rpp-clip[s3]'" if url.startswith("s3") else ""
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
