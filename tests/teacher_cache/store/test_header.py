"""Options that are added later: caches of before have their defaults, and are completed and extended."""

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import Field

from teacher_cache import open_cache
from teacher_cache.build import build_cache
from teacher_cache.command_settings import ExtendSettings, ViewPolicy
from teacher_cache.compute import part
from teacher_cache.encodings import registry
from teacher_cache.encodings.topk import TopK
from teacher_cache.errors import CacheMismatchError
from teacher_cache.extend import extend_cache
from teacher_cache.store import header
from teacher_cache.store.cache_store import CacheStore
from teacher_cache.store.header import CacheHeader
from teacher_cache.store.verify import verify_store
from tests.data.caches.write import arrays_of, header_of
from tests.teacher_cache.inputs import assert_same_arrays, settings

CACHES = Path(__file__).parents[2] / "data" / "caches"


class LaterPolicy(ViewPolicy):
    """A view policy with one more option."""

    view_jitter: float = Field(default=0.0, ge=0, description="strength of a colour jitter")


class LaterTeacher(header.TeacherRecord):
    """A teacher with one more recorded field."""

    prompt: str = "none"


@dataclass(frozen=True)
class LaterHeader(CacheHeader):
    """A header with one more build setting."""

    colours: str = "rgb"


class LaterTopK(TopK):
    """An encoding with one more option."""

    rounding: str = "nearest"


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> None:
    """A later version of rpp, whose views, teacher and encoding have one more option each."""
    monkeypatch.setattr(header, "ViewPolicy", LaterPolicy)
    monkeypatch.setattr(part, "ViewPolicy", LaterPolicy)
    monkeypatch.setattr(header, "TeacherRecord", LaterTeacher)
    monkeypatch.setattr(registry, "ENCODINGS", {**registry.ENCODINGS, "topk": LaterTopK})


@pytest.fixture(params=["zarr-3.1", "zarr-3.4"])
def stored(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of a cache of today whose last part is missing."""
    copy = Path(shutil.copytree(CACHES / request.param / "factored", tmp_path / "zarr"))
    (copy / "parts" / "000002.json").unlink()
    return copy


def requested(**changes: Any) -> CacheHeader:
    """The header that a later version makes of the same settings."""
    made = header_of("factored")
    policy = LaterPolicy(views=made.views).model_dump()
    teacher = {**made.teacher, "prompt": "none"}
    return replace(made, **{"view_policy": policy, "teacher": teacher, **changes})


@pytest.mark.usefixtures("later")
def test_a_cache_of_before_is_completed_and_extended(stored: Path) -> None:
    before = {path: path.read_bytes() for path in stored.rglob("*") if path.is_file()}
    store = CacheStore.open(stored, writable=True)
    store.header.require_equal(requested(), str(stored))
    assert store.header.view_policy["view_jitter"] == 0.0
    assert verify_store(store).tables == store.repair_metadata() == []
    assert {path: path.read_bytes() for path in stored.rglob("*") if path.is_file()} == before
    rows = store.header.rows(2)
    store.parts.commit(2, {name: values[rows] for name, values in arrays_of("factored").items()}, {}, [])
    assert not verify_store(store)
    store.add_views(3)
    extended = CacheStore.open(stored)
    assert extended.header.view_policy == {**LaterPolicy(views=3).model_dump()}
    assert extended.parts.missing() == [3, 4, 5]
    assert not verify_store(extended).tables


@pytest.mark.usefixtures("later")
def test_another_value_than_the_default_is_refused(stored: Path) -> None:
    jitter = LaterPolicy(views=2, view_jitter=0.5).model_dump()
    with pytest.raises(
        CacheMismatchError,
        match=r"created with different settings \(view_policy\.view_jitter: stored 0\.0, requested 0\.5\)",
    ):
        CacheStore.open(stored).header.require_equal(requested(view_policy=jitter), str(stored))


def test_a_later_build_setting_has_its_default(stored: Path) -> None:
    record = json.loads((stored / "header.json").read_text())
    assert LaterHeader.from_record(record).colours == "rgb"
    without = {name: value for name, value in record.items() if name != "max_pixels"}
    assert CacheHeader.from_record(without) == CacheStore.open(stored).header


@pytest.mark.usefixtures("later")
def test_a_later_option_of_an_encoding_has_its_default() -> None:
    record = json.loads((CACHES / "zarr-3.1" / "topk" / "header.json").read_text())
    found = CacheHeader.from_record(record)
    assert found.encoding == {"name": "topk", "k": 3, "rounding": "nearest"}
    assert not verify_store(CacheStore.open(CACHES / "zarr-3.1" / "topk"))


def test_a_later_version_goes_the_whole_way(
    cache: Path,
    teacher: Path,
    shards: Path,
    names: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    """`build` computes the missing part and `extend` adds a view, in a cache that today's version made."""
    out = Path(shutil.copytree(cache, tmp_path / "zarr"))
    (out / "parts" / "000001.json").unlink()
    request.getfixturevalue("later")
    options = settings(shards, names, out, teacher, view_policy=LaterPolicy())
    assert build_cache(options).parts_computed == 1
    assert_same_arrays(out, cache)
    extend_cache(str(out), ExtendSettings(views=2, device="cpu", threads=2))
    assert open_cache(out).num_views == 2
