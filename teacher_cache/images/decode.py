"""Bytes of an image -> pixels, by the rules of open_clip's own pipelines, which are in docs/images.md."""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from teacher_cache.errors import printable
from teacher_cache.lazy import load

if TYPE_CHECKING:  # settings need the limits below, and no decoder
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

# Pillow warns at this number and raises at twice it, but other code in the process can change both. Decoders
# check this limit themselves.
MAX_PIXELS = 89_478_485
MOST_PIXELS = 2 * MAX_PIXELS  # the largest value of the limit: Pillow opens nothing larger


class UnreadableImageError(Exception):
    """One image could not be read; the message is the reason that the cache records."""

    def __init__(self, reason: str) -> None:
        super().__init__(printable(reason))


@dataclass(frozen=True)
class Decoder:
    """A decoder of some image formats.

    Attributes:
        function: MODULE:FUNCTION, imported when it is first used. The function takes the bytes of an image
            and the largest number of pixels, returns [H, W, 3] uint8, and raises `UnreadableImageError`.
        suffixes: file names that count as images, in lower case.
        signatures: the first bytes of its formats.
    """

    function: str
    suffixes: tuple[str, ...]
    signatures: tuple[bytes, ...] = ()

    @cached_property
    def decode(self) -> "Callable[[bytes, int], NDArray[np.uint8]]":
        """The function itself."""
        found: Callable[[bytes, int], NDArray[np.uint8]] = load(self.function)
        return found


# Found by signature; Pillow decodes what has none of these.
DECODERS = {
    "pillow": Decoder(
        "teacher_cache.images.pillow:decode_pillow",
        (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm"),
    ),
}

IMAGE_SUFFIXES = {suffix for decoder in DECODERS.values() for suffix in decoder.suffixes}


def decode_image(content: bytes, max_pixels: int = MAX_PIXELS) -> "NDArray[np.uint8]":
    """Decode an image to RGB pixels, [H, W, 3] uint8, perhaps read-only.

    They are those of open_clip's own pipelines: the first frame, without EXIF rotation.

    Args:
        max_pixels: a larger image is not decoded; at most `MOST_PIXELS`.

    Raises:
        UnreadableImageError: not an image of a known format, cut off, or more than `max_pixels` pixels.
    """
    return _decoder_of(content).decode(content, max_pixels)


def decode_picture(content: bytes, max_pixels: int = MAX_PIXELS) -> "Image.Image":
    """Decode an image as `decode_image`, to a Pillow image of mode RGB: without the copies of an array."""
    decoder = _decoder_of(content)
    if decoder is DECODERS["pillow"]:
        opened: Image.Image = load("teacher_cache.images.pillow:open_pillow")(content, max_pixels)
        return opened
    import PIL.Image

    return PIL.Image.fromarray(decoder.decode(content, max_pixels))


def _decoder_of(content: bytes) -> Decoder:
    if not content:
        raise UnreadableImageError("empty file")
    by_signature = (found for found in DECODERS.values() if content.startswith(found.signatures))
    return next(by_signature, DECODERS["pillow"])
