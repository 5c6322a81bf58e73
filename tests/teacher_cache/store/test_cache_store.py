"""The cache on disk: layout, atomic creation and commits, what damage is found, what other readers see."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray
import zarr
from hypothesis import HealthCheck, given
from hypothesis import settings as example_settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from teacher_cache import open_cache
from teacher_cache.build import build_cache
from teacher_cache.classes.vocabulary import Vocabulary, load_vocabulary
from teacher_cache.errors import CacheDamagedError, CacheMismatchError, UsageError
from teacher_cache.images.index import index_images
from teacher_cache.images.table import SampleTable
from teacher_cache.info import describe
from teacher_cache.store import cache_store
from teacher_cache.store.cache_store import CacheStore
from teacher_cache.store.header import CHUNK_ROWS, CacheHeader, part_rows
from teacher_cache.store.parts import StoredParts
from teacher_cache.store.verify import verify_store
from teacher_cache.store.vocabularies import vocabulary_digest
from tests.teacher_cache.inputs import ANIMALS, settings, write_names, write_shards

VOCABULARY = Vocabulary(ANIMALS, ANIMALS)
ARRAYS = ("image_features", "crops", "valid", "labels")


@pytest.fixture(scope="module")
def table(shards: Path, names: Path) -> SampleTable:
    """The samples of two tars."""
    return index_images(str(shards), load_vocabulary(names))[0]


def header(table: SampleTable, part_size: int = 5, embedding: int = 8, views: int = 1) -> CacheHeader:
    """Header of a cache of those samples with a teacher that does not matter here."""
    return CacheHeader(
        samples=len(table),
        part_size=part_size,
        embedding=embedding,
        classes=len(ANIMALS),
        encoding={"name": "factored"},
        teacher={"model": "m", "pretrained": None, "weights_digest": "d", "logit_scale": 50.0},
        view_policy={"views": views},
        vocabulary="animals",
        vocabulary_digest=vocabulary_digest(VOCABULARY),
        sample_table_digest=table.digest,
        images="shards",
        software="rpp",
        passes=[views],
    )


def create(path: Path, table: SampleTable, **more: Any) -> CacheStore:
    """A new cache, without parts."""
    made = header(table, **more)
    features = np.eye(len(ANIMALS), made.embedding, dtype=np.float32)
    return CacheStore.create(path, made, table, VOCABULARY, features)


def random_arrays(made: CacheStore, part: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Arrays of a part in the stored dtypes, as if a teacher had made them."""
    random = np.random.default_rng([seed, part])
    rows, views = made.header.rows(part), made.header.views
    count = rows.stop - rows.start
    return {
        "image_features": random.normal(size=(count, views, made.header.embedding)).astype(np.float16),
        "crops": random.integers(0, 1 << 16, (count, views, 5), dtype=np.uint16),
        "valid": random.random(count) < 0.8,
        "labels": random.integers(-1, 5, count, dtype=np.int32),
    }


@given(data=st.data())
@example_settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_committed_arrays_are_read_back_bit_equal(
    data: st.DataObject, table: SampleTable, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Every float16 bit pattern (NaN, infinities, -0), any order of commits, parts and views of any size."""
    part_size = part_rows(data.draw(st.integers(1, 20)), len(table))
    views = data.draw(st.integers(1, 3))
    path = tmp_path_factory.mktemp("store") / "zarr"
    made = create(path, table, part_size=part_size, views=views, embedding=6)
    order = data.draw(st.permutations(range(made.header.parts)))
    whole: dict[str, list[np.ndarray]] = {name: [] for name in ARRAYS}
    committed = {}
    for part in order:
        rows = made.header.rows(part)
        shape = (rows.stop - rows.start, views, 6)
        bits = data.draw(arrays_of.arrays(np.uint16, shape))
        arrays = random_arrays(made, part) | {"image_features": bits.view(np.float16)}
        made.parts.commit(part, arrays, {}, [])
        committed[part] = arrays
    for part in range(made.header.parts):
        for name, values in committed[part].items():
            whole[name].append(values)
    read = zarr.open_group(path, mode="r")
    for name, pieces in whole.items():
        stored = np.asarray(read[name][:])
        expected = np.concatenate(pieces)
        assert stored.dtype == expected.dtype
        np.testing.assert_array_equal(stored.view(np.uint8), expected.view(np.uint8))
    again = CacheStore.open(path)
    assert again.parts.missing() == []
    assert verify_store(again).tables == []
    assert all(again.parts.is_intact(part) for part in again.parts.committed())


@pytest.mark.parametrize("asked", [1, 7, 1023, 1024, 1025, 5000, 8192])
@pytest.mark.parametrize("samples", [1, 12, 1024, 1025, 14_197_122])
def test_a_part_is_a_shard_of_whole_chunks(asked: int, samples: int) -> None:
    rows = part_rows(asked, samples)
    assert rows >= min(asked, samples)
    assert rows <= CHUNK_ROWS or rows % CHUNK_ROWS == 0
    assert rows < min(asked, samples) + CHUNK_ROWS


def test_creation_that_fails_leaves_nothing(
    table: SampleTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache_store, "write_samples", full_disk)
    with pytest.raises(OSError, match="No space"):
        create(tmp_path / "zarr", table)
    assert list(tmp_path.iterdir()) == []


def test_a_part_exists_only_once_its_record_is_there(
    table: SampleTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = create(tmp_path / "zarr", table)

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(StoredParts, "write_record", interrupted)
        with pytest.raises(KeyboardInterrupt):
            made.parts.commit(1, random_arrays(made, 1), {}, [])
    assert made.parts.committed() == []
    assert made.parts.missing() == [0, 1, 2]
    first = random_arrays(made, 1, seed=1)
    made.parts.commit(1, first, {"forward": 1.25}, [{"row": 5, "key": "k", "reason": "r"}])
    record = made.parts.record(1)
    assert (record.part, record.rows, record.seconds["forward"]) == (1, (5, 10), 1.25)
    assert made.parts.is_intact(1)
    assert made.parts.missing() == [0, 2]


def damage_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 16
    path.write_bytes(content)


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize(
    "damage",
    [damage_bit, lambda p: p.write_bytes(p.read_bytes()[:-5]), lambda p: p.write_bytes(b""), Path.unlink],
    ids=["bit", "cut", "empty", "gone"],
)
def test_damage_is_found_only_in_its_part(name: str, damage: Any, table: SampleTable, tmp_path: Path) -> None:
    made = create(tmp_path / "zarr", table)
    for part in range(3):
        made.parts.commit(part, random_arrays(made, part), {}, [])
    shards = sorted(path for path in (Path(made.path) / name / "c" / "1").rglob("*") if path.is_file())
    damage(shards[0] if shards else Path(made.path) / name / "c" / "1")
    assert [made.parts.is_intact(part) for part in range(3)] == [True, False, True]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"part": 1}', "\x00"])
def test_a_broken_record_is_a_damaged_part(content: str, table: SampleTable, tmp_path: Path) -> None:
    made = create(tmp_path / "zarr", table)
    made.parts.commit(1, random_arrays(made, 1), {}, [])
    (Path(made.path) / "parts" / "000001.json").write_text(content)
    assert not made.parts.is_intact(1)
    with pytest.raises(CacheDamagedError, match=r"000001\.json is not readable"):
        made.parts.record(1)
    made.parts.withdraw(1)
    assert made.parts.missing() == [0, 1, 2]


def test_damaged_tables_are_found(table: SampleTable, tmp_path: Path) -> None:
    made = create(tmp_path / "zarr", table)
    assert verify_store(made).tables == []
    damage_bit(Path(made.path) / "vocabularies" / "animals" / "class_features" / "c" / "0" / "0")
    assert verify_store(made).tables == ["vocabularies/animals"]
    samples = Path(made.path) / "samples.parquet"
    samples.write_bytes(samples.read_bytes()[:-20])
    fresh = CacheStore.open(made.path)
    assert verify_store(fresh).tables == ["samples.parquet", "vocabularies/animals"]


def test_a_missing_array_is_named(table: SampleTable, tmp_path: Path) -> None:
    made = create(tmp_path / "zarr", table)
    shutil.rmtree(Path(made.path) / "crops")
    with pytest.raises(CacheDamagedError, match="the array 'crops' is missing"):
        CacheStore.open(made.path).parts.array("crops")


@pytest.mark.parametrize(
    ("attributes", "error", "reason"),
    [
        (None, UsageError, "no cache at"),
        ("{", CacheDamagedError, "not readable"),
        ({}, UsageError, "a Zarr group, but was not written by rpp-cache"),
        (
            {"format": "rpp-cache", "format_version": 4, "software": "rpp 9.1"},
            UsageError,
            r"has cache format 4, written by rpp 9\.1; rpp 0\.\S+ reads formats 2 and 3: .* rpp-clip$",
        ),
        (
            {"format": "rpp-cache"},
            CacheDamagedError,
            "has cache format None, which no version of rpp writes; copy or build the cache again",
        ),
        ({"format": "rpp-cache", "format_version": "2"}, CacheDamagedError, "format '2', which no version"),
        ({"format": "rpp-cache", "format_version": 0}, CacheDamagedError, "format 0, which no version"),
        (
            {"format": "rpp-cache", "format_version": 1},
            UsageError,
            "cache format 1, written by a development version of rpp; build the cache again in another --out",
        ),
    ],
)
def test_other_groups_and_formats_are_refused(
    attributes: Any, error: type[Exception], reason: str, tmp_path: Path
) -> None:
    if isinstance(attributes, dict):
        zarr.create_group(tmp_path / "zarr", zarr_format=3, attributes=attributes)
    elif attributes is not None:
        (tmp_path / "zarr").mkdir()
        (tmp_path / "zarr" / "zarr.json").write_text(attributes)
    with pytest.raises(error, match=reason):
        CacheStore.open(tmp_path / "zarr")


@pytest.mark.parametrize("key", ["parts/000001.json", "vocabularies/animals/zarr.json", "zarr.json"])
def test_deeply_nested_json_is_damage(key: str, cache: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(cache, tmp_path / "zarr"))
    (copy / "header.json").unlink()
    (copy / key).write_text("[" * 100_000)
    with pytest.raises(CacheDamagedError, match=rf"{key} is not readable: it is nested too deeply"):
        describe(CacheStore.open(copy))


def test_different_headers_are_refused(table: SampleTable) -> None:
    one = header(table)
    one.require_equal(replace(one, images="elsewhere", software="newer"), "zarr")
    one.require_equal(replace(one, teacher={**one.teacher, "model": "moved"}), "zarr")
    with pytest.raises(CacheMismatchError, match=r"encoding\.name: stored factored, requested dense"):
        one.require_equal(replace(one, encoding={"name": "dense"}), "zarr")
    for name, value in (("samples", 13), ("part_size", 6)):
        with pytest.raises(CacheMismatchError, match=rf"{name}: stored \S+, requested {value}"):
            one.require_equal(replace(one, **{name: value}), "zarr")
    for key, value in (("weights_digest", "e"), ("logit_scale", 51.0)):
        with pytest.raises(CacheMismatchError, match=rf"teacher\.{key}: stored \S+, requested {value}"):
            one.require_equal(replace(one, teacher={**one.teacher, key: value}), "zarr")


def test_the_default_vocabulary_is_listed_first(table: SampleTable, tmp_path: Path) -> None:
    made = create(tmp_path / "zarr", table)
    tiere = Vocabulary(("Katze", "Hund"), ("cat", "dog"), ("ein Bild von {}",))
    features = np.eye(2, 8, dtype=np.float32)
    made.add_vocabulary("Tiere", tiere, features)
    fresh = CacheStore.open(made.path)
    assert fresh.vocabulary_names() == ["animals", "Tiere"]
    assert fresh.vocabulary() == VOCABULARY
    assert fresh.vocabulary("Tiere") == tiere
    np.testing.assert_array_equal(fresh.class_features("Tiere"), features)
    with pytest.raises(UsageError, match="has no vocabulary 'animaux', only animals, Tiere"):
        fresh.vocabulary("animaux")


# Zarr names the files in the group that are not its own.
@pytest.mark.filterwarnings("ignore:Object at .* is not recognized as a component of a Zarr")
def test_xarray_opens_a_cache_with_named_dimensions(cache: Path) -> None:
    found = xarray.open_zarr(cache, consolidated=False)
    ours = open_cache(cache)
    assert dict(found.sizes) == {"sample": 12, "view": 1, "feature": 48, "box": 5}
    assert found.attrs["teacher"]["logit_scale"] == ours.logit_scale
    features = found["image_features"].isel(view=0, sample=[3, 1]).values
    np.testing.assert_array_equal(features, ours.image_features([3, 1]).numpy())
    classes = xarray.open_zarr(cache, group="vocabularies/animals", consolidated=False)
    np.testing.assert_array_equal(classes["class_features"].values, ours.class_features.numpy())
    assert classes.attrs["names"] == list(ANIMALS)


def test_a_view_of_512_features_costs_at_most_1100_bytes(tmp_path: Path) -> None:
    """design.md's bound for ViT-B: features, crop, label, record and the sample table together."""
    source = write_shards(tmp_path / "shards", shards=4, samples=512, width=8, height=8)
    table, _ = index_images(str(source), VOCABULARY)
    made = create(tmp_path / "zarr", table, part_size=CHUNK_ROWS, embedding=512)
    for part in range(made.header.parts):
        made.parts.commit(part, random_arrays(made, part), {"forward": 1.0}, [])
    files = [p for p in Path(made.path).rglob("*") if p.is_file() and "vocabularies" not in p.parts]
    whole = sum(p.stat().st_size for p in files if p.name not in ("zarr.json", "header.json", "build.lock"))
    assert made.parts.bytes_per_view() == pytest.approx(whole / 2048)
    assert 1024 + 10 + 1 + 4 < made.parts.bytes_per_view() <= 1100


def test_bytes_a_view_do_not_depend_on_how_far_the_build_is(table: SampleTable, tmp_path: Path) -> None:
    made = create(tmp_path / "zarr", table, part_size=4)
    assert made.parts.bytes_per_view() == 0
    sizes = []
    for part in range(3):
        made.parts.commit(part, random_arrays(made, part), {}, [])
        sizes.append(made.parts.bytes_per_view())
    assert sizes == pytest.approx([sizes[0]] * 3, rel=0.01)


def test_the_sample_table_is_that_of_the_images(cache: Path, shards: Path, names: Path) -> None:
    indexed, _ = index_images(str(shards), load_vocabulary(names))
    stored = CacheStore.open(cache).samples
    assert (
        stored.digest
        == SampleTable(stored.table).digest
        == indexed.digest
        == CacheStore.open(cache).header.sample_table_digest
    )
    assert stored.keys(slice(None)) == indexed.keys(slice(None))


def test_a_record_has_the_seconds_of_each_stage(teacher: Path, tmp_path: Path) -> None:
    source = write_shards(tmp_path / "shards", shards=1)
    build_cache(settings(source, write_names(tmp_path / "names.txt"), tmp_path / "zarr", teacher))
    record = json.loads((tmp_path / "zarr" / "parts" / "000000.json").read_text())
    stages = {"wall", "read", "decode", "decode_elapsed", "wait", "forward", "device", "write"}
    assert set(record["seconds"]) == stages
    assert record["seconds"]["forward"] > 0
    assert set(record["checksums"]) == set(ARRAYS)
