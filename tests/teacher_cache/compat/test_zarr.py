"""Both ways to the same objects, and errors that zarr raises as a group."""

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from zarr.storage import LocalStore, MemoryStore

from teacher_cache.compat import zarr as fence
from teacher_cache.errors import CacheDamagedError, CacheUnreachableError
from teacher_cache.store.cache_store import CacheStore
from teacher_cache.store.layout import array_metadata
from teacher_cache.store.local_folder import LocalFolder
from teacher_cache.store.verify import verify_store
from tests.data import caches
from tests.data.caches.write import header_of

CACHE = Path(caches.__file__).parent / "zarr-3.4" / "topk"


class Copying(MemoryStore):
    """A store that takes its dictionary as initial data only."""

    def __init__(self, store_dict: Any = None, **more: Any) -> None:
        super().__init__(dict(store_dict or {}), **more)


@pytest.fixture
def copying(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make zarr's memory store one that copies; gives what is called for it."""
    monkeypatch.setattr(fence, "MemoryStore", Copying)
    fence._memory_is_shared.cache_clear()
    yield
    monkeypatch.undo()
    fence._memory_is_shared.cache_clear()


def test_objects_are_the_same_if_written_to_a_folder(copying: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not fence._memory_is_shared()
    slowly = array_metadata(header_of("topk"))
    monkeypatch.setattr(fence, "MemoryStore", MemoryStore)
    fence._memory_is_shared.cache_clear()
    assert fence._memory_is_shared()
    assert array_metadata(header_of("topk")) == slowly
    assert {key.rpartition("/")[2] for key in slowly} == {"zarr.json"}
    assert slowly["topk_logits/zarr.json"] == (CACHE / "topk_logits" / "zarr.json").read_bytes()


@pytest.mark.parametrize("shared", [True, False])
def test_equal_metadata_in_other_words_is_not_damage(
    shared: bool, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if not shared:
        request.getfixturevalue("copying")
    copy = Path(shutil.copytree(CACHE, tmp_path / "zarr"))
    file = copy / "crops" / "zarr.json"
    sound = file.read_text()
    for changed, damaged in {
        sound.replace('"attributes": {},', ""): [],
        sound.replace('"fill_value": 0', '"fill_value": 1'): ["crops/zarr.json"],
        sound.replace('"uint16"', '"uint15"'): ["crops/zarr.json"],
        sound.replace('"array"', '"group"'): ["crops/zarr.json"],
    }.items():
        assert changed != sound
        file.write_text(changed)
        assert verify_store(CacheStore.open(copy)).tables == damaged


def test_an_array_is_opened_with_given_metadata(tmp_path: Path) -> None:
    copy = Path(shutil.copytree(CACHE, tmp_path / "zarr"))
    metadata = (copy / "topk_classes" / "zarr.json").read_bytes()
    expected = np.asarray(zarr.open_array(CACHE, path="topk_classes", mode="r")[:])
    for stored in (b"{", metadata.replace(b'"uint16"', b'"uint32"'), None):
        if stored is None:
            (copy / "topk_classes" / "zarr.json").unlink()
        else:
            (copy / "topk_classes" / "zarr.json").write_bytes(stored)
        for read_only in (True, False):
            store = LocalStore(copy, read_only=read_only)
            found = fence.open_with_metadata(store, "topk_classes", metadata)
            np.testing.assert_array_equal(found[:], expected)


class Unreachable(LocalStore):
    """A store whose connection is lost once the table of a shard was read."""

    async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Any:
        if type(byte_range).__name__ == "RangeByteRequest":
            raise CacheUnreachableError("lost")
        return await super().get(key, prototype, byte_range)


def test_an_error_in_a_read_of_ranges_keeps_its_type(tmp_path: Path) -> None:
    """Newer releases of zarr raise a group that holds it."""
    group = zarr.create_group(tmp_path, zarr_format=3)
    array = group.create_array("a", shape=(8, 3), dtype="float16", shards=(8, 3), chunks=(2, 3))
    array[:] = 1
    array = zarr.open_array(Unreachable(tmp_path, read_only=True), path="a", mode="r")
    with pytest.raises(CacheUnreachableError, match="lost"):
        fence.read(array, slice(0, 3))


def test_the_first_error_of_nested_groups_is_raised() -> None:
    inner = ExceptionGroup("inner", [KeyError("first"), ValueError()])
    with pytest.raises(KeyError, match="first"), fence.first_error():
        raise ExceptionGroup("outer", [inner, TypeError()])


@pytest.mark.parametrize("pipeline", ["Batched", "Fused"])
def test_a_folder_in_the_place_of_a_shard_is_damage_in_every_pipeline(pipeline: str, tmp_path: Path) -> None:
    """Zarr 3.4 has a pipeline that reads without the asynchronous methods of a store."""
    known = "zarr.core.codec_pipeline.{}CodecPipeline"
    if not hasattr(sys.modules["zarr"].core.codec_pipeline, f"{pipeline}CodecPipeline"):
        pytest.skip("this release of zarr does not have it")
    copy = Path(shutil.copytree(CACHE, tmp_path / "zarr"))
    shard = copy / "topk_logits" / "c" / "0" / "0" / "0"
    shard.unlink()
    shard.mkdir()
    with zarr.config.set({"codec_pipeline.path": known.format(pipeline)}):
        array = zarr.open_array(LocalFolder(str(copy)).zarr_store(False), path="topk_logits", mode="r")
        with pytest.raises(CacheDamagedError, match="is not a regular file"):
            fence.read(array, slice(None))
