"""Pixels as open_clip's pipelines see them; what damaged pictures do."""

import io
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as example_settings
from hypothesis import strategies as st
from PIL import Image

from teacher_cache.images import (
    UnreadableImageError,
    decode_image,
)
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


def test_a_decompression_bomb_is_unreadable() -> None:
    bomb = encoded(Image.new("1", (20_000, 20_000)), "PNG")
    assert len(bomb) < 100_000
    with pytest.raises(UnreadableImageError, match="more than 89,478,485 pixels"):
        decode_image(bomb)


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        ("L", "PNG"),
        ("L", "JPEG"),
        ("LA", "PNG"),
        ("P", "GIF"),
        ("P", "PNG"),
        ("RGBA", "PNG"),
        ("RGBA", "WEBP"),
        ("CMYK", "JPEG"),
        ("CMYK", "TIFF"),
        ("1", "PNG"),
        ("I;16", "PNG"),
    ],
)
def test_every_mode_becomes_the_rgb_that_pillows_convert_gives(mode: str, kind: str) -> None:
    """open_clip decodes so: `Image.open(...).convert("RGB")`, in its data pipeline and its transform."""
    content = encoded(
        picture(3).convert("L").convert(mode) if mode == "I;16" else picture(3).convert(mode), kind
    )
    expected = Image.open(io.BytesIO(content)).convert("RGB")
    found = decode_image(content)
    assert found.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(found), np.asarray(expected))


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
