"""Image sources -> one table of samples; the bytes and the pixels of a sample by row.

A source is read once, headers only, into rows of (key, path, offset, length, label). After that every image
is read by its place, in whatever order. What part of an image a model sees is decided in `views.py`.
"""

from typing import TYPE_CHECKING

from teacher_cache.lazy import lazy_names

if TYPE_CHECKING:
    from teacher_cache.images.decode import UnreadableImageError, decode_image, image_size
    from teacher_cache.images.index import index_images
    from teacher_cache.images.reader import ImageReader
    from teacher_cache.images.sources import IMAGE_SUFFIXES, absolute_source, expand_source
    from teacher_cache.images.table import SampleTable
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "decode": ("UnreadableImageError", "decode_image", "image_size"),
            "index": ("index_images",),
            "reader": ("ImageReader",),
            "sources": ("IMAGE_SUFFIXES", "absolute_source", "expand_source"),
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
    "image_size",
    "index_images",
]
