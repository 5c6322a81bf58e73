"""Caches that older and newer versions of zarr wrote are read alike by the zarr that is installed."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray
import zarr
from numpy.typing import NDArray

from student_train.data.readers import StoredArrays
from student_train.data.shards import ShardedArray
from teacher_cache import open_cache
from teacher_cache.store.cache_store import CacheStore
from teacher_cache.store.verify import verify_store
from tests.data.caches.write import ENCODINGS, VIEWS, arrays_of, write

CACHES = Path(__file__).parents[2] / "data" / "caches"
WRITERS = ("zarr-3.1", "zarr-3.4", "installed")
ROUNDING = 1e-6  # of float32 products, which processors sum in different orders


@pytest.fixture(params=WRITERS)
def writer(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture(params=ENCODINGS)
def encoding(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture
def path(writer: str, encoding: str, tmp_path: Path) -> Path:
    if writer != "installed":
        return CACHES / writer / encoding
    write(tmp_path / "zarr", encoding)
    return tmp_path / "zarr"


def test_arrays_are_those_that_were_written(path: Path, encoding: str) -> None:
    group = zarr.open_group(path, mode="r")
    expected = arrays_of(encoding)
    for name, values in expected.items():
        stored = np.asarray(group[name][:])
        assert stored.dtype == values.dtype
        assert_same(stored, values)
    with xarray.open_zarr(path, consolidated=False) as dataset:
        assert dataset["labels"].dims == ("sample",)
        np.testing.assert_array_equal(dataset["labels"], expected["labels"])


def assert_same(stored: NDArray[Any], expected: NDArray[Any]) -> None:
    """Equal values, but float32 up to rounding."""
    if expected.dtype == np.float32:
        np.testing.assert_allclose(stored, expected, rtol=ROUNDING, atol=ROUNDING)
    else:
        np.testing.assert_array_equal(stored, expected)


def test_verify_and_repair_find_nothing(path: Path) -> None:
    store = CacheStore.open(path)
    damage = verify_store(store)
    assert (damage.parts, damage.missing, damage.tables) == ([], [], [])
    assert store.damaged_metadata() == []


def test_every_array_is_read_straight_from_its_files(
    path: Path, encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of whatever type: bytes without an order of their own too; and as zarr reads it."""
    cache = open_cache(path)
    names = tuple(cache.header.per_view)
    rows, views = np.arange(len(cache)), np.full(len(cache), VIEWS - 1)
    assert all(ShardedArray.open(cache.store.parts.array(name)) is not None for name in names)
    read = []
    for direct in (True, False):
        if not direct:
            monkeypatch.setattr(ShardedArray, "open", lambda array: None)
        arrays = StoredArrays(cache, names)
        read.append(arrays.read(rows, views, arrays.room(len(rows))))
    for name in names:
        assert torch.equal(read[0][name], read[1][name])
        assert_same(read[0][name].numpy(), arrays_of(encoding)[name][:, VIEWS - 1])


def test_soft_labels_do_not_depend_on_who_wrote(encoding: str, tmp_path: Path) -> None:
    write(tmp_path / "zarr", encoding)
    own = open_cache(tmp_path / "zarr").soft_labels(slice(None), temperature=2.0)
    stored = [open_cache(CACHES / one / encoding).soft_labels(slice(None), 2.0) for one in WRITERS[:-1]]
    assert torch.equal(stored[0], stored[1])
    torch.testing.assert_close(own, stored[0], rtol=1e-5, atol=1e-7)  # see ROUNDING
