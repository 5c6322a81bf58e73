"""Bytes -> pixels, by the rules of open_clip's own pipelines. They are in docs/images.md."""

import io

from PIL import Image, UnidentifiedImageError

from teacher_cache.errors import printable

# Pillow warns at this number and raises at twice it, both movable by whoever else uses it in the process;
# here an image above the limit costs its row, always.
MAX_PIXELS = 89_478_485
MOST_PIXELS = 2 * MAX_PIXELS  # what the limit may be set to: Pillow itself opens nothing larger
# Each scan of a progressive JPEG costs a pass over all pixels, few bytes or many; real ones have some ten.
MOST_SCANS = 100
# What data sets hold, whatever the file is called. Pillow reads more: of EPS it makes pixels by Ghostscript,
# which would run a program that the file brings; of ICO, before it says how large they are.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "DIB", "GIF", "TIFF", "PPM", "AVIF", "JPEG2000", "TGA")


class UnreadableImageError(Exception):
    """One image could not be read; the message is the reason that the cache records."""

    def __init__(self, reason: str) -> None:
        super().__init__(printable(reason))


def decode_image(
    content: bytes, at_least: tuple[int, int] | None = None, max_pixels: int = MAX_PIXELS
) -> Image.Image:
    """Bytes -> RGB picture, as open_clip's own pipelines see it (first frame, EXIF rotation not applied).

    Args:
        at_least: width and height that are enough. A JPEG is then decoded at 1/2, 1/4 or 1/8 of its size,
            the smallest that is no smaller than this, which is faster and slightly different.
        max_pixels: an image of more is not decoded; at most `MOST_PIXELS`.

    Raises:
        UnreadableImageError: not an image of one of `FORMATS`, cut off, or of more than `max_pixels` pixels
            or `MOST_SCANS` scans.
    """
    with _opened(content, max_pixels) as image:
        try:
            if at_least is not None:
                image.draft(None, at_least)  # no other mode; other formats ignore it
            return image.convert("RGB")
        except Exception as error:  # Pillow's decoders raise many kinds for damaged data; each costs one row
            raise UnreadableImageError(_reason(error)) from error


def image_size(content: bytes, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Width and height from the header alone; raises as `decode_image`."""
    with _opened(content, max_pixels) as image:
        return image.size


def _opened(content: bytes, max_pixels: int) -> Image.Image:
    too_large = f"more than {max_pixels:,} pixels"
    if not content:
        raise UnreadableImageError("empty file")
    try:
        image = Image.open(io.BytesIO(content), formats=FORMATS)
    except UnidentifiedImageError as error:  # Pillow's own words name an address in memory
        raise UnreadableImageError("not an image, or of a format that is not read") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UnreadableImageError(too_large) from error
    except Exception as error:
        raise UnreadableImageError(_reason(error)) from error
    if image.width * image.height > max_pixels:
        raise UnreadableImageError(too_large)
    # a scan's marker, which no data holds; a JPEG by its first bytes, since Pillow calls one of several MPO
    if content.startswith(b"\xff\xd8") and content.count(b"\xff\xda") > MOST_SCANS:
        raise UnreadableImageError(f"a JPEG of more than {MOST_SCANS} scans")
    return image


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error)[:200]}"
