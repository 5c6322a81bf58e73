"""The bytes of a sample, by its place."""

import io
import os
from collections import OrderedDict

from teacher_cache.errors import RppError
from teacher_cache.images.decode import UnreadableImageError

MAX_OPEN_FILES = 64


class ImageReader:
    """Reads samples' bytes by (path, offset, length) from any number of threads, keeping files open."""

    def __init__(self) -> None:
        self._open: OrderedDict[str, io.FileIO] = OrderedDict()

    def read(self, path: str, offset: int, length: int) -> bytes:
        """Bytes of one sample.

        Raises:
            UnreadableImageError: a loose image file is gone, or the file ends too early.
            RppError: a shard is gone: that is not one image's damage.
        """
        try:
            file = self._open.get(path)
            if file is None:
                # Evicted files are closed when the last reader lets go of them.
                file = self._open.setdefault(path, io.FileIO(path))
                while len(self._open) > MAX_OPEN_FILES:
                    self._open.popitem(last=False)
            content = os.pread(file.fileno(), length, offset)
        except OSError as error:
            if path.endswith(".tar"):
                raise RppError(f"cannot read image shard {path}: {error.strerror or error}") from error
            raise UnreadableImageError(f"cannot read file: {error.strerror or error}") from error
        if len(content) != length:
            raise UnreadableImageError(f"file ends after {len(content)} of {length} bytes")
        return content
