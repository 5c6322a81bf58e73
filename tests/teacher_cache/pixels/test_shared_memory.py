"""Blocks of a memory file: given out, taken back, and mapped as long as an array of them exists."""

import gc
import mmap
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from teacher_cache.pixels import shared_memory
from teacher_cache.pixels.shared_memory import PixelSlots, memory_file


def test_a_block_is_free_when_no_array_of_it_exists() -> None:
    slots = PixelSlots(2, 100)
    first, array = slots.take((4, 5))
    view = array[1:]
    second, other = slots.take((10,))
    assert (first, second, slots.in_use) == (0, 1, 2)
    del array
    assert slots.in_use == 2, "a view keeps it"
    del view
    assert slots.in_use == 1
    assert [slots.take((100,))[0], slots.take((1,))[0]] == [0, 0], "their arrays are dropped immediately"
    del other
    slots.close()


def test_more_blocks_are_reserved_when_all_are_in_use() -> None:
    slots = PixelSlots(1, 100)
    kept = [slots.take((100,))[1] for _ in range(3)]
    for number, array in enumerate(kept):
        array[:] = number
    assert os.fstat(slots.descriptor).st_size == 3 * mmap.ALLOCATIONGRANULARITY
    assert [int(array.max()) for array in kept] == [0, 1, 2]
    content = os.pread(slots.descriptor, 100, slots.offset(2))
    assert content == bytes([2]) * 100
    slots.close()


def test_arrays_outlive_the_file_and_each_block_is_undone_once() -> None:
    undone: list[int] = []

    def on_slot(memory: NDArray[np.uint8]) -> Callable[[], object]:
        address = memory.ctypes.data
        return lambda: undone.append(address)

    slots = PixelSlots(2, 100, on_slot)
    _, kept = slots.take((100,))
    _, dropped = slots.take((100,))
    kept[:] = 7
    place, other = kept.ctypes.data, dropped.ctypes.data
    del dropped
    slots.close()
    slots.close()
    assert undone == [other]
    gc.collect()
    assert kept.tolist() == [7] * 100
    del kept
    assert undone == [other, place]


def test_more_memory_than_is_free_is_not_reserved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system would end processes. A file in the folder for temporary files is the other place."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(shared_memory, "free_memory", lambda: 1 << 20)
    descriptor, place = memory_file(2 << 20)
    os.close(descriptor)
    assert place == str(tmp_path)
    slots = PixelSlots(1, 1 << 19)
    _, kept = slots.take((5,))
    assert slots.place == "memory"
    monkeypatch.setattr(shared_memory, "free_memory", lambda: 1 << 10)
    with pytest.raises(OSError, match="524,288 bytes of memory are needed, and 1,024 are free"):
        slots.take((5,))
    del kept
    slots.close()


def test_space_is_reserved_before_it_is_written() -> None:
    descriptor, place = memory_file(1 << 20)
    try:
        assert place == "memory"
        assert os.fstat(descriptor).st_blocks * 512 >= 1 << 20
    finally:
        os.close(descriptor)
