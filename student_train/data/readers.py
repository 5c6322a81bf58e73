"""Read a run's stored arrays from a cache, window by window of the run's order.

Two readers give the same results: one loads all views of the run's rows at the start, the other reads the
blocks of a window, each once and completely. The size decides which is used.
"""

from collections import deque
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from student_train.data.order import Window
from student_train.data.settings import ReaderName
from student_train.data.shards import ShardedArray
from teacher_cache.memory import free_memory
from teacher_cache.softlabels import SIGNED, TeacherCache

# Share of the free memory of the machine or a GPU that the arrays of a run may take.
MEMORY_SHARE = 0.25


@dataclass(frozen=True)
class StoredArrays:
    """Per-view arrays of a cache, by name."""

    cache: TeacherCache
    names: tuple[str, ...]

    @cached_property
    def _direct(self) -> dict[str, ShardedArray | None]:
        return {name: ShardedArray.open(self.cache.store.parts.array(name)) for name in self.names}

    @property
    def row_bytes(self) -> int:
        """Bytes of one view of one row."""
        return sum(_torch_dtype(values).itemsize * values[0].size for values in self.room(1).values())

    def room(self, rows: int) -> dict[str, NDArray[Any]]:
        """Return uninitialised arrays for this many rows, each [rows, ...]."""
        arrays = {name: self.cache.store.parts.array(name) for name in self.names}
        return {name: np.empty((rows, *array.shape[2:]), array.dtype) for name, array in arrays.items()}

    def read(
        self, rows: NDArray[np.int64], views: NDArray[np.int64], room: dict[str, NDArray[Any]]
    ) -> dict[str, Tensor]:
        """Return stored rows, each [len(rows), ...].

        Args:
            rows: rows of the cache, sorted by view, then ascending, [n].
            views: the view of each, [n].
            room: arrays from `room` for at least n rows; they become the memory of the result.
        """
        begins = np.flatnonzero(np.diff(views, prepend=-1)).tolist()
        spans = list(zip(begins, [*begins[1:], len(rows)], strict=True))
        read = {}
        for name in self.names:
            values = room[name][: len(rows)]
            direct = self._direct[name]
            for begin, end in spans:
                view, span = int(views[begin]), slice(begin, end)
                if direct is not None:
                    direct.read(rows[span], view, values[span])
                    self.cache.require_filled(name, rows[span], view, values[span])
                elif name == "crops":
                    values[span] = self.cache.crops(rows[span], view)
                else:
                    values[span] = self.cache.stored(rows[span], view)[name].numpy()
            read[name] = torch.from_numpy(values.astype(_torch_dtype(values), copy=False))
        return read


def _torch_dtype(stored: NDArray[Any]) -> np.dtype[Any]:
    """Return the dtype for torch, which supports few operations on unsigned integers: as `stored` does."""
    return np.dtype(SIGNED.get(stored.dtype.name, stored.dtype))


@dataclass(frozen=True)
class LoadedWindow:
    """The arrays of a window.

    Attributes:
        stored: arrays of each source, by name.
        index: row in these arrays of the window's sample i, int64 [n].
    """

    stored: list[dict[str, Tensor]]
    index: Tensor

    def take(self, samples: slice) -> list[dict[str, Tensor]]:
        """Return the arrays of some of the window's samples, each [B, ...], in the order of training."""
        index = self.index[samples]
        return [{name: _rows(values, index) for name, values in arrays.items()} for arrays in self.stored]


def _rows(values: Tensor, index: Tensor) -> Tensor:
    """Return values[index]. NumPy does it on a CPU: torch's threads would delay those of the towers."""
    if values.device.type != "cpu":
        return values.index_select(0, index)
    return torch.from_numpy(values.numpy().take(index.numpy(), axis=0))


class MemoryReader:
    """Keep the arrays of all views of the run's rows in memory: on the device if they fit."""

    def __init__(
        self, sources: list[StoredArrays], rows: NDArray[np.int64], views: int, device: torch.device
    ) -> None:
        self._rows = len(rows)
        every_row, every_view = np.tile(rows, views), np.repeat(np.arange(views), len(rows))
        self._device = device if fits(sources, len(rows), views, device_memory(device)) else None
        self._stored = [
            to_device(source.read(every_row, every_view, source.room(len(every_row))), self._device)
            for source in sources
        ]

    def load(self, window: Window) -> LoadedWindow:
        """Return the index of the window's samples in the loaded arrays; nothing is read."""
        index = (window.views * self._rows + window.positions)[window.shuffled]
        return LoadedWindow(self._stored, torch.from_numpy(index).to(self._device))


class BlockReader:
    """Read each block of a window once and completely, and copy the window to the device at once.

    Up to two windows are in use: the third is read into the memory of the first, because touching fresh
    memory costs a third of the reading speed.
    """

    def __init__(self, sources: list[StoredArrays], rows: NDArray[np.int64], device: torch.device) -> None:
        self._sources, self._rows, self._device = sources, rows, device
        self._rooms: deque[tuple[int, list[dict[str, NDArray[Any]]]]] = deque([(0, []), (0, [])])

    def load(self, window: Window) -> LoadedWindow:
        """Read a window."""
        rows = self._rows[window.positions]
        capacity, rooms = self._rooms.popleft()
        if capacity < len(rows):
            capacity, rooms = len(rows), [source.room(len(rows)) for source in self._sources]
        self._rooms.append((capacity, rooms))
        stored = [
            to_device(source.read(rows, window.views, room), self._device)
            for source, room in zip(self._sources, rooms, strict=True)
        ]
        return LoadedWindow(stored, torch.from_numpy(window.shuffled).to(self._device))


def make_reader(
    name: ReaderName,
    sources: list[StoredArrays],
    rows: NDArray[np.int64],
    views: int,
    device: torch.device,
    processes: int,
) -> MemoryReader | BlockReader:
    """Return the reader of this name; `auto` is `memory` if the run's arrays fit, otherwise `blocks`.

    Args:
        name: name of the reader.
        sources: arrays to read.
        rows: rows of the run, ascending, [N].
        views: number of views.
        device: device of the arrays.
        processes: number of processes that share the machine's memory.
    """
    if name == "auto":
        name = "memory" if fits(sources, len(rows), views, free_memory() // processes) else "blocks"
    if name == "memory":
        return MemoryReader(sources, rows, views, device)
    return BlockReader(sources, rows, device)


def fits(sources: list[StoredArrays], rows: int, views: int, free: int) -> bool:
    """Return whether all views of the rows take at most MEMORY_SHARE of the free bytes."""
    return rows * views * sum(source.row_bytes for source in sources) <= MEMORY_SHARE * free


def device_memory(device: torch.device) -> int:
    """Return the free bytes of a GPU; 0 for a CPU."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0


def to_device(arrays: dict[str, Tensor], device: torch.device | None) -> dict[str, Tensor]:
    """Return the arrays on a device; None leaves them on the CPU."""
    return arrays if device is None else {name: values.to(device) for name, values in arrays.items()}
