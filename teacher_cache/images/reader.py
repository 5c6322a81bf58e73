"""The bytes of a sample, by its place."""

import io
import os
from collections import OrderedDict

from teacher_cache.errors import RppError
from teacher_cache.files.remote import is_remote, read_range
from teacher_cache.images.decode import UnreadableImageError
from teacher_cache.images.parquet import ParquetImages
from teacher_cache.images.sources import IMAGE_SUFFIXES
from teacher_cache.images.table import PARQUET_ROW

MAX_OPEN_FILES = 64


class ImageReader:
    """Reads samples' bytes by their places from any number of threads, keeping files open."""

    def __init__(self) -> None:
        self._open: OrderedDict[str, io.FileIO] = OrderedDict()
        self._parquet = ParquetImages()

    def read(self, path: str, offset: int, length: int) -> bytes:
        """Bytes of one sample, whose place is as `SampleTable.locations` gives it.

        Raises:
            UnreadableImageError: a loose image file is gone or changed, or the file ends too early.
            RppError: a shard is gone or the network fails: that is not one image's damage.
        """
        if length == PARQUET_ROW:
            return self._parquet.read(path, offset)
        if offset < 0 or length < 0:
            raise UnreadableImageError(f"{length} bytes at byte {offset} are no place in a file")
        loose = os.path.splitext(path)[1].lower() in IMAGE_SUFFIXES
        try:
            content = (
                read_range(path, offset, length)
                if is_remote(path)
                else self._local(path, offset, length + loose)
            )
        except (OSError, ValueError) as error:  # a path with a zero byte is a value that Python refuses
            reason = getattr(error, "strerror", None) or (
                "no such file" if isinstance(error, FileNotFoundError) else error
            )
            if loose:
                raise UnreadableImageError(f"cannot read file: {reason}") from error
            raise RppError(f"cannot read image shard {path}: {reason}") from error
        if len(content) < length:
            raise UnreadableImageError(f"file ends after {len(content)} of {length} bytes")
        if len(content) > length:
            raise UnreadableImageError(f"file is longer than the {length} bytes that were indexed")
        return content

    def _local(self, path: str, offset: int, length: int) -> bytes:
        file = self._open.get(path)
        if file is None:
            # Evicted files are closed when the last reader lets go of them.
            file = self._open.setdefault(path, io.FileIO(path))
            while len(self._open) > MAX_OPEN_FILES:
                self._open.popitem(last=False)
        there = max(0, os.fstat(file.fileno()).st_size - offset)
        return os.pread(
            file.fileno(), min(length, there), offset
        )  # memory for what is said to be there is not
