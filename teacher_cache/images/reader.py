"""Read the bytes of a sample from its location."""

import io
import os
import threading
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

from teacher_cache.errors import RppError
from teacher_cache.files.remote import is_remote, read_range
from teacher_cache.images.decode import UnreadableImageError
from teacher_cache.images.location import Location, ParquetRow, WholeFile
from teacher_cache.lazy import load

if TYPE_CHECKING:  # a process that decodes imports pyarrow only for Parquet files
    from teacher_cache.images.parquet import ParquetImages

MAX_OPEN_FILES = 64


class ImageReader:
    """Reads samples' bytes from any number of threads, and keeps files open."""

    def __init__(self) -> None:
        self._open = lru_cache(MAX_OPEN_FILES)(io.FileIO)
        self._loading = threading.Lock()

    def __reduce__(self) -> tuple[type["ImageReader"], tuple[()]]:
        """Another process opens its own files."""
        return ImageReader, ()

    @cached_property
    def _parquet(self) -> "ParquetImages":
        images: ParquetImages = load("teacher_cache.images.parquet:ParquetImages")()
        return images

    def read(self, location: Location) -> bytes:
        """Return the bytes of one sample.

        Raises:
            UnreadableImageError: an image file is missing or changed, or a file ends too early.
            RppError: a shard is missing or the network fails, which concerns more than one image.
        """
        if isinstance(location, ParquetRow):
            with self._loading:  # all threads share its row groups
                parquet = self._parquet
            return parquet.read(location.path, location.row)
        path, length = location.path, location.length
        is_whole = isinstance(location, WholeFile)
        offset = 0 if isinstance(location, WholeFile) else location.offset
        if offset < 0 or length < 0:
            raise UnreadableImageError(f"invalid byte range: offset {offset}, length {length}")
        try:
            content = (
                read_range(path, offset, length)
                if is_remote(path)
                else self._read_local(path, offset, length + is_whole)
            )
        except (OSError, ValueError) as error:  # Python refuses a path with a null byte by a ValueError
            reason = getattr(error, "strerror", None) or (
                "no such file" if isinstance(error, FileNotFoundError) else error
            )
            if is_whole:
                raise UnreadableImageError(f"cannot read file: {reason}") from error
            raise RppError(f"cannot read image shard {path}: {reason}") from error
        if len(content) < length:
            raise UnreadableImageError(f"file ends after {len(content)} of {length} bytes")
        if len(content) > length:
            raise UnreadableImageError(f"file is longer than the {length} bytes that were indexed")
        return content

    def _read_local(self, path: str, offset: int, length: int) -> bytes:
        file = self._open(path)  # an evicted file is closed when its last reader has finished
        # pread allocates what it is asked for, and a damaged table may ask for more than the file has
        available = max(0, os.fstat(file.fileno()).st_size - offset)
        return os.pread(file.fileno(), min(length, available), offset)
