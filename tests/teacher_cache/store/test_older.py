"""Caches of format 1, made by the code that wrote it: five samples in two views, the last one unreadable.

`first` is of the first such code, `passes` of the last, whose header knew encodings and passes.
"""

import json
import re
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import zarr

from teacher_cache import open_cache
from teacher_cache.command_settings import ExtendSettings, RelabelSettings
from teacher_cache.errors import CacheDamagedError, UsageError
from teacher_cache.extend import extend_cache
from teacher_cache.info import describe
from teacher_cache.relabel import relabel_cache
from teacher_cache.store import CacheStore, verify_store
from tests.teacher_cache.conftest import Run
from tests.teacher_cache.inputs import ANIMALS, decoded_arrays

MADE = Path(__file__).parent / "format-1"
LOGIT_SCALE = 14.285714149475098  # open_clip's 1 / 0.07


@pytest.fixture(params=["first", "passes"])
def older(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A cache of format 1."""
    with tarfile.open(MADE / f"{request.param}.tar.xz") as tar:
        tar.extractall(tmp_path, filter="data")
    return tmp_path / "zarr"


def test_a_cache_of_format_1_says_what_it_said(older: Path) -> None:
    cache = open_cache(older)
    stored = decoded_arrays(older)
    assert (len(cache), cache.num_views, cache.logit_scale) == (5, 2, LOGIT_SCALE)
    assert cache.vocabulary.names == ANIMALS
    assert cache.labels.tolist() == [0, 1, 2, 3, 4]
    assert cache.valid.tolist() == [True, True, True, True, False]
    assert cache.samples.keys(slice(3, 5)) == ["000003", "000004"]
    class_features = np.asarray(zarr.open_array(older / "vocabularies/animals/class_features", mode="r")[:])
    for view in range(2):
        features = stored["image_features"][:, view].astype(np.float32)
        np.testing.assert_allclose(np.linalg.norm(features[:4], axis=1), 1, atol=1e-3)
        np.testing.assert_array_equal(cache.image_features(slice(None), view).numpy(), features)
        np.testing.assert_array_equal(cache.crops(slice(None), view), stored["crops"][:, view])
        expected = LOGIT_SCALE * features @ class_features.T
        np.testing.assert_allclose(cache.logits([4, 0, 2], view).numpy(), expected[[4, 0, 2]], atol=1e-4)
    assert [entry["key"] for entry in cache.store.skipped()] == ["000004"]
    assert not verify_store(cache.store)


@pytest.mark.parametrize(
    ("key", "there", "now", "parts", "tables"),
    [
        ("image_features/c/1/0/0", rb"^.", b"~", [1], []),
        ("parts/000000.json", rb'"crops": "blake2b:', b'"crops": "blake2b:0', [0], []),
        ("vocabularies/animals/zarr.json", rb'"cat"', b'"bat"', [], ["vocabularies/animals"]),
        ("vocabularies/animals/class_features/c/0/0", rb"^.", b"~", [], ["vocabularies/animals"]),
        ("vocabularies/animals/zarr.json", rb"checksum", b"checksun", [], ["vocabularies/animals"]),
        ("crops/zarr.json", rb"uint16", b"uint32", [], ["crops/zarr.json"]),
        ("samples.parquet", rb"PAR1$", b"PAR0", [], ["samples.parquet"]),
    ],
)
def test_its_damage_is_named(
    key: str, there: bytes, now: bytes, parts: list[int], tables: list[str], older: Path
) -> None:
    content, changes = re.subn(there, now, (older / key).read_bytes(), flags=re.DOTALL)
    assert changes
    (older / key).write_bytes(content)
    damage = verify_store(CacheStore.open(older))
    assert (damage.parts, damage.tables) == (parts, tables)


def test_a_record_that_is_cut_is_named(older: Path) -> None:
    record = older / "parts" / "000001.json"
    record.write_bytes(record.read_bytes()[:100])
    with pytest.raises(CacheDamagedError, match=r"zarr/parts/000001\.json is not readable"):
        open_cache(older).store.skipped()


def test_its_sample_table_has_no_checksum_but_its_rows_have_a_digest(older: Path) -> None:
    table = pq.read_table(older / "samples.parquet")
    pq.write_table(table, older / "samples.parquet", compression="none")
    assert not verify_store(CacheStore.open(older))
    pq.write_table(table.take([1, 0, 2, 3, 4]), older / "samples.parquet")
    assert verify_store(CacheStore.open(older)).tables == ["samples.parquet"]


def test_a_header_that_is_not_whole_is_refused(older: Path) -> None:
    header = older / "zarr.json"
    header.write_text(header.read_text().replace('"part_size"', '"part_sise"'))
    with pytest.raises(CacheDamagedError, match=r"zarr.json does not describe a cache: part_size: "):
        open_cache(older)
    shutil.rmtree(older / "vocabularies")
    with pytest.raises(CacheDamagedError, match=r"does not describe a cache: .*vocabularies"):
        open_cache(older)


def test_it_is_never_written_to(older: Path, run: Run) -> None:
    before = {path: path.read_bytes() for path in older.rglob("*") if path.is_file()}
    refusal = "zarr has cache format 1, which this version of rpp reads but does not write to; build it anew"
    with pytest.raises(UsageError, match=refusal):
        extend_cache(str(older), ExtendSettings(views=3))
    with pytest.raises(UsageError, match=refusal):
        relabel_cache(str(older), RelabelSettings(name="two", classes="imagenet-1k"))
    store = CacheStore.open(older)
    for write in (
        lambda: store.withdraw(0),
        lambda: store.mend_metadata() or store.folder.remove("zarr.json"),
    ):
        with pytest.raises(UsageError, match=refusal):
            write()
    assert run("info", older)[0] == 0
    assert run("verify", older)[0] == 0
    assert {path: path.read_bytes() for path in older.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("key", ["parts/000000.json", "vocabularies/animals/zarr.json", "zarr.json"])
def test_json_that_is_nested_without_end_is_damage(older: Path, key: str) -> None:
    (older / key).write_text("[" * 100_000)
    with pytest.raises(CacheDamagedError, match=rf"{key} is not readable: it is nested too deeply"):
        describe(CacheStore.open(older))


@pytest.mark.parametrize("name", ["a" * 5000, "../../elsewhere", "", 7])
def test_a_vocabulary_has_the_name_of_a_folder(older: Path, name: Any) -> None:
    header = json.loads((older / "zarr.json").read_text())
    header["attributes"]["vocabulary"] = name
    (older / "zarr.json").write_text(json.dumps(header))
    with pytest.raises(CacheDamagedError, match="its vocabulary has a name that leads elsewhere, or none"):
        CacheStore.open(older)
