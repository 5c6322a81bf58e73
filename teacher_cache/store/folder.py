"""Where a cache is stored: a folder on a disk or under a URL of an object store, behind one interface.

Objects are read, listed and written completely or not at all. Keys are relative paths with `/`.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from zarr.abc.store import Store


class Sink(Protocol):
    """Receives the bytes of an object piece by piece."""

    def write(self, content: Any, /) -> int:
        """Write the next bytes."""


class Folder(ABC):
    """A folder of objects. `url` is as the user gave it, `absolute` is valid in any process."""

    url: str
    absolute: str

    @abstractmethod
    def read(self, key: str) -> bytes:
        """Return the content of an object.

        Raises:
            FileNotFoundError: it does not exist.
        """

    def read_many(self, keys: Sequence[str]) -> list[bytes]:
        """Return the contents of several objects."""
        return [self.read(key) for key in keys]

    @abstractmethod
    def open(self, key: str) -> Any:
        """Open an object as a seekable binary file that pyarrow reads.

        Raises:
            FileNotFoundError: it does not exist.
        """

    @abstractmethod
    def write(self, key: str, content: bytes) -> None:
        """Write an object completely or not at all; replaces one of the same name."""

    @abstractmethod
    def writing(self, key: str) -> AbstractContextManager["Sink"]:
        """Stream an object into a file; it appears, complete, when the block ends without an error."""

    @abstractmethod
    def entries(self, key: str = "") -> dict[str, bool]:
        """Return the names of what is directly in a folder, and whether each is an object (or a folder); none
        if the folder is missing."""

    @abstractmethod
    def sizes(self, key: str = "") -> dict[str, int]:
        """Return the bytes of every object in a folder and its subfolders, by key."""

    @abstractmethod
    def exists(self, key: str) -> bool:
        """Return whether an object exists."""

    @abstractmethod
    def remove(self, key: str) -> None:
        """Remove an object if it exists."""

    def advise(self, key: str, offset: int, length: int) -> None:  # noqa: B027  # only disks read ahead
        """Tell the system that bytes of an object are read soon."""

    def is_writable(self) -> bool:
        """Return whether objects may be written, as far as is known without trying."""
        return True

    @abstractmethod
    def zarr_store(self, writable: bool) -> Store:
        """Return the folder as a store of zarr."""
