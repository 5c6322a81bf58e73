"""Codecs of rendered views: the pixels of one view <-> the bytes of an image file."""

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from teacher_cache.images.decode import decode_image


@dataclass(frozen=True)
class ViewCodec:
    """How Pillow writes a view.

    Attributes:
        suffix: of the file's name, without the dot.
        options: `format` and the options of `Image.save`.
    """

    suffix: str
    options: dict[str, Any]


# `command_settings.Codec` has the same names. JPEG keeps the colours at full resolution: at half of it
# 1 - cosine of a ViT-B/32's features is three times as large, for a third fewer bytes (docs/format.md).
VIEW_CODECS = {
    "jpeg95": ViewCodec("jpg", {"format": "JPEG", "quality": 95, "subsampling": 0}),
    "png": ViewCodec("png", {"format": "PNG"}),
    "webp-lossless": ViewCodec("webp", {"format": "WEBP", "lossless": True, "quality": 50, "method": 1}),
}


def encode_view(pixels_HWC: NDArray[np.uint8], codec: str) -> bytes:
    """Return an image file of the pixels [H, W, 3] of a view."""
    buffer = io.BytesIO()
    Image.fromarray(pixels_HWC).save(buffer, **VIEW_CODECS[codec].options)
    return buffer.getvalue()


def most_bytes(size: tuple[int, int]) -> int:
    """Return more bytes than an image file of a view of this height and width has: noise does not shrink."""
    return 2 * 3 * size[0] * size[1] + 4096


def pixel_difference(found: NDArray[np.uint8], exact: NDArray[np.uint8]) -> float:
    """Return the mean absolute difference of pixels, in 1/255."""
    return float(np.abs(found.astype(np.int16) - exact).mean())


def stored_view(pixels_HWC: NDArray[np.uint8], codec: str) -> tuple[bytes, NDArray[np.uint8]]:
    """Return the image file of a view, and the pixels [H, W, 3] that its readers get."""
    content = encode_view(pixels_HWC, codec)
    return content, decode_image(content)
