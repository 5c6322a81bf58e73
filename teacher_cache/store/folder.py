"""Where a cache lies: a folder on a disk or under a URL of an object store, behind one interface.

Knows how one object is read, listed and written complete or not at all. What the objects mean is the other
rooms' business; keys are relative, with `/`.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from zarr.abc.store import Store


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
