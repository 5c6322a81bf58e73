"""Memory that processes share: files without a name, which the system frees when the last process ends.

`memfd_create` does not need `/dev/shm`, whose size a container limits (64 MB under Docker). Where it is
missing or refused, the file is in the folder for temporary files, and its name is removed immediately.
"""

import errno
import mmap
import os
import tempfile
import weakref
from collections import deque
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from teacher_cache.memory import free_memory


def memory_file(size: int) -> tuple[int, str]:
    """Return the descriptor of a file of `size` bytes without a name, and where it is.

    Its space is reserved now: a write to a mapping that the system has no space for ends the process.

    Raises:
        OSError: neither memory nor the folder for temporary files has the space.
    """
    try:
        _require_memory(size)
        return _reserved(os.memfd_create("rpp-pixels", os.MFD_CLOEXEC), size), "memory"
    except (OSError, AttributeError):  # a sandbox refuses it; macOS does not have it
        descriptor, path = tempfile.mkstemp(prefix="rpp-pixels-")
        os.unlink(path)
        return _reserved(descriptor, size), tempfile.gettempdir()


def _reserved(descriptor: int, size: int) -> int:
    try:
        reserve(descriptor, 0, size)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _require_memory(size: int) -> None:
    """The system ends processes until it has the memory that is reserved, rather than to refuse it."""
    if size > (free := free_memory()):
        raise OSError(errno.ENOMEM, f"{size:,} bytes of memory are needed, and {free:,} are free")


def reserve(descriptor: int, offset: int, size: int) -> None:
    """Give a file `size` bytes of space from `offset` on.

    Raises:
        OSError: the space is missing.
    """
    if size == 0:
        return
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, offset, size)
        return
    zeros = bytes(1 << 20)  # macOS
    for start in range(offset, offset + size, len(zeros)):
        os.pwrite(descriptor, zeros[: offset + size - start], start)


class PixelSlots:
    """Blocks of equal size in one memory file, given out as arrays.

    A block is free again when its array, and with it each view and tensor of it, has been garbage-collected.
    A consumer that keeps pixels therefore costs memory, and never sees them change.

    Attributes:
        descriptor: of the file, for the processes that fill the blocks.
        place: where the file is: memory, or a folder.
    """

    def __init__(
        self,
        slots: int,
        slot_bytes: int,
        on_slot: Callable[[NDArray[np.uint8]], Callable[[], object]] = lambda memory: lambda: None,
    ) -> None:
        """Args:
        slots: reserved now; more are reserved when all are in use.
        on_slot: called with the memory of each block; what it returns is called before the block is unmapped.

        Raises:
            OSError: no space for the blocks.
        """
        self._slot_bytes = -(-slot_bytes // mmap.ALLOCATIONGRANULARITY) * mmap.ALLOCATIONGRANULARITY
        self.descriptor, self.place = memory_file(slots * self._slot_bytes)
        self._on_slot = on_slot
        self._reserved = slots
        self._maps: list[mmap.mmap] = []
        self._undo: dict[int, Callable[[], object]] = {}
        self._free: deque[int] = deque()
        self._closed = False

    def offset(self, slot: int) -> int:
        """Offset of a block in the file."""
        return slot * self._slot_bytes

    @property
    def in_use(self) -> int:
        """Number of blocks whose arrays exist."""
        return len(self._maps) - len(self._free)

    @property
    def slot_bytes(self) -> int:
        """Bytes of a block."""
        return self._slot_bytes

    def take(self, shape: tuple[int, ...]) -> tuple[int, NDArray[np.uint8]]:
        """Return the number of a block, and an array of it whose content is what was there.

        Raises:
            OSError: all blocks are in use, and the space for another one is missing.
        """
        slot = self._free.popleft() if self._free else self._mapped()
        array: NDArray[np.uint8] = np.ndarray(shape, np.uint8, self._maps[slot])
        weakref.finalize(array, self._give_back, slot).atexit = False
        return slot, array

    def _mapped(self) -> int:
        slot = len(self._maps)
        if slot >= self._reserved:
            if self.place == "memory":
                _require_memory(self._slot_bytes)
            reserve(self.descriptor, self.offset(slot), self._slot_bytes)
            self._reserved += 1
        memory = mmap.mmap(self.descriptor, self._slot_bytes, offset=self.offset(slot))
        self._maps.append(memory)
        self._undo[slot] = self._on_slot(np.frombuffer(memory, np.uint8))
        return slot

    def _give_back(self, slot: int) -> None:
        self._free.append(slot)
        if self._closed:
            self._release_free()

    def close(self) -> None:
        """Close the file. Blocks in use stay mapped until their arrays are collected."""
        if not self._closed:
            self._closed = True
            os.close(self.descriptor)
            self._release_free()

    def _release_free(self) -> None:
        for slot in list(self._free):
            self._undo.pop(slot, lambda: None)()
