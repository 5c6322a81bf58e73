"""Pixels are those of open_clip's pipelines; damaged images are unreadable."""

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
from PIL import Image

from teacher_cache.images.decode import MAX_PIXELS, UnreadableImageError, decode_image
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
    assert (image.dtype, image.shape[2:]) == (np.uint8, (3,))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(("width", "height"), [(20_000, 20_000), (11_000, 11_000), (MAX_PIXELS + 1, 1)])
def test_more_pixels_than_the_limit_are_unreadable_regardless_of_pillows_limit(
    width: int, height: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pillow warns at its limit and raises at twice the limit, which a process can change."""
    bomb = png(width, height, 1, 0, b"")
    for limit in (Image.MAX_IMAGE_PIXELS, None):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(UnreadableImageError, match="more than 89,478,485 pixels"):
            decode_image(bomb)


def test_as_many_pixels_as_the_limit_are_read() -> None:
    content = png(50, 20, 1, 0, b"\0\0\0\0\0\0\0\0" * 20)
    assert decode_image(content, max_pixels=1000).shape == (20, 50, 3)
    with pytest.raises(UnreadableImageError, match="more than 999 pixels"):
        decode_image(content, max_pixels=999)


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
    """A CMYK JPEG whose Adobe marker declares YCCK colours."""
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
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, np.asarray(expected))


def test_gray_of_16_bits_is_white_above_255_as_in_open_clip() -> None:
    rows = b"\0" + np.array([0, 100, 255, 256, 65535], dtype=">u2").tobytes()
    found = decode_image(png(5, 1, 16, 0, rows))
    assert found[0, :, 0].tolist() == [0, 100, 255, 255, 255]


def test_alpha_is_dropped_and_not_laid_over_a_colour() -> None:
    image = Image.new("RGBA", (4, 4), (10, 20, 30, 0))
    assert decode_image(encoded(image, "PNG"))[0, 0].tolist() == [10, 20, 30]


def test_a_zip_named_jpg_is_unreadable() -> None:
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
    assert decode_image(content).shape == (48, 64, 3)


def test_the_first_frame_of_an_animation_is_decoded() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    content = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode_image(content)[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("name", ["Image.open", "ImageFile.ImageFile.load"])
def test_a_lack_of_memory_is_not_taken_for_a_damaged_image(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **more: object) -> None:
        raise MemoryError

    content = jpeg(0)
    monkeypatch.setattr(f"PIL.{name}", fail)
    with pytest.raises(MemoryError):
        decode_image(content)
