"""A flipped bit in any stored object is found, named and repaired by a build of at most one part."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from teacher_cache import open_cache
from teacher_cache.build import build_cache
from teacher_cache.errors import CacheDamagedError
from teacher_cache.store import parts
from teacher_cache.store.cache_store import CacheStore
from teacher_cache.store.verify import verify_store
from tests.teacher_cache.inputs import assert_same_arrays, settings

# object of the cache of `conftest.py` -> what verify names: a part or a table
STORED = {
    "image_features/c/2/0/0": 2,
    "crops/c/0/0/0": 0,
    "labels/c/1": 1,
    "valid/c/3": 3,
    "parts/000001.json": 1,
    "zarr.json": "zarr.json",
    "header.json": "header.json",
    "image_features/zarr.json": "image_features/zarr.json",
    "crops/zarr.json": "crops/zarr.json",
    "labels/zarr.json": "labels/zarr.json",
    "valid/zarr.json": "valid/zarr.json",
    "samples.parquet": "samples.parquet",
    "vocabularies/zarr.json": "vocabularies/zarr.json",
    "vocabularies/animals/zarr.json": "vocabularies/animals",
    "vocabularies/animals/class_features/zarr.json": "vocabularies/animals",
    "vocabularies/animals/class_features/c/0/0": "vocabularies/animals",
}


def flip(path: Path, share: float) -> None:
    """Flip a bit of a significant byte: a digit or letter of JSON, any byte of other files."""
    content = bytearray(path.read_bytes())
    at = int(len(content) * share)
    while path.suffix == ".json" and not chr(content[at]).isalnum():
        at = (at + 1) % len(content)
    content[at] ^= 1
    path.write_bytes(content)


def test_every_stored_object_is_in_the_list_above(cache: Path) -> None:
    found = {p.relative_to(cache).as_posix() for p in cache.rglob("*") if p.is_file()} - {"build.lock"}
    assert {name.rpartition("/c/")[0] or name for name in found} == {
        name.rpartition("/c/")[0] or name for name in STORED if not name.startswith("parts/")
    } | {f"parts/{part:06d}.json" for part in range(4)}


@pytest.mark.parametrize("key", STORED)
def test_a_flipped_bit_is_found_named_and_repaired(
    key: str, cache: Path, teacher: Path, shards: Path, names: Path, tmp_path: Path
) -> None:
    out, named = tmp_path / "zarr", STORED[key]
    for share in (0.35, 0.7):
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(cache, out)
        flip(out / key, share)
        store = CacheStore.open(out)
        damage = verify_store(store)
        part = [named] if isinstance(named, int) else []
        assert (damage.parts, damage.tables) == (part, [] if part else [named])
        for number in damage.parts:
            store.parts.withdraw(number)
    result = build_cache(settings(shards, names, out, teacher))
    assert result.parts_computed == len(part)
    assert not verify_store(CacheStore.open(out))
    assert_same_arrays(out, cache)


def test_the_copy_serves_if_the_header_is_damaged(cache: Path, tmp_path: Path) -> None:
    out = tmp_path / "zarr"
    shutil.copytree(cache, out)
    sound = (out / "zarr.json").read_text()
    for damage in ("{", sound.replace('"views": 1', '"views": 2'), sound.replace("checksum", "chdcksum")):
        (out / "zarr.json").write_text(damage)
        assert open_cache(out).header == open_cache(cache).header
    (out / "header.json").write_text("{}")
    with pytest.raises(CacheDamagedError, match=r"zarr\.json is not readable: it has no checksum"):
        open_cache(out)


@pytest.mark.parametrize("key", [key for key in STORED if key.count("/") and key.endswith("zarr.json")])
def test_metadata_for_other_readers_are_compared_too(key: str, cache: Path, tmp_path: Path) -> None:
    out = tmp_path / "zarr"
    shutil.copytree(cache, out)
    content = (out / key).read_bytes()
    changed = content.replace(b'"sample"', b'"sampld"').replace(b'"feature"', b'"featurd"')
    (out / key).write_bytes(changed if changed != content else content.replace(b"{}", b'{"a": 1}'))
    if key == "vocabularies/animals/zarr.json":
        (out / key).write_bytes(content.replace(b"photo", b"phono"))
    assert verify_store(CacheStore.open(out)).tables == [STORED[key]]


def test_damaged_metadata_do_not_damage_parts(cache: Path, tmp_path: Path) -> None:
    """`verify` withdraws damaged parts: one byte of metadata must not cost a complete build."""
    out = tmp_path / "zarr"
    shutil.copytree(cache, out)
    (out / "image_features" / "zarr.json").write_text("")
    damage = verify_store(CacheStore.open(out))
    assert (damage.parts, damage.tables) == ([], ["image_features/zarr.json"])


def test_an_error_of_a_library_is_not_damage(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`verify` would withdraw intact parts."""

    def changed(array: Any, selection: Any) -> Any:
        raise TypeError("unexpected keyword argument")

    monkeypatch.setattr(parts, "read", changed)
    with pytest.raises(TypeError, match="unexpected keyword"):
        verify_store(CacheStore.open(cache))
