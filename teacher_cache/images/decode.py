"""Bytes -> pixels, by the rules of open_clip's own pipelines. They are in docs/images.md."""

import io

from PIL import Image, UnidentifiedImageError


class UnreadableImageError(Exception):
    """One image could not be read; the message is the reason that the cache records."""


def decode_image(content: bytes) -> Image.Image:
    """Bytes -> RGB picture, as open_clip's own pipelines see it (first frame, EXIF rotation not applied).

    Raises:
        UnreadableImageError: not an image, cut off, or larger than Pillow's decompression-bomb limit.
    """
    if not content:
        raise UnreadableImageError("empty file")
    try:
        with Image.open(io.BytesIO(content)) as image:
            return image.convert("RGB")
    except UnidentifiedImageError as error:  # Pillow's own words name an address in memory
        raise UnreadableImageError("not an image, or of a format that Pillow does not read") from error
    except Exception as error:  # Pillow's decoders raise many kinds for damaged data; each costs one row
        raise UnreadableImageError(f"{type(error).__name__}: {str(error)[:200]}") from error
