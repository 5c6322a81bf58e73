"""What this project needs of zarr beyond creating, opening and indexing arrays.

Private API: none. The layout of an array's files is read from its `zarr.json`, which the Zarr v3
specification describes, not from zarr's codec and metadata classes. Those change: `BytesCodec.endian` is an
enumeration up to zarr 3.2 and a string from 3.3 on, and `Array(AsyncArray(...))` is to be deprecated.

Unstable: a `MemoryStore` writes into the dictionary that it gets (documented as "initial data" only). If it
does not, objects are written to a temporary folder and read back, which is slower.

Seen with zarr 3.1.6 and 3.4.2.
"""

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.abc.store import Store
from zarr.buffer.cpu import Buffer
from zarr.storage import LocalStore, MemoryStore, WrapperStore

METADATA = "zarr.json"


def written_objects(write: Callable[[Store], object]) -> dict[str, bytes]:
    """Return the objects that `write` writes to an empty store, by key."""
    if not _memory_is_shared():
        return _written_to_a_folder(write)
    objects: dict[str, Any] = {}
    write(MemoryStore(objects))
    return {key: content.to_bytes() for key, content in objects.items()}


def _written_to_a_folder(write: Callable[[Store], object]) -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write(LocalStore(root))
        files = (path for path in root.rglob("*") if path.is_file())
        return {path.relative_to(root).as_posix(): path.read_bytes() for path in files}


@cache
def _memory_is_shared() -> bool:
    objects: dict[str, Any] = {}
    zarr.create_group(MemoryStore(objects), zarr_format=3)
    return METADATA in objects


def open_with_metadata(store: Store, name: str, metadata: bytes) -> zarr.Array[Any]:
    """Open an array for reading with the given content of `zarr.json` instead of the stored one."""
    return zarr.open_array(
        _GivenMetadata(store, f"{name}/{METADATA}", metadata), path=name, mode="r", zarr_format=3
    )


class _GivenMetadata(WrapperStore[Store]):
    """A store in which one object has given content."""

    def __init__(self, store: Store, key: str, content: bytes) -> None:
        super().__init__(store)
        self._given = store, key, content

    def with_read_only(self, read_only: bool = False) -> "_GivenMetadata":
        store, key, content = self._given
        return _GivenMetadata(store.with_read_only(read_only), key, content)

    async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Any:
        store, given, content = self._given
        if key == given:
            return Buffer.from_bytes(content)
        return await store.get(key, prototype, byte_range)

    def get_sync(self, key: str, **more: Any) -> Any:
        store, given, content = self._given
        return Buffer.from_bytes(content) if key == given else store.get_sync(key, **more)  # type: ignore[attr-defined]


def local_files(array: zarr.Array[Any]) -> tuple[Path, Any] | None:
    """Return the folder of an array's files and the content of its `zarr.json`.

    Returns:
        None for an array that is not on a local disk, or is not of Zarr format 3.
    """
    if not isinstance(array.store, LocalStore):
        return None
    folder = Path(array.store.root) / array.path
    try:
        return folder, json.loads((folder / METADATA).read_bytes())
    except FileNotFoundError:
        return None


def read(array: zarr.Array[Any], selection: Any) -> NDArray[Any]:
    """Return selected values of an array; of errors that zarr raises as a group, the first is raised."""
    with first_error():
        return np.asarray(array[selection])


@contextmanager
def first_error() -> Iterator[None]:
    """Raise the first error of a group.

    Newer releases of zarr read ranges of a shard together and raise their errors as a group, which an
    `except` for the type of error does not catch.
    """
    try:
        yield
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from group
