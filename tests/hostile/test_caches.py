"""Caches with metadata that request terabytes, changed headers and records with valid checksums, and NaN."""

import json
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from teacher_cache import open_cache
from teacher_cache.build import build_cache
from teacher_cache.errors import CacheDamagedError, RppError
from teacher_cache.export import export_soft_labels
from teacher_cache.info import describe
from teacher_cache.stats import teacher_statistics
from teacher_cache.store import samples
from teacher_cache.store.cache_store import CacheStore
from teacher_cache.store.checksums import checksum, with_checksum
from teacher_cache.store.verify import verify_store
from tests.hostile.conftest import fuzzed
from tests.hostile.contract import bounded, is_one_line, tried
from tests.hostile.mutations import changed_json, damaged, damaged_json
from tests.models import write_model
from tests.teacher_cache.inputs import settings as build_settings


def write_with_checksum(path: Path, change: Any) -> None:
    """Change a JSON file and update its checksum, as the author of a hostile cache can."""
    record = json.loads(path.read_text())
    holder = record.get("attributes", record)
    holder.pop("checksum")
    changed = change(holder)
    with suppress(UnicodeEncodeError):  # surrogates have no checksum
        changed = with_checksum(changed) if isinstance(changed, dict) else changed
    if "attributes" in record:
        changed = {**record, "attributes": changed}
    path.write_text(json.dumps(changed))


def read_everything(path: Path) -> None:
    """Read a cache as commands do."""
    describe(CacheStore.open(path))
    cache = open_cache(path)
    cache.samples.keys(slice(0, 3))
    cache.samples.locations(np.array([len(cache) - 1]))
    cache.soft_labels([0, len(cache) - 1])
    assert cache.labels.nbytes + cache.valid.nbytes + cache.crops(0).nbytes < 1000
    cache.vocabulary.index_of("cat")
    cache.store.parts.skipped()


@pytest.fixture(scope="module")
def copy(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy that a fuzzer damages; `fresh` restores it."""
    return Path(shutil.copytree(cache, tmp_path_factory.mktemp("copy") / "zarr"))


def fresh(cache: Path, copy: Path) -> None:
    shutil.rmtree(copy)
    shutil.copytree(cache, copy)


TEACHER = {"model": "m", "pretrained": None, "weights_digest": "d"}
SEALED = ["zarr.json", "parts/000001.json", "vocabularies/animals/zarr.json"]


@given(data=st.data())
@fuzzed(20)
def test_fuzz_cache_metadata(cache: Path, copy: Path, data: st.DataObject) -> None:
    fresh(cache, copy)
    files = sorted(path.relative_to(cache).as_posix() for path in cache.rglob("*.json"))
    for name in data.draw(st.lists(st.sampled_from(files), min_size=1, max_size=2, unique=True)):
        if name == "zarr.json":
            (copy / "header.json").unlink()  # otherwise it is read instead
        if name in SEALED and data.draw(st.integers(0, 4)):
            write_with_checksum(copy / name, lambda record: data.draw(changed_json(record)))
        else:
            record = json.loads((cache / name).read_text())
            (copy / name).write_bytes(data.draw(damaged_json(record)))
    tried(lambda: read_everything(copy))
    tried(lambda: verify_store(CacheStore.open(copy)))


@given(data=st.data())
@fuzzed(15)
def test_fuzz_cache_files(cache: Path, copy: Path, data: st.DataObject) -> None:
    fresh(cache, copy)
    files = sorted(
        p.relative_to(cache).as_posix() for p in cache.rglob("*") if p.is_file() and p.suffix != ".json"
    )
    name = data.draw(st.sampled_from(files) | st.just("samples.parquet"))
    content = (cache / name).read_bytes()
    (copy / name).write_bytes(data.draw(damaged(content)))
    tried(lambda: read_everything(copy))
    tried(lambda: verify_store(CacheStore.open(copy)))


def rewrite(path: Path, change: Any) -> None:
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


def shape(*sizes: int) -> Any:
    return lambda record: record.update(shape=list(sizes))


def chunks(*sizes: int) -> Any:
    return lambda record: record["chunk_grid"]["configuration"].update(chunk_shape=list(sizes))


def codec(name: str) -> Any:
    def change(record: dict[str, Any]) -> None:
        inner = record["codecs"][0]["configuration"]["codecs"]
        inner.append({"name": name, "configuration": {"level": 1}})

    return change


@pytest.mark.parametrize(
    ("array", "change"),
    [
        ("labels", shape(10**13)),
        ("labels", shape(13)),
        ("labels", chunks(10**13)),
        ("labels", lambda record: record.update(data_type="float64")),
        ("labels", lambda record: record.update(codecs=[])),
        ("labels", codec("gzip")),
        ("valid", shape(12, 12)),
        ("crops", shape(12, 1, 10**12)),
        ("crops", chunks(6, 1, 10**12)),
        ("image_features", shape(10**9, 1, 10**9)),
        ("image_features", lambda record: record.update(data_type="complex128")),
        ("image_features", lambda record: record.update(fill_value="NaN")),
        ("image_features", lambda record: record.clear()),
    ],
)
def test_metadata_that_request_terabytes_are_refused_before_allocation(
    array: str, change: Any, copy: Path, cache: Path
) -> None:
    fresh(cache, copy)
    rewrite(copy / array / "zarr.json", change)
    opened = open_cache(copy)
    with bounded(), pytest.raises(CacheDamagedError, match=rf"{array}/zarr\.json is not"):
        opened.store.parts.array(array)
    assert verify_store(CacheStore.open(copy)).tables == [f"{array}/zarr.json"]


@pytest.mark.parametrize("change", [shape(10**9, 10**9), shape(5, 48, 1), shape(4, 48), chunks(10**9, 48)])
def test_metadata_of_class_features_that_request_terabytes_are_refused(
    change: Any, copy: Path, cache: Path
) -> None:
    fresh(cache, copy)
    rewrite(copy / "vocabularies/animals/class_features/zarr.json", change)
    opened = open_cache(copy)
    with bounded(), pytest.raises(CacheDamagedError, match=r"class_features is not readable: its zarr\.json"):
        opened.soft_labels([0])


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"samples": 10**13}, r"samples: Input should be less than"),
        ({"samples": 2**31, "part_size": 1}, r"2,147,483,648 parts; a cache has at most"),
        ({"samples": 11, "part_size": 6}, r"samples\.parquet has 12 rows, the header 11 samples"),
        ({"samples": "12"}, r"samples: Input should be a valid integer"),
        ({"part_size": 0}, r"part_size: Input should be greater"),
        ({"embedding": 10**9}, r"embedding: Input should be less than"),
        ({"classes": -5}, r"classes: Input should be greater"),
        ({"passes": [10**12]}, r"passes: \[1000000000000\] do not ascend to 1 views"),
        ({"passes": []}, r"passes: \[\] do not ascend to 1 views"),
        ({"passes": [0, 1]}, r"the first pass has no view"),
        ({"view_policy": {"views": 10**12}}, r"--views 1000000000000: Input should be less than"),
        (
            {"encoding": {"name": "topk", "k": 10**12}},
            r"topk of 1000000000000 needs a vocabulary",
        ),
        ({"view_policy": {"view_seed": 0}}, r"view_policy\.views: Field required"),
        ({"encoding": {"name": "evil"}}, r"unknown encoding 'evil'"),
        ({"vocabulary": "../../outside"}, r"vocabulary: not a folder name"),
        ({"vocabulary": "a" * 5000}, r"vocabulary: not a folder name"),
        ({"encoding": {"name": "topk", "k": True}}, r"'topk': k: Input should be a valid integer"),
        ({"teacher": {}}, r"teacher\.model: Field required"),
        (
            {"teacher": TEACHER | {"logit_scale": -17}},
            r"teacher\.logit_scale: Input should be greater",
        ),
        (
            {"teacher": TEACHER | {"logit_scale": 0.0}},
            r"teacher\.logit_scale: Input should be greater",
        ),
        (
            {"teacher": TEACHER | {"logit_scale": True}},
            r"teacher\.logit_scale: Input should be a valid",
        ),
        ({"teacher": TEACHER | {"logit_scale": 10**400}}, r"teacher\.logit_scale: Input should be a"),
        ({"max_pixels": 10**12}, r"max_pixels: Input should be less than"),
    ],
)
def test_an_invalid_header_is_refused(changes: dict[str, Any], reason: str, copy: Path, cache: Path) -> None:
    """Sealed again, so that its checksum is right."""
    fresh(cache, copy)
    for name in ("zarr.json", "header.json"):
        write_with_checksum(copy / name, lambda record: {**record, **changes})
    with bounded(), pytest.raises(RppError, match=reason) as refused:
        read_everything(copy)
    assert is_one_line(str(refused.value))


@pytest.mark.parametrize(
    ("name", "changes", "reason"),
    [
        ("parts/000000.json", {"rows": ["0", "6"]}, r"000000\.json is not readable: rows\.0"),
        ("parts/000000.json", {"skipped": [{"key": "a"}]}, "a skipped sample has no row, key or reason"),
        ("parts/000000.json", {"seconds": {"wall": "x"}}, r"seconds\.wall: Input should be a valid number"),
        ("vocabularies/animals/zarr.json", {"names": "abcde"}, "are not lists of texts"),
        ("vocabularies/animals/zarr.json", {"ids": ["a"]}, "do not belong together"),
        ("vocabularies/animals/zarr.json", {"templates": ["{0.__class__}"]}, "do not belong together"),
    ],
)
def test_records_with_wrong_types_are_refused(
    name: str, changes: dict[str, Any], reason: str, copy: Path, cache: Path
) -> None:
    fresh(cache, copy)
    write_with_checksum(copy / name, lambda record: {**record, **changes})
    with pytest.raises(CacheDamagedError, match=reason):
        describe(CacheStore.open(copy))


def samples_table(change: Any) -> Any:
    def write(path: Path) -> None:
        pq.write_table(change(pq.read_table(path)), path)

    return write


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda t: t.drop(["key"]), "its columns are"),
        (lambda t: t.set_column(2, "offset", pa.array(["x"] * 12)), "its columns are"),
        (lambda t: pa.concat_tables([t] * 1000), "has 12,000 rows, the header 12 samples"),
        (
            lambda t: t.set_column(0, "key", pa.array([None] * 12, pa.string())),
            "its column key has empty values",
        ),
        (
            lambda t: t.set_column(
                0, "key", pa.Array.from_buffers(pa.string(), 12, pa.array([b"\xff"] * 12).buffers())
            ),
            "Invalid UTF8",
        ),
    ],
)
def test_an_invalid_sample_table_is_damage(change: Any, reason: str, copy: Path, cache: Path) -> None:
    fresh(cache, copy)
    samples_table(change)(copy / "samples.parquet")
    with pytest.raises(CacheDamagedError, match=reason):
        open_cache(copy).samples.locations(slice(0, 3))


def test_large_row_groups_are_not_read(copy: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "LARGEST_GROUP", 11)
    with pytest.raises(CacheDamagedError, match="its largest row group has 12 rows"):
        open_cache(cache).samples.keys(slice(0, 1))


def damage_array(path: Path, name: str, value: Any, part: int = 0) -> None:
    """Write values without updating the checksums in the records."""
    group = zarr.open_group(path, mode="r+")
    array = group[name]
    array[:3] = np.full((3, *array.shape[1:]), value, array.dtype)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nonfinite_features_are_refused(value: float, copy: Path, cache: Path, tmp_path: Path) -> None:
    fresh(cache, copy)
    damage_array(copy, "image_features", value)
    opened = open_cache(copy)
    for read in (
        lambda: opened.soft_labels([0, 1]),
        lambda: opened.logits([0]),
        lambda: teacher_statistics(opened, [1.0]),
        lambda: export_soft_labels(opened, tmp_path / "soft.parquet", 2, 1.0),
    ):
        with pytest.raises(CacheDamagedError, match=r"stored features or logits of .* are not finite"):
            read()
    assert opened.soft_labels([5]).isfinite().all()
    assert verify_store(CacheStore.open(copy)).parts == [0]


def test_labels_outside_the_classes_are_damage(copy: Path, cache: Path) -> None:
    fresh(cache, copy)
    damage_array(copy, "labels", 10**6)
    sums = {"labels": checksum(zarr.open_array(copy / "labels", mode="r")[:6])}
    write_with_checksum(
        copy / "parts/000000.json", lambda record: {**record, "checksums": record["checksums"] | sums}
    )
    with pytest.raises(CacheDamagedError, match=r"labels of .* are outside its 5 classes"):
        _ = open_cache(copy).labels


def test_a_teacher_with_nonfinite_features_is_refused(cache: Path, tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", "gelu")
    weights = {
        name: tensor.clone() for name, tensor in load_file(model / "open_clip_model.safetensors").items()
    }
    weights["visual.proj"][:] = 3e38  # weights that are not finite are refused before
    save_file(weights, model / "open_clip_model.safetensors")
    asked = build_settings(cache.parent / "shards", cache.parent / "animals.txt", tmp_path / "zarr", model)
    with pytest.raises(RppError, match="the teacher's features of samples 0 to 2 are not finite"):
        build_cache(asked)
    assert not list((tmp_path / "zarr" / "parts").glob("*.json"))
