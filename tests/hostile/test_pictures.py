"""Image files: decompression bombs, formats that start programs, damaged images of every format."""

import io
import os
import shutil
import struct
import zlib
from functools import lru_cache
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import EpsImagePlugin, Image, ImageFile

from student_train.evaluation.evaluate import evaluate
from student_train.evaluation.predict import predict
from student_train.evaluation.settings import EvalSettings, PredictSettings
from student_train.training.loop import train
from student_train.training.settings import TrainSettings
from teacher_cache import open_cache
from teacher_cache.build import build_cache
from teacher_cache.errors import CacheMismatchError, RppError, UsageError
from teacher_cache.images.decode import MAX_PIXELS, UnreadableImageError, decode_image
from teacher_cache.images.pillow import MOST_SCANS
from tests.hostile.conftest import fuzzed
from tests.hostile.contract import tried
from tests.hostile.mutations import damaged
from tests.hostile.test_caches import write_with_checksum
from tests.teacher_cache.inputs import encoded, jpeg, picture, write_names, write_shard
from tests.teacher_cache.inputs import settings as build_settings


@lru_cache
def valid_pictures() -> list[bytes]:
    small = picture(0, 24, 16)
    kinds = ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "PPM"]
    made = [encoded(small, kind) for kind in kinds]
    made += [
        encoded(small.convert(mode), "TIFF", compression=c)
        for mode, c in (("L", "tiff_lzw"), ("1", "group4"), ("RGB", "jpeg"), ("CMYK", "tiff_deflate"))
    ]
    return [*made, encoded(small.convert("P"), "PNG"), encoded(small.convert("I;16"), "PNG")]


@pytest.mark.filterwarnings("ignore")  # Pillow warns of damaged tags
@given(content=st.sampled_from(range(13)).flatmap(lambda n: damaged(valid_pictures()[n])))
@fuzzed(200)
def test_fuzz_pictures(content: bytes) -> None:
    tried(lambda: decode_image(content))


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"


def test_no_program_is_started_for_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow passes EPS, whatever the file's name, to Ghostscript, whose language has files and loops."""
    ghostscript = tmp_path / "bin" / "gs"
    ghostscript.parent.mkdir()
    ghostscript.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\necho 10\n")
    ghostscript.chmod(0o755)
    monkeypatch.setenv("PATH", f"{ghostscript.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)  # looked for once in a process
    assert tried(lambda: decode_image(EPS)) == "refused"
    with pytest.raises(UnreadableImageError, match="not an image, or of a format that is not read"):
        decode_image(EPS)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("kind", ["AVIF", "JPEG2000", "TGA"])
def test_formats_that_the_web_names_jpg_are_read(kind: str) -> None:
    assert decode_image(encoded(picture(0, 32, 32), kind)).shape == (32, 32, 3)


def test_a_picture_above_the_limit_is_never_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    content = jpeg(0, 40, 30)
    assert decode_image(content, max_pixels=1200).shape == (30, 40, 3)
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda *_: pytest.fail("it was decoded"))
    with pytest.raises(UnreadableImageError, match="more than 1,199 pixels"):
        decode_image(content, max_pixels=1199)


def test_an_icon_is_not_decoded_to_find_its_size() -> None:
    """Its header has 16 x 16, and Pillow opens the image in it."""
    inside = encoded(picture(0, 90, 70), "PNG")
    icon = struct.pack("<HHHBBBBHHII", 0, 1, 1, 16, 16, 0, 0, 1, 32, len(inside), 22) + inside
    assert Image.open(io.BytesIO(icon)).size == (90, 70)
    assert tried(lambda: decode_image(icon, max_pixels=1200)) == "refused"
    with pytest.raises(UnreadableImageError, match="of a format that is not read"):
        decode_image(icon)


@pytest.mark.parametrize("kind", ["JPEG", "MPO"])
def test_a_jpeg_has_no_more_scans_than_a_picture_needs(kind: str) -> None:
    """A scan of some bytes costs a pass over all pixels: 800 of them, in 385 KB, took 47 s."""
    pictures = {"save_all": True, "append_images": [picture(1, 400, 300)]} if kind == "MPO" else {}
    content = encoded(picture(0, 400, 300), kind, progressive=True, **pictures)
    assert Image.open(io.BytesIO(content)).format == kind
    last = content[content.rindex(b"\xff\xda") : -2]  # without the end of the image
    within = MOST_SCANS - content.count(b"\xff\xda")
    assert within >= 80
    assert decode_image(content[:-2] + within * last + content[-2:]).shape == (300, 400, 3)
    with pytest.raises(UnreadableImageError, match="a JPEG of more than 100 scans"):
        decode_image(content[:-2] + (within + 1) * last + content[-2:])


def test_text_in_a_png_that_unpacks_to_64_mb_is_not_unpacked() -> None:
    """Pillow has a limit of its own, which other code may change."""
    bomb = zlib.compress(bytes(1 << 26), 1)
    content = encoded(picture(0), "PNG")
    chunk = b"zTXt" + b"comment\0\0" + bomb
    packed = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    assert tried(lambda: decode_image(content[:33] + packed + content[33:])) == "refused"


# The limit as an option: what a cache leaves out belongs to what it is of


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    """Five small images and a large one between them."""
    members = [(f"{n}.cls", str(n).encode()) for n in range(5)]
    members += [(f"{n}.jpg", jpeg(n, *((90, 70) if n == 2 else (40, 30)))) for n in range(5)]
    return write_shard(tmp_path / "s.tar", sorted(members))


def test_a_cache_keeps_its_limit(shard: Path, teacher: Path, tmp_path: Path) -> None:
    names, out = write_names(tmp_path / "animals.txt"), tmp_path / "zarr"
    asked = build_settings(shard, names, out, teacher, max_pixels=1200, part_size=5)
    assert build_cache(asked).skipped == 1
    cache = open_cache(out)
    assert cache.valid.tolist() == [True, True, False, True, True]
    assert cache.store.parts.skipped() == [{"row": 2, "key": "2", "reason": "more than 1,200 pixels"}]
    assert cache.header.max_pixels == 1200
    with pytest.raises(CacheMismatchError, match="max_pixels: stored 1200, requested 89478485"):
        build_cache(asked.model_copy(update={"max_pixels": MAX_PIXELS}))


def test_a_cache_without_a_limit_has_the_former_one(cache: Path, tmp_path: Path) -> None:
    old = Path(shutil.copytree(cache, tmp_path / "zarr"))
    for name in ("zarr.json", "header.json"):
        write_with_checksum(old / name, lambda record: {k: v for k, v in record.items() if k != "max_pixels"})
    assert open_cache(old).header == open_cache(cache).header


def test_training_decodes_with_the_limit_of_the_cache(cache: Path, tmp_path: Path) -> None:
    """No picture of this cache is so small: they were put there since."""
    changed = Path(shutil.copytree(cache, tmp_path / "zarr"))
    write_with_checksum(changed / "zarr.json", lambda record: {**record, "max_pixels": 100})
    asked = {"out": tmp_path / "run", "batch_size": 4, "max_steps": 1, "log": ("none",)}
    for workers in (0, 1):
        with pytest.raises(RppError, match=r"cannot be read now, .*: more than 100 pixels"):
            train(TrainSettings(cache=str(changed), workers=workers, **asked))
    assert train(TrainSettings(cache=str(cache), workers=0, **asked)).steps == 1


def test_evaluation_and_prediction_have_the_option(cache: Path, shard: Path, tmp_path: Path) -> None:
    names = str(cache.parent / "animals.txt")
    asked = EvalSettings(
        student="zero-shot", cache=str(cache), images=str(shard), classes=names, device="cpu"
    )
    assert [evaluate(asked.model_copy(update={"max_pixels": n}))["skipped"] for n in (MAX_PIXELS, 1200)] == [
        0,
        1,
    ]
    picture_file = tmp_path / "large.jpg"
    picture_file.write_bytes(jpeg(0, 90, 70))
    looked_at = PredictSettings(
        student="zero-shot", cache=str(cache), classes=names, device="cpu", max_pixels=6299
    )
    with pytest.raises(UsageError, match="more than 6,299 pixels"):
        predict(looked_at, [picture_file])
    assert predict(looked_at.model_copy(update={"max_pixels": 6300}), [picture_file])
