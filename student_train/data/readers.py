"""What a cache stored of the samples of a run, read by windows of the run's order.

Two readers with the same results: one holds the rows of the run, all views of them, from the start; the
other reads the window's blocks, each once and whole. What is chosen follows from the size.
"""

import os
from collections import deque
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from student_train.data.order import Window
from student_train.data.settings import ReaderName
from student_train.data.shards import ShardedArray
from teacher_cache.softlabels import SIGNED, TeacherCache

# Share of the free memory, of the machine or of a GPU, that the features of a run may take.
MEMORY_SHARE = 0.25


@dataclass(frozen=True)
class StoredArrays:
    """Some per-view arrays of a cache, by name."""

    cache: TeacherCache
    names: tuple[str, ...]

    @cached_property
    def _direct(self) -> dict[str, ShardedArray | None]:
        return {name: ShardedArray.of(self.cache.store.parts.array(name)) for name in self.names}

    @property
    def row_bytes(self) -> int:
        """Bytes of one view of one row."""
        return sum(_held_as(values).itemsize * values[0].size for values in self.room(1).values())

    def room(self, rows: int) -> dict[str, NDArray[Any]]:
        """Uninitialised arrays for so many rows."""
        arrays = {name: self.cache.store.parts.array(name) for name in self.names}
        return {name: np.empty((rows, *array.shape[2:]), array.dtype) for name, array in arrays.items()}

    def read(
        self, rows: NDArray[np.int64], views: NDArray[np.int64], room: dict[str, NDArray[Any]]
    ) -> dict[str, Tensor]:
        """Rows as they are stored, each [len(rows), ...]. They come by view and ascend within each.

        Args:
            room: what `room` gave, for at least as many rows; the result lies in it.
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
            read[name] = torch.from_numpy(values.astype(_held_as(values), copy=False))
        return read


def _held_as(stored: NDArray[Any]) -> np.dtype[Any]:
    """torch can hardly do a thing with unsigned integers: here, too, they are what `stored` makes them."""
    return np.dtype(SIGNED.get(stored.dtype.name, stored.dtype))


@dataclass(frozen=True)
class LoadedWindow:
    """A window whose arrays are at hand.

    Attributes:
        stored: of each source, its arrays by name.
        index: where sample start + i stands in them, int64.
    """

    window: Window
    stored: list[dict[str, Tensor]]
    index: Tensor

    def take(self, samples: slice) -> list[dict[str, Tensor]]:
        """The arrays of some of the window's samples, each [B, ...], in the order of training."""
        at = self.index[samples]
        return [{name: _rows(values, at) for name, values in arrays.items()} for arrays in self.stored]


def _rows(values: Tensor, at: Tensor) -> Tensor:
    """values[at]. On a CPU not by torch: its threads would hold up those of the towers for copying memory."""
    if values.device.type != "cpu":
        return values.index_select(0, at)
    return torch.from_numpy(values.numpy().take(at.numpy(), axis=0))


class Reader(Protocol):
    """Loads windows."""

    def load(self, window: Window) -> LoadedWindow:
        """The arrays of a window's samples."""
        ...


class MemoryReader:
    """Holds what was stored of every row of the run, all views: on the device if there is room."""

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
        """Nothing is read: where the samples stand in what is held."""
        index = (window.views * self._rows + window.positions)[window.shuffled]
        at = torch.from_numpy(index)
        return LoadedWindow(window, self._stored, at if self._device is None else at.to(self._device))


class BlockReader:
    """Reads each block of a window once, whole, and brings the window to the device in one piece.

    Two windows may be in use: the third is read into the room of the first. Memory that is touched for the
    first time costs a third of the reading speed.
    """

    def __init__(self, sources: list[StoredArrays], rows: NDArray[np.int64], device: torch.device) -> None:
        self._sources, self._rows, self._device = sources, rows, device
        self._rooms: deque[tuple[int, list[dict[str, NDArray[Any]]]]] = deque([(0, []), (0, [])])

    def load(self, window: Window) -> LoadedWindow:
        """Read the window."""
        rows = self._rows[window.positions]
        capacity, rooms = self._rooms.popleft()
        if capacity < len(rows):
            capacity, rooms = len(rows), [source.room(len(rows)) for source in self._sources]
        self._rooms.append((capacity, rooms))
        stored = [
            to_device(source.read(rows, window.views, room), self._device)
            for source, room in zip(self._sources, rooms, strict=True)
        ]
        return LoadedWindow(window, stored, torch.from_numpy(window.shuffled).to(self._device))


def make_reader(
    name: ReaderName,
    sources: list[StoredArrays],
    rows: NDArray[np.int64],
    views: int,
    device: torch.device,
    processes: int,
) -> Reader:
    """The reader of that name; `auto` is memory where the rows of the run fit.

    Args:
        processes: how many share the machine's memory.
    """
    if name == "auto":
        name = "memory" if fits(sources, len(rows), views, free_memory() // processes) else "blocks"
    return (
        MemoryReader(sources, rows, views, device) if name == "memory" else BlockReader(sources, rows, device)
    )


def fits(sources: list[StoredArrays], rows: int, views: int, free: int) -> bool:
    """Whether all views of the rows take no more than their share of the free bytes."""
    return rows * views * sum(source.row_bytes for source in sources) <= MEMORY_SHARE * free


def free_memory() -> int:
    """Bytes of memory that this machine, or the container, can still give."""
    available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for line in _lines("/proc/meminfo"):  # counts what the page cache can give back
        if line.startswith("MemAvailable:"):
            available = int(line.split()[1]) * 1024
    limit, used, kinds = (_lines(f"/sys/fs/cgroup/memory.{name}") for name in ("max", "current", "stat"))
    if limit and used and limit[0] != "max":
        cached = sum(int(line.split()[1]) for line in kinds if line.startswith("inactive_file "))
        available = min(available, int(limit[0]) - int(used[0]) + cached)
    return available


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="ascii").splitlines()
    except OSError:
        return []


def device_memory(device: torch.device) -> int:
    """Free bytes of a device's own memory; none on a CPU, which has no own."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0


def to_device(arrays: dict[str, Tensor], device: torch.device | None) -> dict[str, Tensor]:
    """The same arrays there."""
    return arrays if device is None else {name: values.to(device) for name, values in arrays.items()}
