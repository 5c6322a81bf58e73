"""Both readers give what the cache stored, and which one serves follows from the size."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from student_train.data import readers
from student_train.data.order import Order
from student_train.data.readers import BlockReader, MemoryReader, StoredArrays, make_reader
from student_train.data.shards import ShardedArray
from teacher_cache import TeacherCache, open_cache
from teacher_cache.errors import CacheDamagedError

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def cache(cache_path: Path) -> TeacherCache:
    return open_cache(cache_path)


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("kind", ["memory", "blocks"])
def test_a_window_holds_what_the_cache_stored(
    cache: TeacherCache, monkeypatch: pytest.MonkeyPatch, kind: str, direct: bool
) -> None:
    """Whether the bytes can be taken from the shards' files or only through Zarr."""
    if not direct:
        monkeypatch.setattr(ShardedArray, "open", lambda array: None)
    rows = np.flatnonzero(np.arange(300) % 7 != 3)
    sources = [StoredArrays(cache, ("image_features",)), StoredArrays(cache, ("crops",))]
    assert [source.row_bytes for source in sources] == [2 * 48, 4 * 5]
    order = Order(rows, cache.num_views, seed=1, window_rows=100)
    reader = (
        MemoryReader(sources, rows, cache.num_views, CPU)
        if kind == "memory"
        else BlockReader(sources, rows, CPU)
    )
    for number, samples in order.pieces(2, 0, len(rows)):
        window = order.window(2, number)
        features, crops = reader.load(window).take(samples)
        at = window.shuffled[samples]
        for i, (row, view) in enumerate(zip(rows[window.positions[at]], window.views[at], strict=True)):
            assert torch.equal(features["image_features"][i], cache.image_features(int(row), int(view))[0])
            assert np.array_equal(crops["crops"][i].numpy(), cache.crops(int(row), int(view))[0])


@pytest.mark.parametrize("kind", ["memory", "blocks"])
def test_a_hole_in_a_shard_is_no_feature(cache_path: Path, tmp_path: Path, kind: readers.ReaderName) -> None:
    """As a copy leaves that was interrupted after the file had its length: the table of chunks is whole."""
    copy = Path(shutil.copytree(cache_path, tmp_path / "zarr"))
    shard = sorted((copy / "image_features" / "c").rglob("*"))[-1]
    content = shard.read_bytes()
    shard.write_bytes(bytes(4096) + content[4096:])
    cache, rows = open_cache(copy), np.arange(300)
    order = Order(rows, cache.num_views, seed=1, window_rows=100)

    def read() -> None:
        reader = make_reader(kind, [StoredArrays(cache, ("image_features",))], rows, 3, CPU, 1)
        for number, _ in order.pieces(2, 0, len(rows)):
            reader.load(order.window(2, number))

    with pytest.raises(CacheDamagedError, match=r"'image_features' of part \d+ .* is not what was written"):
        read()


def test_the_size_decides(cache: TeacherCache, monkeypatch: pytest.MonkeyPatch) -> None:
    sources, rows = [StoredArrays(cache, ("image_features",))], np.arange(300)
    needed = 300 * 3 * 96

    def chosen(name: readers.ReaderName, free: int, processes: int = 1) -> type:
        monkeypatch.setattr(readers, "free_memory", lambda: free)
        return type(make_reader(name, sources, rows, 3, CPU, processes))

    assert chosen("auto", 4 * needed) is MemoryReader
    assert chosen("auto", 4 * needed - 1) is BlockReader
    assert chosen("auto", 4 * needed, processes=2) is BlockReader
    assert chosen("memory", 0) is MemoryReader
    assert chosen("blocks", 1 << 60) is BlockReader


def test_free_memory_is_that_of_the_machine_at_most() -> None:
    total = int(Path("/proc/meminfo").read_text().split()[1]) * 1024
    assert 0 < readers.free_memory() <= total
