"""`rpp-cache render`: the views of a cache, by content; resume, moved images, damage, refusals."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from teacher_cache.build import build_cache
from teacher_cache.command_settings import ExtendSettings, RenderSettings, ViewPolicy
from teacher_cache.errors import RppError, UsageError
from teacher_cache.extend import extend_cache
from teacher_cache.images.decode import decode_image
from teacher_cache.images.reader import ImageReader
from teacher_cache.render import recorded_renderer, render_cache
from teacher_cache.store.cache_store import CacheStore
from teacher_cache.store.verify import verify_store
from tests.teacher_cache.conftest import Run
from tests.teacher_cache.inputs import assert_same_arrays, settings, write_shards

PNG = RenderSettings(pixels="png", threads=2)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, teacher: Path, shards: Path, names: Path) -> Path:
    """A finished cache of twelve samples, three views, four parts."""
    out = tmp_path_factory.mktemp("built") / "zarr"
    build_cache(settings(shards, names, out, teacher, view_policy=ViewPolicy(views=3, view_seed=5)))
    return out


@pytest.fixture
def copy(built: Path, tmp_path: Path) -> Path:
    shutil.copytree(built, tmp_path / "zarr")
    return tmp_path / "zarr"


def files_of(cache: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((cache / "pixels").iterdir())}


def assert_as_rendered(cache: Path) -> None:
    """The stored view of each row is the stored crop of the original image."""
    store, reader = CacheStore.open(cache), ImageReader()
    renderer, rows = recorded_renderer(store), np.arange(store.header.samples)
    for view in range(store.header.views):
        crops = store.parts.read("crops", (slice(None), view))
        places = store.pixels.locations(rows, np.full(len(rows), view))
        for row, place in zip(rows, places, strict=True):
            image = decode_image(reader.read(store.samples.locations([int(row)])[0]))
            found = decode_image(reader.read(place))
            np.testing.assert_array_equal(found, renderer.render_last(image, view, crops[row]))


def test_the_rendered_views_are_the_crops_that_the_cache_stores(copy: Path, built: Path) -> None:
    result = render_cache(copy, PNG)
    assert (result.parts_rendered, result.parts_total, result.difference) == (4, 4, 0.0)
    assert result.bytes_per_view > 1000
    assert_as_rendered(copy)
    assert_same_arrays(copy, built)
    assert not verify_store(CacheStore.open(copy))
    again = render_cache(copy, PNG)
    assert again.parts_rendered == 0


def test_a_stopped_rendering_is_resumed(
    copy: Path, built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tmp_path / "whole"
    shutil.copytree(built, whole)
    render_cache(whole, PNG)
    monkeypatch.setattr(ImageReader, "read", _failing(ImageReader.read, after=8))
    with pytest.raises(RppError, match="stopped; what is committed is safe"):
        render_cache(copy, PNG)
    assert 0 < len(CacheStore.open(copy).pixels.committed()) < 4
    monkeypatch.undo()
    assert render_cache(copy, PNG).parts_rendered < 4
    assert files_of(copy) == files_of(whole)


def _failing(read, after: int):  # type: ignore[no-untyped-def]
    calls = iter(range(1_000))

    def called(self, location):  # type: ignore[no-untyped-def]
        if next(calls) >= after:
            raise KeyboardInterrupt
        return read(self, location)

    return called


def test_a_flipped_byte_is_found_and_mended(copy: Path, run: Run) -> None:
    render_cache(copy, PNG)
    before = files_of(copy)
    tar = copy / "pixels" / "000002.tar"
    content = bytearray(tar.read_bytes())
    content[700] ^= 1
    tar.write_bytes(content)
    code, out, _ = run("verify", copy, "--json")
    report = json.loads(out)
    assert (code, report["damaged_pixels"], report["damaged_parts"]) == (1, [2], [])
    code, _, _ = run("render", copy, "--pixels", "png")
    assert code == 0
    (copy / "pixels" / "000002.damaged").unlink()
    assert files_of(copy) == before
    assert run("verify", copy)[0] == 0


def test_new_views_are_rendered_alone(copy: Path, tmp_path: Path) -> None:
    render_cache(copy, PNG)
    before = files_of(copy)
    extend_cache(copy, ExtendSettings(views=5, batch_size=4, threads=2, device="cpu"))
    assert CacheStore.open(copy).pixels.committed() == [0, 1, 2, 3]
    assert render_cache(copy, PNG).parts_rendered == 4
    assert before.items() <= files_of(copy).items()
    assert_as_rendered(copy)


def test_moved_images_and_the_check_with_the_teacher(copy: Path, tmp_path: Path) -> None:
    moved = write_shards(tmp_path / "moved")
    result = render_cache(
        copy, RenderSettings(pixels="jpeg95", images=str(moved), check=5, device="cpu", threads=2)
    )
    assert result.difference is not None
    assert 0 < result.difference < 5
    assert result.cosine is not None
    assert 0.9 < result.cosine[0] <= result.cosine[1] < 1
    exact = tmp_path / "exact"
    shutil.copytree(copy, exact, ignore=shutil.ignore_patterns("pixels"))
    cosine = render_cache(exact, RenderSettings(pixels="png", check=5, device="cpu")).cosine
    assert cosine == pytest.approx((1, 1), abs=1e-6)


def test_info_reports_bytes_a_view(copy: Path, run: Run) -> None:
    assert json.loads(run("info", copy, "--json")[1])["pixels"] == {"codec": "none"}
    render_cache(copy, PNG)
    found = json.loads(run("info", copy, "--json")[1])["pixels"]
    tars = sum(path.stat().st_size for path in (copy / "pixels").glob("*.tar"))
    assert found == {
        "codec": "png",
        "parts": 4,
        "bytes_per_view": round(tars / 36, 1),
        "difference": 0.0,
        "seen_by_teacher": False,
    }


def test_refusals(copy: Path, tmp_path: Path) -> None:
    render_cache(copy, PNG)
    with pytest.raises(UsageError, match=r"has rendered views of --pixels png, requested jpeg95; use png"):
        render_cache(copy, RenderSettings(pixels="jpeg95"))
    other = write_shards(tmp_path / "other", samples=5)
    with pytest.raises(UsageError, match="does not contain the samples"):
        render_cache(copy, PNG.model_copy(update={"images": str(other)}))


def test_a_missing_image_is_named(built: Path, tmp_path: Path, names: Path, teacher: Path) -> None:
    shards, out = write_shards(tmp_path / "shards"), tmp_path / "zarr"
    build_cache(settings(shards, names, out, teacher))
    shutil.rmtree(shards)
    with pytest.raises(RppError, match=r"cannot read image shard"):
        render_cache(out, PNG)
