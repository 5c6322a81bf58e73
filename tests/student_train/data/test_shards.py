"""Complete chunks from the files of sharded arrays, compared with Zarr's own reading."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zarr
from numpy.typing import NDArray

from student_train.data.shards import ShardedArray
from teacher_cache.errors import CacheDamagedError

Create = Callable[..., zarr.Array]


@pytest.fixture
def create(tmp_path: Path) -> Create:
    def create(values: NDArray[np.float16], **how: object) -> zarr.Array:
        width = values.shape[2]
        layout = {"shards": (8, 1, width), "chunks": (2, 1, width), "compressors": None, **how}
        group = zarr.create_group(tmp_path / "g", zarr_format=3)
        array = group.create_array("a", shape=values.shape, dtype=values.dtype, **layout)
        array[:] = values
        return array

    return create


@pytest.fixture
def values() -> NDArray[np.float16]:
    values = np.random.default_rng(0).standard_normal((27, 2, 3)).astype(np.float16)
    values[2:4] = 0  # a chunk that Zarr leaves out
    values[8:16, 1] = 0  # a shard that it leaves out
    return values


def test_rows_are_those_that_zarr_reads(create: Create, values: NDArray[np.float16]) -> None:
    array = create(values)
    reader = ShardedArray.open(array)
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
    create: Create, values: NDArray[np.float16], how: dict[str, object]
) -> None:
    assert ShardedArray.open(create(values, **how)) is None


def test_a_cut_shard_is_named(create: Create, values: NDArray[np.float16], tmp_path: Path) -> None:
    array = create(values)
    shard = tmp_path / "g" / "a" / "c" / "0" / "0" / "0"
    whole = shard.read_bytes()
    shard.write_bytes(whole[40:])
    reader = ShardedArray.open(array)
    assert reader is not None
    with pytest.raises(CacheDamagedError, match=r"c/0/0/0 cannot be read .*run rpp-cache verify"):
        reader.read(np.arange(8), 0, np.empty((8, 3), np.float16))


@pytest.mark.parametrize("damage", [b"\xff" * 8, b"\x01", b"\x00" * 16])
def test_a_damaged_table_of_chunks_is_named(
    create: Create, values: NDArray[np.float16], tmp_path: Path, damage: bytes
) -> None:
    """Also one that would say that a chunk was never written, which reads as zeros."""
    array = create(values)
    shard = tmp_path / "g" / "a" / "c" / "0" / "0" / "0"
    whole = bytearray(shard.read_bytes())
    begin = len(whole) - 4 - 4 * 16
    whole[begin : begin + len(damage)] = damage
    shard.write_bytes(whole)
    reader = ShardedArray.open(array)
    assert reader is not None
    with pytest.raises(CacheDamagedError, match=r"c/0/0/0 cannot be read \(the checksum .* verify"):
        reader.read(np.arange(8), 0, np.empty((8, 3), np.float16))
