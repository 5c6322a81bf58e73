"""A cache in an object store that fsspec knows."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from zarr.abc.store import Store
from zarr.storage import FsspecStore

from teacher_cache.files.hub import is_on_hub
from teacher_cache.files.remote import RemoteFile, connect, reaching
from teacher_cache.store.folder import Folder, Sink
from teacher_cache.store.presence import require_writable_place

# Another process may write the cache: listings are not cached.
_OPTIONS: dict[str, Any] = {"use_listings_cache": False}


class RemoteFolder(Folder):
    """A prefix in an object store that fsspec knows. A PUT is atomic: an object is complete or absent."""

    def __init__(self, url: str) -> None:
        self.url = self.absolute = url.rstrip("/")
        self.fs, self.root = connect(self.url, **_OPTIONS)

    def _at(self, key: str) -> str:
        return f"{self.root}/{key}" if key else self.root

    def read(self, key: str) -> bytes:
        with reaching(self.url):
            return bytes(self.fs.cat_file(self._at(key)))

    def read_many(self, keys: Sequence[str]) -> list[bytes]:
        if not keys:
            return []
        with reaching(self.url):
            found = self.fs.cat([self._at(key) for key in keys])  # concurrently
        # for a single path, fsspec may return only its content
        return list(found.values()) if isinstance(found, dict) else [bytes(found)]

    def open(self, key: str) -> Any:
        with reaching(self.url):
            return RemoteFile(self._at(key), int(self.fs.size(self._at(key))), self._read_range)

    def _read_range(self, path: str, offset: int, length: int) -> bytes:
        with reaching(self.url):
            return bytes(self.fs.cat_file(path, start=offset, end=offset + length))

    def write(self, key: str, content: bytes) -> None:
        require_writable_place(self.url)
        with reaching(self.url, writing=True):
            self.fs.pipe_file(self._at(key), content)

    def create(self, key: str, content: bytes) -> None:
        """Write an object that does not exist yet.

        Raises:
            FileExistsError: it exists.
        """
        require_writable_place(self.url)
        with reaching(self.url, writing=True):
            self.fs.pipe_file(self._at(key), content, mode="create")

    @contextmanager
    def writing(self, key: str) -> Iterator["Sink"]:
        require_writable_place(self.url)
        with reaching(self.url, writing=True):
            file = self.fs.open(self._at(key), "wb")
        try:
            yield _Upload(self.url, file)
        except BaseException:
            file.discard()
            file.closed = True  # or the garbage collector would complete the discarded upload
            raise
        with reaching(self.url, writing=True):
            file.close()

    def entries(self, key: str = "") -> dict[str, bool]:
        with reaching(self.url), suppress(FileNotFoundError):
            found = self.fs.ls(self._at(key), detail=True)
            return {entry["name"].rsplit("/", 1)[-1]: entry["type"] == "file" for entry in found}
        return {}

    def sizes(self, key: str = "") -> dict[str, int]:
        with reaching(self.url):
            found = self.fs.find(self._at(key), detail=True)
        return {path.removeprefix(f"{self.root}/"): int(facts["size"]) for path, facts in found.items()}

    def exists(self, key: str) -> bool:
        with reaching(self.url):
            return bool(self.fs.isfile(self._at(key)))

    def remove(self, key: str) -> None:
        require_writable_place(self.url)
        with reaching(self.url), suppress(FileNotFoundError):
            self.fs.rm_file(self._at(key))

    def is_writable(self) -> bool:
        return not is_on_hub(self.url)

    def zarr_store(self, writable: bool) -> Store:
        return _RemoteStore.from_url(self.url, storage_options=_OPTIONS, read_only=not writable)


class _Upload:
    """A file that fsspec writes, with errors of this project."""

    def __init__(self, url: str, file: Any) -> None:
        self._url, self._file = url, file

    def write(self, content: Any, /) -> int:
        with reaching(self._url, writing=True):
            return int(self._file.write(content))


class _RemoteStore(FsspecStore):
    """Zarr's store with errors of this project."""

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
