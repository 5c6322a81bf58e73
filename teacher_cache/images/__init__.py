"""Image sources -> one table of samples; the bytes and the pixels of each sample.

The headers of a source are read once into rows of (key, path, offset, length, label). After that every image
is read from its location, in any order. `views.py` decides which part of an image a model sees.
"""

from typing import TYPE_CHECKING

from teacher_cache.lazy import lazy_names

if TYPE_CHECKING:
    from teacher_cache.images.decode import IMAGE_SUFFIXES, UnreadableImageError, decode_image
    from teacher_cache.images.index import index_images
    from teacher_cache.images.reader import ImageReader
    from teacher_cache.images.sources import absolute_source, expand_source
    from teacher_cache.images.table import SampleTable
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "decode": ("IMAGE_SUFFIXES", "UnreadableImageError", "decode_image"),
            "index": ("index_images",),
            "reader": ("ImageReader",),
            "sources": ("absolute_source", "expand_source"),
            "table": ("SampleTable",),
        },
    )

__all__ = [
    "IMAGE_SUFFIXES",
    "ImageReader",
    "SampleTable",
    "UnreadableImageError",
    "absolute_source",
    "decode_image",
    "expand_source",
    "index_images",
]
