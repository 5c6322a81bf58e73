"""Decode images with Pillow."""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from teacher_cache.images.decode import UnreadableImageError

# Each scan of a progressive JPEG costs a pass over all pixels, even if it has few bytes; photographs have
# about ten.
MOST_SCANS = 100
# Formats of data sets, regardless of the file's name. Pillow reads more: for EPS it runs Ghostscript on the
# file's program, and it decodes an ICO before it reports its size.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "DIB", "GIF", "TIFF", "PPM", "AVIF", "JPEG2000", "TGA")


def decode_pillow(content: bytes, max_pixels: int) -> NDArray[np.uint8]:
    """Decode an image to RGB pixels, [H, W, 3] uint8, read-only; raises as `open_pillow`."""
    return np.asarray(open_pillow(content, max_pixels))


def open_pillow(content: bytes, max_pixels: int) -> Image.Image:
    """Decode an image to a Pillow image of mode RGB.

    Raises:
        UnreadableImageError: not an image of one of `FORMATS`, cut off, or of more than `max_pixels` pixels
            or `MOST_SCANS` scans.
    """
    too_large = f"more than {max_pixels:,} pixels"
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            if image.width * image.height > max_pixels:
                raise UnreadableImageError(too_large)
            # The marker of a scan never occurs within data. A JPEG is known by its first bytes: Pillow calls
            # a file with several of them MPO.
            if content.startswith(b"\xff\xd8") and content.count(b"\xff\xda") > MOST_SCANS:
                raise UnreadableImageError(f"a JPEG of more than {MOST_SCANS} scans")
            image.load()
            return image if image.mode == "RGB" else image.convert("RGB")
    except UnidentifiedImageError as error:  # its message contains a memory address
        raise UnreadableImageError("not an image, or of a format that is not read") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UnreadableImageError(too_large) from error
    except (UnreadableImageError, MemoryError):
        raise
    # Pillow's decoders raise many kinds of errors for damaged data, each of which costs one row
    except Exception as error:
        raise UnreadableImageError(f"{type(error).__name__}: {str(error)[:200]}") from error
