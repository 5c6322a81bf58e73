"""JPEG images decoded on a device.

nvJPEG needs a GPU. Here the device is the CPU, and its decoder torchvision's libjpeg.
"""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from teacher_cache.build import build_cache
from teacher_cache.command_settings import ExtendSettings
from teacher_cache.compute.decoding import difference_text
from teacher_cache.errors import CacheMismatchError, RppError, UsageError
from teacher_cache.extend import extend_cache
from teacher_cache.info import describe
from teacher_cache.pixels import device_decoders
from teacher_cache.pixels.decoders import BatchRequest, Decoders, ThreadDecoders
from teacher_cache.pixels.device_decoders import DeviceDecoders, jpeg_size, require_device_decoder
from teacher_cache.pixels.drawn_views import Drawn, DrawRequest, DrawViews
from teacher_cache.store import header_objects
from teacher_cache.store.cache_store import CacheStore
from teacher_cache.store.verify import verify_store
from teacher_cache.views import PillowRenderer, RandomCrops, ViewRenderer
from tests.models import loaded
from tests.teacher_cache.inputs import encoded, indexed, jpeg, picture, settings, write_shard

CPU = torch.device("cpu")
VIEWS = (0, 1, 2)


@pytest.fixture(autouse=True)
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_decoders, "DEVICES", ("cuda", "cpu"))


def decoded(
    decoders: Decoders, paths: list[Path], views: tuple[int, ...] = VIEWS, batch: int = 3
) -> tuple[torch.Tensor, list[Drawn]]:
    """Pixels [V, N, H, W, 3] of image files, and how each was decoded."""
    locations = indexed(paths[0].parent).locations(slice(None))
    requests = [DrawRequest(row, location, views) for row, location in enumerate(locations)]
    cut = [requests[start : start + batch] for start in range(0, len(requests), batch)]
    batches = [BatchRequest(len(views), len(some), list(enumerate(some))) for some in cut]
    with decoders:
        found = list(decoders.decode(batches))
    return torch.cat([pixels for pixels, _ in found], dim=1), [one for _, drawn in found for one in drawn]


def job_of(renderer: PillowRenderer, max_pixels: int = 10**6) -> DrawViews:
    return DrawViews(renderer, RandomCrops(3, 0.08, 0.5), max_pixels)


def both(
    renderer: PillowRenderer, paths: list[Path], **options: Any
) -> tuple[tuple[torch.Tensor, list[Drawn]], tuple[torch.Tensor, list[Drawn]], list[str]]:
    """What Pillow and what the device make of image files, and the device's remarks."""
    notes: list[str] = []
    job = job_of(renderer, options.pop("max_pixels", 10**6))
    with_pillow = decoded(ThreadDecoders(job, renderer.size, 2), paths, **options)
    return with_pillow, decoded(DeviceDecoders(job, CPU, 2, notes.append), paths, **options), notes


def written(folder: Path, contents: list[bytes]) -> list[Path]:
    """Image files of one class, in the order of the contents."""
    folder.mkdir(parents=True)
    paths = [folder / f"{number:03d}.jpg" for number in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    return paths


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize(
    ("size", "mode", "fill"),
    [
        ((32, 32), "shortest", 0),
        ((40, 24), "shortest", 0),
        ((32, 32), "squash", 0),
        ((32, 48), "longest", 99),
    ],
)
def test_views_are_those_of_pillow_up_to_rounding(
    size: tuple[int, int], mode: str, fill: int, interpolation: str, tmp_path: Path
) -> None:
    sizes = [(64, 48), (48, 64), (97, 61), (33, 120), (20, 17), (32, 32), (200, 150)]
    paths = written(tmp_path / "a", [jpeg(seed, *size) for seed, size in enumerate(sizes)])
    renderer = PillowRenderer(size, mode, interpolation, fill)
    (theirs, drawn), (ours, ours_drawn), notes = both(renderer, paths)
    assert ours.shape == theirs.shape == (3, 7, *size, 3)
    assert ours.dtype == torch.uint8
    assert [one.crops for one in ours_drawn] == [one.crops for one in drawn]
    assert all(one.reason is None and one.error is None for one in ours_drawn)
    difference = (ours.int() - theirs.int()).abs()
    assert difference.max() <= 4
    assert difference.float().mean() < 0.25
    assert theirs.float().std() > 20
    assert not notes


def cmyk() -> bytes:
    return encoded(picture(1).convert("CMYK"), quality=90)


def rgb() -> bytes:
    return encoded(picture(2), quality=90, keep_rgb=True)


def with_adobe_marker(content: bytes, transform: int) -> bytes:
    """With a statement whether the components are YCbCr (1) or RGB (0)."""
    return content[:2] + b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0" + bytes([transform]) + content[2:]


def test_what_the_device_reads_otherwise_is_left_to_pillow(tmp_path: Path) -> None:
    """To the last bit, with the same reasons, and in order."""
    whole = jpeg(7, 90, 70)
    contents = [
        jpeg(0),
        encoded(picture(1), "PNG"),
        cmyk(),
        rgb(),
        whole[: len(whole) // 2],
        b"not an image",
        jpeg(5, 300, 200),  # more than max_pixels
        whole + b"\0",
        jpeg(8),
    ]
    paths = written(tmp_path / "a", contents)
    renderer = PillowRenderer((32, 32), "shortest", "bicubic")
    (theirs, drawn), (ours, ours_drawn), notes = both(renderer, paths, max_pixels=50_000)
    assert [(one.crops, one.reason) for one in ours_drawn] == [(one.crops, one.reason) for one in drawn]
    assert [place for place, one in enumerate(drawn) if one.reason] == [4, 5, 6]
    torch.testing.assert_close(ours[:, 1:8], theirs[:, 1:8], atol=0, rtol=0)
    assert (ours[:, [0, 8]].int() - theirs[:, [0, 8]].int()).abs().max() <= 2
    assert notes == [
        "7 of 9 images were decoded with Pillow in place of nvJPEG: not JPEG, of a kind that nvJPEG does not "
        "read as Pillow does, or damaged"
    ]


def test_one_image_that_the_device_refuses_does_not_cost_the_others(tmp_path: Path) -> None:
    """Its frame and its end are intact; its Huffman tables are not."""
    damaged = bytearray(jpeg(3))
    tables = damaged.index(b"\xff\xc4")
    damaged[tables + 5 : tables + 21] = b"\xff" * 16
    assert jpeg_size(bytes(damaged)) == (64, 48)
    paths = written(tmp_path / "a", [jpeg(0), jpeg(1), bytes(damaged), jpeg(4)])
    renderer = PillowRenderer((32, 32), "shortest", "bicubic")
    (theirs, drawn), (ours, ours_drawn), notes = both(renderer, paths, batch=4)
    assert [one.reason for one in ours_drawn] == [one.reason for one in drawn]
    assert [place for place, one in enumerate(drawn) if one.reason] == [2]
    assert (ours.int() - theirs.int()).abs().max() <= 2
    assert notes[0].startswith("1 of 4 images")


def test_a_missing_file_is_reported_as_by_threads(tmp_path: Path) -> None:
    paths = written(tmp_path / "a", [jpeg(0), jpeg(1)])
    requests = [
        DrawRequest(row, location, (0,))
        for row, location in enumerate(indexed(tmp_path / "a").locations(slice(None)))
    ]
    paths[1].unlink()
    job = job_of(PillowRenderer((32, 32), "shortest", "bicubic"))
    with DeviceDecoders(job, CPU, 1) as decoders:
        ((pixels, drawn),) = decoders.decode([BatchRequest(1, 2, list(enumerate(requests)))])
    assert [one.reason for one in drawn] == [None, "cannot read file: No such file or directory"]
    assert pixels[0, 0].any()
    assert not pixels[0, 1].any()


def test_large_images_are_decoded_in_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    decode = device_decoders.decode_jpeg
    monkeypatch.setattr(
        device_decoders,
        "decode_jpeg",
        lambda some, **more: [sizes.append(len(some)), decode(some, **more)][1],
    )
    monkeypatch.setattr(device_decoders, "GROUP_PIXELS", 2 * 64 * 48)
    contents = [jpeg(0), jpeg(1), jpeg(2), jpeg(3, 200, 100), jpeg(4)]
    renderer = PillowRenderer((32, 32), "shortest", "bicubic")
    _, (ours, _), _ = both(renderer, written(tmp_path / "a", contents), batch=5)
    assert sizes == [1, 2, 1, 1, 1]  # the first one looks for a decoder
    assert ours.flatten(2).any(dim=2).all()


@pytest.mark.parametrize(
    ("content", "size"),
    [
        (jpeg(0, 33, 21), (33, 21)),
        (encoded(picture(0).convert("L"), quality=90), (64, 48)),
        (encoded(picture(0), progressive=True), (64, 48)),
        (encoded(picture(0), subsampling=0), (64, 48)),
        (encoded(picture(0), exif=b"Exif\0\0" + jpeg(9)), (64, 48)),  # a picture inside
        (cmyk(), None),
        (rgb(), None),
        (with_adobe_marker(jpeg(0), 1), (64, 48)),
        (with_adobe_marker(jpeg(0), 0), None),
        (jpeg(0)[:-2], None),
        (jpeg(0) + b"\0", None),
        (encoded(picture(0), "PNG"), None),
        (b"\xff\xd8\xff\xd9", None),
        (b"\xff\xd8\xff\xc0\x00\x04\x08\xff\xd9", None),
        (b"", None),
    ],
)
def test_size_of_what_a_device_decodes(content: bytes, size: tuple[int, int] | None) -> None:
    assert jpeg_size(content) == size


def test_a_jpeg_of_another_precision_or_coding_is_left_to_pillow() -> None:
    content = bytearray(jpeg(0))
    frame = content.index(b"\xff\xc0")
    for at, value in ((1, 0xC9), (1, 0xC3), (4, 12), (11, 0x31)):  # arithmetic, lossless, 12 bit, 3 x 1
        changed = bytearray(content)
        changed[frame + at] = value
        assert jpeg_size(bytes(changed)) is None
    assert jpeg_size(bytes(content)) == (64, 48)


def test_no_cut_of_a_jpeg_stops_the_reader() -> None:
    content = jpeg(0, 16, 16)
    for length in range(0, len(content), 7):
        jpeg_size(content[:length] + b"\xff\xd9")


def test_where_there_is_no_decoder_one_sentence_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_decoders, "DEVICES", ("cuda",))
    with pytest.raises(UsageError, match="needs a CUDA device, and the teacher runs on cpu"):
        require_device_decoder(CPU)
    # this machine has no CUDA device, or its torchvision decodes
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match=r"cannot decode JPEG images on cuda:0 \(.+\): install one"):
            require_device_decoder(torch.device("cuda:0"))


def test_another_renderer_is_refused() -> None:
    renderer = ViewRenderer(loaded("gelu").preprocess)
    with pytest.raises(RppError, match="another way than --decode-on-device"):
        DeviceDecoders(DrawViews(renderer, RandomCrops(0, 0.1, 0.5), 10**6), CPU, 1)


# Complete builds


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    """Seven JPEGs and a PNG."""
    members = [(f"{number:06d}.jpg", jpeg(number)) for number in range(7)]
    return write_shard(tmp_path / "a.tar", [*members, ("000007.png", encoded(picture(7), "PNG"))])


def test_a_build_records_its_decoder_and_refuses_another(
    shard: Path, names: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, notes = tmp_path / "zarr", list[str]()
    asked = settings(shard, names, out, teacher, decode_on_device=True)
    build_cache(asked, notes.append)
    store = CacheStore.open(out)
    found = store.header.decoder_difference
    assert store.header.decoder == "nvjpeg"
    assert found is not None
    assert found["images"] == 7
    assert 0.99 < found["cosine_min"] <= found["cosine_mean"] <= 1
    assert difference_text(found) in notes
    assert any(note.startswith("1 of 8 images were decoded with Pillow") for note in notes)
    assert not verify_store(store)
    facts = describe(store)
    assert (facts["decoder"], facts["decoder_difference"]) == ("nvjpeg", found)

    with pytest.raises(CacheMismatchError, match="decoder: stored nvjpeg, requested pillow"):
        build_cache(asked.model_copy(update={"decode_on_device": False}))
    assert build_cache(asked).parts_computed == 0

    # another pass is decoded as the first one
    extend_cache(out, ExtendSettings(views=2, device="cpu", threads=1), notes.append)
    assert CacheStore.open(out).header.decoder_difference == found
    assert sum(note.startswith("1 of 8 images") for note in notes) == 2
    monkeypatch.setattr(device_decoders, "DEVICES", ("cuda",))
    with pytest.raises(UsageError, match="needs a CUDA device"):
        extend_cache(out, ExtendSettings(views=3, device="cpu"))
    with pytest.raises(UsageError, match="leave out --decode-processes"):
        extend_cache(out, ExtendSettings(views=3, device="cpu", decode_processes=1))


def test_an_older_version_refuses_such_a_cache_and_reads_others(
    shard: Path, names: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, other = tmp_path / "plain", tmp_path / "other"
    build_cache(settings(shard, names, plain, teacher))
    build_cache(settings(shard, names, other, teacher, decode_on_device=True))
    monkeypatch.setattr(header_objects, "OTHER_DECODER_VERSION", header_objects.FORMAT_VERSION)
    assert CacheStore.open(plain).header.decoder == "pillow"
    with pytest.raises(UsageError, match="has cache format 3, written by rpp "):
        CacheStore.open(other)


def test_a_build_is_refused_before_anything_is_loaded(
    shard: Path, names: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_decoders, "DEVICES", ("cuda",))
    asked = settings(shard, names, tmp_path / "zarr", tmp_path / "missing", decode_on_device=True)
    with pytest.raises(UsageError, match=re.escape("nvJPEG (--decode-on-device) needs a CUDA device")):
        build_cache(asked)
    with pytest.raises(UsageError, match="--decode-on-device decodes in place of --decode-processes"):
        settings(
            shard, names, tmp_path / "zarr", tmp_path, decode_on_device=True, threads=None, decode_processes=2
        )
