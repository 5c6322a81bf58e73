"""Runs that read the rendered views of a cache: same pixels, no original images, long runs of bytes."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from student_train.data.pixels import PixelWorkers, ViewRequests
from student_train.data.rendered import RenderedViews, why_not_rendered
from student_train.data.stored_views import DecodeStoredViews, ViewRequest
from student_train.training.distributed import Processes
from student_train.training.loop import Run, train
from student_train.training.settings import TrainSettings
from teacher_cache import open_cache
from teacher_cache.command_settings import RenderSettings
from teacher_cache.errors import CacheDamagedError, RppError, UsageError
from teacher_cache.images.location import WholeFile
from teacher_cache.images.view_codecs import encode_view
from teacher_cache.render import recorded_renderer, render_cache
from teacher_cache.store.cache_store import CacheStore
from tests.models import write_model
from tests.student_train.conftest import PICTURES, build
from tests.student_train.training.test_loop import settings as loop_settings


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with views as PNG, built from images that are gone."""
    folder = tmp_path_factory.mktemp("rendered")
    images = folder / "noto.tar"
    shutil.copy(PICTURES / "noto.tar", images)
    cache = build(folder, "gelu", images=str(images))
    render_cache(cache, RenderSettings(pixels="png", threads=2))
    images.unlink()
    return cache


@pytest.fixture
def copy(rendered: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(rendered, tmp_path / "copy.zarr"))


def settings(cache: Path, out: Path, **more: Any) -> TrainSettings:
    return loop_settings(cache, out, towers="both", max_steps=3, workers=0, **more)


def requests(rows: np.ndarray, views: np.ndarray) -> ViewRequests:
    return ViewRequests(rows, views, np.zeros((len(rows), 5), dtype=np.uint16))


def test_rendered_views_are_the_pixels_of_the_original_images(rendered: Path, cache_path: Path) -> None:
    """Same rows, same views, mixed in one batch, in any order, with and without worker processes."""
    cache, originals = open_cache(rendered), open_cache(cache_path)
    random = np.random.default_rng(0)
    rows, views = random.permutation(300)[:120], random.integers(0, 3, 120)
    crops = np.stack([originals.crops(row, view) for row, view in zip(rows, views, strict=True)])
    renderer = recorded_renderer(cache.store)
    from_originals = PixelWorkers(originals.samples, 100, renderer, 0)
    (expected,) = from_originals.decode([ViewRequests(rows, views, crops.reshape(-1, 5))], 120)
    for workers in (0, 2):
        reads = PixelWorkers(RenderedViews(cache), 100, renderer, workers)
        (found,) = reads.decode([requests(rows, views)], 120)
        assert torch.equal(found, expected)
        assert (reads.codec, from_originals.codec) == ("png", None)


def test_a_run_needs_no_original_image_and_equals_one_that_reads_them(
    rendered: Path, cache_path: Path, tmp_path: Path
) -> None:
    train(settings(rendered, tmp_path / "rendered"))
    train(settings(cache_path, tmp_path / "originals"))
    ours, theirs = (load_file(tmp_path / name / "student.safetensors") for name in ("rendered", "originals"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    records = [
        json.loads((tmp_path / name / "settings.json").read_text()) for name in ("rendered", "originals")
    ]
    assert [record["pixels"] for record in records] == ["png", "originals"]


def test_a_run_goes_on_with_the_pixels_that_it_began_with(copy: Path, tmp_path: Path) -> None:
    pixels = copy / "pixels"
    pixels.rename(tmp_path / "aside")
    images = str(PICTURES / "noto.tar")

    def reads(out: str, **more: Any) -> str | None:
        again = settings(copy, tmp_path / out, resume=True, **more)
        return Run(again, Processes(), torch.device("cpu")).join.pixels

    train(settings(copy, tmp_path / "before", images=images, checkpoint_every=1))
    (tmp_path / "aside").rename(pixels)
    assert reads("before", images=images) == "originals"
    train(settings(copy, tmp_path / "after", checkpoint_every=1))
    assert reads("after") == "png"
    shutil.rmtree(pixels)
    with pytest.raises(UsageError, match="have no rendered views; rpp-cache render writes them"):
        reads("after")
    render_cache(copy, RenderSettings(pixels="jpeg95", images=images, threads=2))
    with pytest.raises(UsageError, match=r"rendered views of --pixels png, the cache .* has jpeg95 now"):
        reads("after")


def test_which_pixels_are_read(
    rendered: Path, copy: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def reads(cache: Path, **more: Any) -> str | None:
        return Run(settings(cache, tmp_path / "run", **more), Processes(), torch.device("cpu")).join.pixels

    images = str(PICTURES / "noto.tar")
    assert reads(rendered) == reads(rendered, pixels="rendered") == "png"
    assert reads(rendered, images=images) == reads(rendered, images=images, pixels="originals") == "originals"
    with pytest.raises(UsageError, match="leave out --images"):
        settings(rendered, tmp_path / "run", images=images, pixels="rendered")
    CacheStore.open(copy).pixels.withdraw(1)
    with pytest.raises(UsageError, match=r"--pixels rendered: 1 of 3 parts of the cache .* have no rendered"):
        reads(copy, pixels="rendered")
    assert reads(copy) == "originals"
    assert "the original images are read, not the rendered views: 1 of 3 parts" in caplog.text
    other = write_model(tmp_path / "larger", "custom")
    config = json.loads((other / "open_clip_config.json").read_text())
    config["preprocess_cfg"] = {**config.get("preprocess_cfg", {}), "interpolation": "bilinear"}
    (other / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(
        UsageError, match="the student has interpolation bilinear, the rendered views bicubic"
    ):
        reads(rendered, student=str(other), pixels="rendered")


def test_damage_is_one_clear_line(copy: Path) -> None:
    cache = open_cache(copy)
    views, renderer = RenderedViews(cache), recorded_renderer(cache.store)
    place = cache.store.pixels.locations(np.array([3]), np.array([0]))[0]
    content = bytearray(Path(place.path).read_bytes())
    content[place.offset : place.offset + 8] = bytes(8)
    Path(place.path).write_bytes(content)
    with pytest.raises(RppError, match=r"the rendered view 000000003-0 in .*; run rpp-cache verify"):
        list(PixelWorkers(views, 100, renderer, 0).decode([requests(np.array([3]), np.array([0]))], 1))
    other = copy / "other.png"
    other.write_bytes(encode_view(np.zeros((16, 8, 3), np.uint8), "png"))
    request = ViewRequest("other.png", WholeFile(str(other), other.stat().st_size), 0, np.zeros(5, np.uint16))
    into = np.zeros((1, 32, 32, 3), np.uint8)
    error = DecodeStoredViews(renderer.size)(request, into)
    assert isinstance(error, CacheDamagedError)
    assert "a rendered view has 8 x 16 pixels, expected 32 x 32" in str(error)
    (copy / "pixels" / "000002.tar").unlink()
    with pytest.raises(CacheDamagedError, match=r"000002\.tar of the rendered views is not what was written"):
        RenderedViews(open_cache(copy))


def test_a_window_is_read_in_few_long_runs(rendered: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One run for each block of rows of a view, which has all bytes of its views."""
    cache, asked = open_cache(rendered), list[tuple[int, int]]()
    monkeypatch.setattr(os, "posix_fadvise", lambda file, at, size, advice: asked.append((at, size)))
    rows = np.concatenate([np.arange(10, 40), np.arange(60, 90), np.arange(90, 120)])
    views = np.repeat([0, 1, 1], 30)
    RenderedViews(cache).read_ahead(rows, views)
    assert len(asked) == 3  # rows 60 to 99 follow one another, and 100 is in the next part
    places = cache.store.pixels.places(rows, views)
    within = [
        any(at <= offset and offset + length <= at + size for at, size in asked)
        for offset, length in zip(places.offsets, places.lengths, strict=True)
    ]
    assert all(within)
    assert sum(size for _, size in asked) < places.lengths.sum() + 2 * 512 * len(rows)


def test_views_of_an_unfinished_extension_are_not_needed(rendered: Path, copy: Path) -> None:
    store = CacheStore.open(copy, writable=True)
    store.add_views(5)
    cache = open_cache(copy)
    assert cache.num_views == 3
    assert why_not_rendered(cache, recorded_renderer(store).preprocess) is None
