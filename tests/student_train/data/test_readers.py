"""Both readers give what the cache stored, and which one serves follows from the size."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from numpy.typing import NDArray

from student_train.data import readers
from student_train.data.order import Order
from student_train.data.readers import BlockReader, MemoryReader, StoredArrays, make_reader
from student_train.data.shards import ShardedArray
from teacher_cache import TeacherCache, open_cache
from teacher_cache.errors import CacheDamagedError

CPU = torch.device("cpu")
Create = Callable[..., zarr.Array]


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
        monkeypatch.setattr(ShardedArray, "of", lambda array: None)
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


class TestShards:
    @pytest.fixture
    def create(self, tmp_path: Path) -> Create:
        def create(values: NDArray[np.float16], **how: object) -> zarr.Array:
            width = values.shape[2]
            layout = {"shards": (8, 1, width), "chunks": (2, 1, width), "compressors": None, **how}
            group = zarr.create_group(tmp_path / "g", zarr_format=3)
            array = group.create_array("a", shape=values.shape, dtype=values.dtype, **layout)
            array[:] = values
            return array

        return create

    @pytest.fixture
    def values(self) -> NDArray[np.float16]:
        values = np.random.default_rng(0).standard_normal((27, 2, 3)).astype(np.float16)
        values[2:4] = 0  # a chunk that Zarr leaves out
        values[8:16, 1] = 0  # a shard that it leaves out
        return values

    def test_rows_are_those_that_zarr_reads(self, create: Create, values: NDArray[np.float16]) -> None:
        array = create(values)
        reader = ShardedArray.of(array)
        assert reader is not None
        random = np.random.default_rng(1)
        for view in range(2):
            for count in (1, 5, 14, 27):
                rows = np.sort(random.permutation(27)[:count])
                out = np.full((count, 3), np.nan, np.float16)
                reader.read(rows, view, out)
                assert np.array_equal(out, values[rows, view])

    @pytest.mark.parametrize(
        "how",
        [
            {"compressors": zarr.codecs.ZstdCodec()},
            {"shards": None},
            {"chunks": (2, 1, 1)},
            {"shards": (8, 2, 3)},
            {"serializer": zarr.codecs.BytesCodec(endian="big")},
        ],
    )
    def test_what_is_stored_otherwise_is_left_to_zarr(
        self, create: Create, values: NDArray[np.float16], how: dict[str, object]
    ) -> None:
        assert ShardedArray.of(create(values, **how)) is None

    def test_a_cut_shard_is_named(self, create: Create, values: NDArray[np.float16], tmp_path: Path) -> None:
        array = create(values)
        shard = tmp_path / "g" / "a" / "c" / "0" / "0" / "0"
        whole = shard.read_bytes()
        shard.write_bytes(whole[40:])
        reader = ShardedArray.of(array)
        assert reader is not None
        with pytest.raises(CacheDamagedError, match=r"c/0/0/0 cannot be read .*run rpp-cache verify"):
            reader.read(np.arange(8), 0, np.empty((8, 3), np.float16))

    @pytest.mark.parametrize("damage", [b"\xff" * 8, b"\x01", b"\x00" * 16])
    def test_a_damaged_table_of_chunks_is_named(
        self, create: Create, values: NDArray[np.float16], tmp_path: Path, damage: bytes
    ) -> None:
        """Also one that would say that a chunk was never written, which reads as zeros."""
        array = create(values)
        shard = tmp_path / "g" / "a" / "c" / "0" / "0" / "0"
        whole = bytearray(shard.read_bytes())
        begin = len(whole) - 4 - 4 * 16
        whole[begin : begin + len(damage)] = damage
        shard.write_bytes(whole)
        reader = ShardedArray.of(array)
        assert reader is not None
        with pytest.raises(CacheDamagedError, match=r"c/0/0/0 cannot be read \(the checksum .* verify"):
            reader.read(np.arange(8), 0, np.empty((8, 3), np.float16))
