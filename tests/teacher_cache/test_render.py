"""`rpp-cache render`: the views of a cache, by content; resume, moved images, damage, refusals."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from teacher_cache.build import build_cache
from teacher_cache.command_settings import ExtendSettings, RenderSettings, ViewPolicy
from teacher_cache.errors import CacheMismatchError, RppError, UsageError
from teacher_cache.extend import extend_cache
from teacher_cache.images.decode import decode_image
from teacher_cache.images.location import WholeFile
from teacher_cache.images.reader import ImageReader
from teacher_cache.images.view_codecs import VIEW_CODECS, encode_view
from teacher_cache.pixels.decoders import REQUEST_BYTES, BatchRequest, open_decoders
from teacher_cache.pixels.drawn_views import DrawRequest, DrawViews
from teacher_cache.render import recorded_renderer, render_cache
from teacher_cache.store.cache_store import CacheStore
from teacher_cache.store.header import CacheHeader
from teacher_cache.store.pixels import EncodedViews
from teacher_cache.store.verify import verify_store
from teacher_cache.teacher.teacher import recorded_teacher
from teacher_cache.views import PillowRenderer, RandomCrops
from tests.teacher_cache.conftest import Run
from tests.teacher_cache.inputs import (
    assert_same_arrays,
    decoded_arrays,
    settings,
    webdataset_members,
    write_shard,
    write_shards,
)

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
            np.testing.assert_array_equal(found, renderer.draw(Image.fromarray(image), view, crops[row]))


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
    (copy / "pixels" / ".000003.tar.8388bdd0").write_bytes(b"of a killed process")
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


class TestBuildWithPixels:
    """`rpp-cache build --pixels`: the teacher sees what is stored."""

    @pytest.fixture(scope="class")
    def stored(
        self, tmp_path_factory: pytest.TempPathFactory, teacher: Path, shards: Path, names: Path
    ) -> Path:
        """A cache of three views as JPEG."""
        out = tmp_path_factory.mktemp("stored") / "zarr"
        build_cache(self.settings(shards, names, out, teacher))
        return out

    @staticmethod
    def settings(shards: Path, names: Path, out: Path, teacher: Path, views: int = 3, **more: Any) -> Any:
        policy = ViewPolicy(views=views, view_seed=5)
        return settings(shards, names, out, teacher, view_policy=policy, pixels="jpeg95", **more)

    def test_the_teacher_sees_the_stored_pixels(self, stored: Path, built: Path) -> None:
        """To the last bit: its features of the stored views are those of the cache."""
        store, reader = CacheStore.open(stored), ImageReader()
        teacher = recorded_teacher(store.header.teacher, device="cpu")
        for view in range(3):
            for part in range(4):
                rows = np.arange(3 * part, 3 * part + 3)  # a batch of the build
                places = store.pixels.locations(rows, np.full(3, view))
                pixels = np.stack([decode_image(reader.read(place)).transpose(2, 0, 1) for place in places])
                features = teacher.image_features(torch.from_numpy(pixels)).numpy().astype(np.float16)
                kept = store.parts.read("image_features", (slice(3 * part, 3 * part + 3), view))
                np.testing.assert_array_equal(features, kept)
        exact = decoded_arrays(built)
        np.testing.assert_array_equal(decoded_arrays(stored)["crops"], exact["crops"])
        assert not np.array_equal(decoded_arrays(stored)["image_features"], exact["image_features"])

    def test_a_lossless_codec_changes_no_array(
        self, built: Path, shards: Path, names: Path, teacher: Path, tmp_path: Path
    ) -> None:
        out = tmp_path / "zarr"
        policy = ViewPolicy(views=3, view_seed=5)
        build_cache(settings(shards, names, out, teacher, view_policy=policy, pixels="png"))
        assert_same_arrays(out, built)
        assert_as_rendered(out)

    def test_it_is_complete_only_with_its_views(
        self, stored: Path, shards: Path, names: Path, teacher: Path, tmp_path: Path, run: Run
    ) -> None:
        """A flipped byte is found by verify and mended by build; a part without views is missing."""
        out = Path(shutil.copytree(stored, tmp_path / "zarr"))
        before = files_of(out)
        tar = out / "pixels" / "000001.tar"
        content = bytearray(tar.read_bytes())
        content[900] ^= 1
        tar.write_bytes(content)
        (out / "pixels" / "000003.json").unlink()  # as a version that stores no views leaves the part
        report = json.loads(run("verify", out, "--json")[1])
        assert (report["damaged_parts"], report["missing_parts"]) == ([1], [3])
        assert report["damaged_pixels"] == []
        result = build_cache(self.settings(shards, names, out, teacher))
        assert result.parts_computed == 2
        assert files_of(out) == before
        assert_same_arrays(out, stored)
        assert run("verify", out)[0] == 0
        assert json.loads(run("info", out, "--json")[1])["pixels"]["seen_by_teacher"] is True

    def test_views_of_another_attempt_are_damage(self, stored: Path, tmp_path: Path) -> None:
        """The part's record names the tar that the teacher saw."""
        out = Path(shutil.copytree(stored, tmp_path / "zarr"))
        store = CacheStore.open(out, writable=True)
        encoded = EncodedViews(3, 3, "jpeg95", (32, 32))
        for position in range(3):
            for place in range(3):
                encoded.store(position, place, encode_view(np.zeros((32, 32, 3), np.uint8), "jpeg95"), None)
        store.pixels.write(2, encoded, seen_by_teacher=True)
        assert verify_store(CacheStore.open(out)).parts == [2]

    def test_processes_and_threads_store_the_same_bytes(
        self, stored: Path, shards: Path, names: Path, teacher: Path, tmp_path: Path
    ) -> None:
        for decoders in ({"threads": 1}, {"threads": None, "decode_processes": 2}):
            out = tmp_path / str(len(decoders))
            build_cache(self.settings(shards, names, out, teacher, **decoders))
            assert files_of(out) == files_of(stored)
            assert_same_arrays(out, stored)

    def test_a_reply_has_room_for_views_of_noise(self, tmp_path: Path) -> None:
        """Noise does not shrink: the reply is far larger than a reply without views."""
        noise = np.random.default_rng(0).integers(0, 256, (8, 300, 300, 3), dtype=np.uint8)
        requests = []
        for number, pixels in enumerate(noise):
            path = tmp_path / f"{number}.png"
            Image.fromarray(pixels).save(path)
            requests.append(DrawRequest(number, WholeFile(str(path), path.stat().st_size), (0, 1, 2), True))
        for codec in VIEW_CODECS:
            job = DrawViews(
                PillowRenderer((300, 300), "shortest", "bicubic"), RandomCrops(5, 0.9, 0.5), 10**6, codec
            )
            found = []
            for processes in (0, 1):
                with open_decoders(
                    job,
                    (300, 300),
                    processes,
                    threads=1,
                    largest=(3, 8),
                    option="--decode-processes",
                    reply_bytes=job.reply_bytes(3),
                ) as decoders:
                    ((seen, drawn),) = decoders.decode([BatchRequest(3, 8, list(enumerate(requests)))])
                    assert all(sum(len(c) for c, _ in one.encoded) > REQUEST_BYTES for one in drawn)
                    for place, one in enumerate(drawn):
                        for view, (content, _) in enumerate(one.encoded):
                            np.testing.assert_array_equal(decode_image(content), seen[view, place])
                    found.append([one.encoded for one in drawn])
            assert found[0] == found[1]

    def test_extend_stores_the_new_views_alone(
        self, stored: Path, shards: Path, names: Path, teacher: Path, tmp_path: Path
    ) -> None:
        out = Path(shutil.copytree(stored, tmp_path / "zarr"))
        before = files_of(out)
        extend_cache(out, ExtendSettings(views=4, batch_size=4, threads=2, device="cpu"))
        assert before.items() <= files_of(out).items()
        assert CacheStore.open(out).pixels.committed() == list(range(8))
        build_cache(self.settings(shards, names, tmp_path / "four", teacher, views=4))
        assert_same_views(out, tmp_path / "four")
        assert not verify_store(CacheStore.open(out))

    def test_unreadable_images_have_no_view(self, names: Path, teacher: Path, tmp_path: Path) -> None:
        members = webdataset_members(0, 6)
        members[5] = (members[5][0], b"not an image")
        shard = write_shard(tmp_path / "shard.tar", members)
        build_cache(self.settings(shard, names, tmp_path / "zarr", teacher))
        store = CacheStore.open(tmp_path / "zarr")
        assert not verify_store(store)
        assert store.pixels.index(0)[..., 1].all(axis=1).tolist() == [True, True, False]
        assert store.pixels.record(0).stored_views == 6

    def test_refusals(self, stored: Path, built: Path, shards: Path, names: Path, teacher: Path) -> None:
        with pytest.raises(
            CacheMismatchError, match=r"pixels: stored none, requested jpeg95.*rpp-cache render"
        ):
            build_cache(self.settings(shards, names, built, teacher))
        with pytest.raises(UsageError, match="was created with --pixels jpeg95"):
            render_cache(stored, RenderSettings(pixels="jpeg95"))

    def test_dask_workers_store_the_same_views(
        self, stored: Path, shards: Path, names: Path, teacher: Path, tmp_path: Path
    ) -> None:
        build_cache(self.settings(shards, names, tmp_path / "zarr", teacher, workers=2))
        assert files_of(tmp_path / "zarr") == files_of(stored)
        assert_same_arrays(tmp_path / "zarr", stored)


def assert_same_views(one: Path, other: Path) -> None:
    """The image files of all rows and views are equal, however many passes made them."""
    stores, reader = [CacheStore.open(cache) for cache in (one, other)], ImageReader()
    header = stores[0].header
    for view in range(header.views):
        rows = np.arange(header.samples)
        here, there = (store.pixels.locations(rows, np.full(len(rows), view)) for store in stores)
        assert [reader.read(place) for place in here] == [reader.read(place) for place in there]


def test_a_header_with_an_unknown_codec_is_refused(built: Path) -> None:
    header = CacheStore.open(built).header
    with pytest.raises(UsageError, match=r"unknown codec of rendered views 'avif'; known: none, jpeg95"):
        CacheHeader.from_record(asdict(header) | {"pixels": "avif"})
    old = asdict(header)
    del old["pixels"]
    assert CacheHeader.from_record(old) == header
