"""Pixels as open_clip's pipelines see them; what damaged pictures do."""

import io
import random
import struct
import zipfile
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as example_settings
from hypothesis import strategies as st
from open_clip.transform import PreprocessCfg
from PIL import Image

from teacher_cache.command_settings import ViewPolicy
from teacher_cache.images import UnreadableImageError, decode_image, image_size
from teacher_cache.images.decode import MAX_PIXELS
from teacher_cache.views import FULL, draw_crop, enough_pixels, evaluation_crop
from tests.teacher_cache.inputs import (
    encoded,
    jpeg,
    picture,
)

BAD_IMAGES = {
    "empty": b"",
    "text": b"<html>404 Not Found</html>",
    "cut jpeg": jpeg(0)[:-200],
    "head of a jpeg": jpeg(0)[:20],
    "cut png": encoded(picture(0), "PNG")[:2000],
    "zeros": bytes(5000),
    "broken png": encoded(picture(0), "PNG")[:60] + b"\xff" * 500,
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
}


@pytest.mark.parametrize("content", BAD_IMAGES.values(), ids=list(BAD_IMAGES))
def test_a_bad_image_raises_with_a_one_line_reason(content: bytes) -> None:
    with pytest.raises(UnreadableImageError) as caught:
        decode_image(content)
    assert str(caught.value).strip()
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, on damaged tags
@given(st.integers(0, 10**6), st.integers(1, 40))
@example_settings(max_examples=60, deadline=None)
def test_a_damaged_image_is_a_picture_or_unreadable_but_never_another_error(seed: int, damages: int) -> None:
    source = random.Random(seed)
    kind = source.choice(["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"])
    content = bytearray(encoded(picture(0, 24, 16), kind))
    for _ in range(damages):
        content[source.randrange(len(content))] = source.randrange(256)
    try:
        image = decode_image(bytes(content[: source.randrange(1, 2 * len(content))]))
    except UnreadableImageError:
        return
    assert image.mode == "RGB"


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(("width", "height"), [(20_000, 20_000), (11_000, 11_000), (MAX_PIXELS + 1, 1)])
def test_more_pixels_than_the_limit_are_unreadable_whatever_pillow_is_set_to(
    width: int, height: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pillow itself warns at the limit and raises at twice the limit, both as the process has it set."""
    bomb = png(width, height, 1, 0, b"")
    for limit in (Image.MAX_IMAGE_PIXELS, None):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        for read in (decode_image, image_size):
            with pytest.raises(UnreadableImageError, match="more than 89,478,485 pixels"):
                read(bomb)


def test_as_many_pixels_as_the_limit_are_read() -> None:
    assert image_size(png(MAX_PIXELS, 1, 1, 0, b"")) == (MAX_PIXELS, 1)


# Every mode, as open_clip decodes it: `Image.open(...).convert("RGB")`, in its data pipeline (webdataset's
# "pilrgb") and in its evaluation transform


def png(width: int, height: int, bits: int, colour: int, rows: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG that Pillow reads but does not write; rows with their filter bytes."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n"
    for kind, data in ((b"IHDR", header), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")):
        content += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return content


def png16(channels: int) -> bytes:
    """A 16-bit PNG of noise: gray, gray and alpha, RGB, or RGB and alpha."""
    values = np.random.default_rng(0).integers(0, 65536, (4, 5 * channels)).astype(">u2")
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    return png(5, 4, 16, colour, b"".join(b"\0" + row.tobytes() for row in values))


def ycck(content: bytes) -> bytes:
    """A CMYK JPEG whose Adobe marker says that its colours are YCCK."""
    place = content.index(b"Adobe") + 11
    return content[:place] + b"\2" + content[place + 1 :]


def palette(transparency: bytes | int | None) -> bytes:
    image = picture(3).convert("P", palette=Image.Palette.ADAPTIVE)
    return encoded(image, "PNG", **({} if transparency is None else {"transparency": transparency}))


def animation(kind: str) -> bytes:
    return encoded(picture(0), kind, save_all=True, append_images=[picture(1), picture(2)])


FILES = {
    "gray": encoded(picture(3).convert("L"), "PNG"),
    "gray jpeg": encoded(picture(3).convert("L"), "JPEG"),
    "gray and alpha": encoded(picture(3).convert("LA"), "PNG"),
    "one bit": encoded(picture(3).convert("1"), "PNG"),
    "16-bit gray": png16(1),
    "16-bit gray and alpha": png16(2),
    "16-bit rgb": png16(3),
    "16-bit rgba": png16(4),
    "16-bit gray tiff": encoded(picture(3).convert("L").convert("I;16"), "TIFF"),
    "32-bit gray tiff": encoded(picture(3).convert("L").convert("I"), "TIFF"),
    "float tiff": encoded(picture(3).convert("L").convert("F"), "TIFF"),
    "palette": palette(None),
    "palette, one colour transparent": palette(7),
    "palette, many colours transparent": palette(bytes(range(256))),
    "palette gif": encoded(picture(3).convert("P"), "GIF"),
    "rgba": encoded(picture(3).convert("RGBA"), "PNG"),
    "rgba webp": encoded(picture(3).convert("RGBA"), "WEBP"),
    "cmyk jpeg": encoded(picture(3).convert("CMYK"), "JPEG"),
    "ycck jpeg": ycck(encoded(picture(3).convert("CMYK"), "JPEG")),
    "cmyk tiff": encoded(picture(3).convert("CMYK"), "TIFF"),
    "ycbcr tiff": encoded(picture(3).convert("YCbCr"), "TIFF"),
    "gif of frames": animation("GIF"),
    "webp of frames": animation("WEBP"),
    "png of frames": animation("PNG"),
    "tiff of pages": animation("TIFF"),
    "jpeg with a zip behind it": jpeg(0) + b"PK\3\4" + bytes(500),
}


@pytest.mark.parametrize("content", FILES.values(), ids=list(FILES))
def test_every_mode_becomes_the_rgb_that_pillows_convert_gives(content: bytes) -> None:
    expected = Image.open(io.BytesIO(content)).convert("RGB")
    found = decode_image(content)
    assert found.mode == "RGB"
    assert found.size == image_size(content) == expected.size
    np.testing.assert_array_equal(np.asarray(found), np.asarray(expected))


def test_gray_of_16_bits_is_white_above_255_as_in_open_clip() -> None:
    rows = b"\0" + np.array([0, 100, 255, 256, 65535], dtype=">u2").tobytes()
    found = np.asarray(decode_image(png(5, 1, 16, 0, rows)))
    assert found[0, :, 0].tolist() == [0, 100, 255, 255, 255]


def test_alpha_is_dropped_and_not_laid_over_a_colour() -> None:
    image = Image.new("RGBA", (4, 4), (10, 20, 30, 0))
    assert decode_image(encoded(image, "PNG")).getpixel((0, 0)) == (10, 20, 30)


def test_a_zip_that_calls_itself_jpg_is_unreadable() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("0.jpg", jpeg(0))
    with pytest.raises(UnreadableImageError, match="not an image"):
        decode_image(buffer.getvalue())


def test_exif_rotation_is_not_applied() -> None:
    """open_clip does not apply it either; a teacher that saw upright pictures would differ from its own."""
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    content = encoded(picture(0, 64, 48), exif=exif)
    assert decode_image(content).size == (64, 48)


def test_the_first_frame_of_an_animation_is_its_picture() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    content = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode_image(content).getpixel((0, 0)) == (255, 0, 0)


# JPEG at a half, a quarter, an eighth of its size


@pytest.mark.parametrize(
    ("at_least", "size"),
    [
        ((9000, 9000), (640, 480)),
        ((640, 480), (640, 480)),
        ((321, 10), (640, 480)),
        ((320, 240), (320, 240)),
        ((100, 121), (320, 240)),
        ((160, 120), (160, 120)),
        ((80, 60), (80, 60)),
        ((1, 1), (80, 60)),
    ],
)
def test_a_jpeg_is_decoded_at_the_smallest_size_that_is_enough(
    at_least: tuple[int, int], size: tuple[int, int]
) -> None:
    content = encoded(picture(0, 32, 24).resize((640, 480)), "JPEG", quality=95)
    found = decode_image(content, at_least=at_least)
    assert found.size == size
    whole = decode_image(content).resize(size, Image.Resampling.BOX)
    difference = np.abs(np.asarray(found, dtype=int) - np.asarray(whole, dtype=int))
    assert difference.mean() < 3


def test_other_formats_are_decoded_whole() -> None:
    content = encoded(picture(0, 640, 480), "PNG")
    assert decode_image(content, at_least=(10, 10)).tobytes() == decode_image(content).tobytes()


def test_enough_pixels_follow_from_the_smallest_crop_each_way() -> None:
    half_wide, third_high = [0, 0, FULL / 2, FULL, 0], [0, 0, FULL, FULL / 3, 1]
    crops = np.round(np.array([half_wide, third_high])).astype(np.uint16)
    assert enough_pixels(crops[0], height=100, width=200) == (400, 100)
    assert enough_pixels(crops, height=100, width=200) == (400, 300)


@given(st.integers(0, 10**6), st.integers(200, 900), st.integers(200, 900), st.integers(1, 4))
@example_settings(max_examples=30, deadline=None)
def test_enough_pixels_are_enough_for_every_crop(seed: int, width: int, height: int, views: int) -> None:
    """No crop of the smaller picture is smaller than what is shown, unless it was so in the whole one."""
    policy, shown = ViewPolicy(views=views + 1, view_seed=seed), 48
    preprocess = PreprocessCfg(size=shown)
    crops = [draw_crop(policy, seed, view, width, height) for view in range(1, views + 1)]
    crops.append(evaluation_crop(preprocess, width, height))
    content = jpeg(seed, width, height)
    small = decode_image(content, at_least=enough_pixels(np.stack(crops), shown, shown))
    for crop in crops:
        w, h = crop[2] / FULL * small.width, crop[3] / FULL * small.height
        assert small.size == (width, height) or min(w, h) > shown - 0.01
