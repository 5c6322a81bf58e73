"""Bytes -> pixels, by the rules of open_clip's own pipelines. They are in docs/images.md."""

import io

from PIL import Image, UnidentifiedImageError

# Pillow warns at this number and raises at twice it, both movable by whoever else uses it in the process;
# here an image above it costs its row, always.
MAX_PIXELS = 89_478_485
_TOO_LARGE = f"more than {MAX_PIXELS:,} pixels"


class UnreadableImageError(Exception):
    """One image could not be read; the message is the reason that the cache records."""


def decode_image(content: bytes, at_least: tuple[int, int] | None = None) -> Image.Image:
    """Bytes -> RGB picture, as open_clip's own pipelines see it (first frame, EXIF rotation not applied).

    Args:
        at_least: width and height that are enough. A JPEG is then decoded at 1/2, 1/4 or 1/8 of its size,
            the smallest that is no smaller than this, which is faster and slightly different.

    Raises:
        UnreadableImageError: not an image, cut off, or of more than `MAX_PIXELS` pixels.
    """
    with _opened(content) as image:
        try:
            if at_least is not None:
                image.draft(None, at_least)  # no other mode; other formats ignore it
            return image.convert("RGB")
        except Exception as error:  # Pillow's decoders raise many kinds for damaged data; each costs one row
            raise UnreadableImageError(_reason(error)) from error


def image_size(content: bytes) -> tuple[int, int]:
    """Width and height from the header alone; raises as `decode_image`."""
    with _opened(content) as image:
        return image.size


def _opened(content: bytes) -> Image.Image:
    if not content:
        raise UnreadableImageError("empty file")
    try:
        image = Image.open(io.BytesIO(content))
    except UnidentifiedImageError as error:  # Pillow's own words name an address in memory
        raise UnreadableImageError("not an image, or of a format that Pillow does not read") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UnreadableImageError(_TOO_LARGE) from error
    except Exception as error:
        raise UnreadableImageError(_reason(error)) from error
    if image.width * image.height > MAX_PIXELS:
        raise UnreadableImageError(_TOO_LARGE)
    return image


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error)[:200]}"
