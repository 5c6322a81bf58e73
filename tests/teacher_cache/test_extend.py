"""More views for a finished cache: equal to one build with that many, also after interruptions."""

import shutil
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
import torch

from teacher_cache import open_cache
from teacher_cache.build import build_cache
from teacher_cache.command_settings import ExtendSettings, ViewPolicy
from teacher_cache.errors import CacheMismatchError, UsageError
from teacher_cache.extend import extend_cache
from teacher_cache.store.cache_store import CacheStore
from teacher_cache.store.local_folder import LocalFolder
from teacher_cache.store.verify import verify_store
from tests.models import write_model
from tests.teacher_cache.inputs import (
    decoded_arrays,
    part_record,
    settings,
    webdataset_members,
    write_names,
    write_shard,
    write_shards,
)

ONE_BY_ONE: dict[str, Any] = {"batch_size": 1, "threads": 2, "device": "cpu"}


def views(number: int) -> dict[str, Any]:
    """Settings of a build with so many views, each in a forward pass of its own."""
    return {**ONE_BY_ONE, "view_policy": ViewPolicy(views=number, view_seed=7)}


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory, teacher: Path, shards: Path, names: Path) -> Path:
    """A finished cache with two views per sample."""
    out = tmp_path_factory.mktemp("few") / "zarr"
    build_cache(settings(shards, names, out, teacher, **views(2)))
    return out


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory, teacher: Path, shards: Path, names: Path) -> Path:
    """The cache of one build with five views."""
    out = tmp_path_factory.mktemp("many") / "zarr"
    build_cache(settings(shards, names, out, teacher, **views(5)))
    return out


@pytest.fixture
def copy(few: Path, tmp_path: Path) -> Path:
    """A cache with two views that a test may change."""
    shutil.copytree(few, tmp_path / "zarr")
    return tmp_path / "zarr"


def assert_same_bits(one: Path, other: Path) -> None:
    """All per-sample arrays of two caches are equal to the last bit, however many passes made them."""
    here, there = decoded_arrays(one), decoded_arrays(other)
    assert set(here) == set(there)
    for name, values in here.items():
        np.testing.assert_array_equal(values.view(np.uint8), there[name].view(np.uint8), err_msg=name)


def test_an_extended_cache_equals_one_build_with_that_many_views(
    copy: Path, many: Path, teacher: Path, shards: Path, names: Path
) -> None:
    before = {part: part_record(copy, part) for part in range(4)}
    result = extend_cache(str(copy), ExtendSettings(views=3, **ONE_BY_ONE))
    assert (result.views, result.parts_total, result.parts_computed) == (3, 8, 4)
    extend_cache(str(copy), ExtendSettings(views=5, **ONE_BY_ONE))
    assert_same_bits(copy, many)
    assert {part: part_record(copy, part) for part in range(4)} == before
    store = CacheStore.open(copy)
    assert (store.header.passes, store.header.views) == ([2, 3, 5], 5)
    assert not verify_store(store)
    found = open_cache(copy)
    assert found.num_views == 5
    torch.testing.assert_close(found.logits([7, 2], view=4), open_cache(many).logits([7, 2], view=4))
    assert build_cache(settings(shards, names, copy, teacher, **views(5))).parts_computed == 0
    with pytest.raises(CacheMismatchError, match=r"view_policy\.views: stored 5, requested 2"):
        build_cache(settings(shards, names, copy, teacher, **views(2)))


@pytest.mark.parametrize("written", range(7))
def test_an_extension_stopped_at_any_write_keeps_the_old_views_and_continues(
    written: int, copy: Path, many: Path, teacher: Path, shards: Path, names: Path, monkeypatch: Any
) -> None:
    old = open_cache(copy).image_features(slice(None), 1)
    left = [written]
    writing = LocalFolder.writing

    def stopping(self: LocalFolder, key: str) -> AbstractContextManager[IO[bytes]]:
        if not left[0]:
            raise RuntimeError("stopped")
        left[0] -= 1
        return writing(self, key)

    with monkeypatch.context() as patched:
        patched.setattr(LocalFolder, "writing", stopping)
        with pytest.raises(RuntimeError, match="stopped"):
            extend_cache(str(copy), ExtendSettings(views=5, **ONE_BY_ONE))
    found = open_cache(copy)
    assert found.num_views == 2
    torch.testing.assert_close(found.image_features(slice(None), 1), old, rtol=0, atol=0)
    with pytest.raises(UsageError, match="view 2 is not in the cache, which has views 0 to 1"):
        found.image_features([0], 2)
    if CacheStore.open(copy).header.views == 5 and written % 2:  # build goes on as well
        build_cache(settings(shards, names, copy, teacher, **views(5)))
    else:
        extend_cache(str(copy), ExtendSettings(views=5, **ONE_BY_ONE))
    assert not verify_store(CacheStore.open(copy))
    assert_same_bits(copy, many)


def test_a_damaged_part_of_a_later_pass_affects_only_its_pass(
    copy: Path, many: Path, teacher: Path, shards: Path, names: Path
) -> None:
    extend_cache(str(copy), ExtendSettings(views=5, **ONE_BY_ONE))
    shard = copy / "crops" / "c" / "2" / "3" / "0"
    shard.write_bytes(shard.read_bytes()[:-1] + b"\0")
    store = CacheStore.open(copy)
    assert verify_store(store).parts == [6]
    store.parts.withdraw(6)
    assert open_cache(copy).num_views == 2
    assert extend_cache(str(copy), ExtendSettings(views=5, **ONE_BY_ONE)).parts_computed == 1
    assert_same_bits(copy, many)


def test_existing_views_and_unfinished_caches_are_refused(copy: Path) -> None:
    for number in (1, 2):
        with pytest.raises(UsageError, match="already has 2 views per sample"):
            extend_cache(str(copy), ExtendSettings(views=number, **ONE_BY_ONE))
    CacheStore.open(copy).parts.withdraw(3)
    with pytest.raises(
        UsageError, match=r"not complete: 1 of 4 parts are missing; run rpp-cache build again"
    ):
        extend_cache(str(copy), ExtendSettings(views=3, **ONE_BY_ONE))
    assert CacheStore.open(copy).header.passes == [2]


def test_another_teacher_or_other_images_are_refused_before_anything_changes(
    copy: Path, tmp_path: Path
) -> None:
    other = write_model(tmp_path / "other", "gelu", seed=1)
    with pytest.raises(UsageError, match=r"has weights blake2b:\S+, the cache was made with blake2b:\S+;"):
        extend_cache(str(copy), ExtendSettings(views=3, teacher=str(other), **ONE_BY_ONE))
    images = write_shards(tmp_path / "images", shards=1)
    with pytest.raises(
        UsageError, match=r"does not contain the samples of the cache .*: expected 12 .* found 6"
    ):
        extend_cache(str(copy), ExtendSettings(views=3, images=str(images), **ONE_BY_ONE))
    write_shard(images / "shard-001.tar", webdataset_members(50, 6))
    with pytest.raises(
        UsageError, match=r"6 of 12 samples differ, the first in row 6: expected key \S+6, found \S+50 "
    ):
        extend_cache(str(copy), ExtendSettings(views=3, images=str(images), **ONE_BY_ONE))
    assert CacheStore.open(copy).header.passes == [2]


def test_moved_images_and_weights_are_named(tmp_path: Path, copy: Path, shards: Path, teacher: Path) -> None:
    """The recorded places are gone; the options name copies."""
    images, model = tmp_path / "moved", tmp_path / "model"
    shutil.copytree(shards, images)
    shutil.copytree(teacher, model)
    result = extend_cache(
        str(copy), ExtendSettings(views=3, images=str(images), teacher=str(model), **ONE_BY_ONE)
    )
    assert result.parts_computed == 4
    assert {path for path, *_ in open_cache(copy).samples.locations(slice(None))} == {
        str(images / f"shard-{n:03d}.tar") for n in range(2)
    }


def test_an_extension_keeps_added_vocabularies(copy: Path, tmp_path: Path) -> None:
    """A vocabulary that was added before keeps its place."""
    assert write_names(tmp_path / "names.txt")
    store = CacheStore.open(copy, writable=True)
    store.add_vocabulary("again", store.vocabulary(), store.class_features())
    extend_cache(str(copy), ExtendSettings(views=3, **ONE_BY_ONE))
    assert open_cache(copy, "again").logits([0], view=2).shape == (1, 5)
