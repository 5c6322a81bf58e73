"""Read complete chunks of uncompressed sharded Zarr arrays directly from their files.

Zarr's own reader takes about a millisecond for each chunk of a shard, longer than reading its megabyte
(benchmarks/feature_reads.py). The layout is that of the Zarr v3 sharding codec: chunks, then a table of
(offset, length) for each chunk, then a checksum of the table. Compressed or remote arrays are not read here.
"""

import io
import os
import sys
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import zarr
from numpy.typing import NDArray

from teacher_cache.compat.zarr import local_files
from teacher_cache.errors import CacheDamagedError
from teacher_cache.store.layout import canonical

CHECKSUM_BYTES = 4
ABSENT = (1 << 64) - 1  # offset of a chunk that was never written
OPEN_SHARDS = 256
# Half a million rows are loaded in 0.9 s instead of 1.6 (benchmarks/feature_reads.py, `memory_loaded_in`).
READING_THREADS = 4


class ShardedArray:
    """Reader of an array [N, V, ...] whose chunks have consecutive rows of one view."""

    def __init__(self, root: Path, array: zarr.Array[Any], separator: str) -> None:
        self.dtype = array.dtype
        self.shape = array.shape
        self._root = root
        self._separator = separator
        self._chunk_rows = array.chunks[0]
        self._shard_rows = (array.shards or array.chunks)[0]
        self._fill = array.fill_value
        self._shard = lru_cache(maxsize=OPEN_SHARDS)(self._open_shard)

    @classmethod
    def open(cls, array: zarr.Array[Any]) -> "ShardedArray | None":
        """Return a reader of the array, or None if its chunks are not plain bytes of local files."""
        if (files := local_files(array)) is None:
            return None
        root, metadata = files[0], canonical(files[1])
        match metadata["chunk_key_encoding"]:
            case "default":
                separator = "/"
            case {"name": "default", "configuration": {"separator": separator}}:
                pass
            case _:
                return None
        only_rows = array.shards is not None and array.shards[1] == 1 and array.chunks[2:] == array.shape[2:]
        if not only_rows or not _is_plain(metadata["codecs"], array.dtype.itemsize):
            return None
        return cls(root, array, separator)

    def read(self, rows: NDArray[np.int64], view: int, out: NDArray[Any]) -> None:
        """Read ascending rows of one view into `out`, [len(rows), ...]; each chunk once and completely.

        Raises:
            CacheDamagedError: a shard is truncated, or its table of chunks is damaged.
        """
        chunks = rows // self._chunk_rows
        begins = np.flatnonzero(np.diff(chunks, prepend=-1))

        def read_rows(begin: int, end: int) -> None:
            start = int(chunks[begin]) * self._chunk_rows
            count = min(self._chunk_rows, self.shape[0] - start)
            if end - begin == count:
                self._read_chunk(start, view, out[begin:end])
            else:
                chunk = np.empty((count, *self.shape[2:]), self.dtype)
                self._read_chunk(start, view, chunk)
                out[begin:end] = chunk[rows[begin:end] - start]

        with ThreadPoolExecutor(READING_THREADS) as pool:
            deque(pool.map(read_rows, begins.tolist(), [*begins[1:].tolist(), len(rows)]), maxlen=0)

    def _read_chunk(self, start: int, view: int, out: NDArray[Any]) -> None:
        shard, within = divmod(start, self._shard_rows)
        file, offsets = self._shard(shard, view)
        offset = int(offsets[within // self._chunk_rows]) if file else ABSENT
        if file is None or offset == ABSENT:
            out[...] = self._fill
        elif os.preadv(file.fileno(), [out.reshape(-1).view(np.uint8).data], offset) != out.nbytes:
            raise CacheDamagedError(f"{file.name} is truncated; run rpp-cache verify")

    def _open_shard(self, shard: int, view: int) -> tuple[io.FileIO | None, NDArray[np.uint64]]:
        """Return a shard's file and the offset of each of its chunks; no file if all is the fill value."""
        path = self._root / self._separator.join(
            ["c", *map(str, (shard, view, *(0 for _ in self.shape[2:])))]
        )
        chunks = self._shard_rows // self._chunk_rows
        try:
            file = io.FileIO(path)  # closed when no reader refers to it
            file.seek(-(16 * chunks + CHECKSUM_BYTES), os.SEEK_END)
            stored, checksum = file.read(16 * chunks), file.read(CHECKSUM_BYTES)
            if google_crc32c.value(stored) != int.from_bytes(checksum, "little"):
                raise ValueError("the checksum of its table of chunks does not match")
            table = np.frombuffer(stored, np.dtype("<u8")).reshape(chunks, 2)
        except FileNotFoundError:
            return None, np.empty(0, np.uint64)
        except (OSError, ValueError) as error:
            raise CacheDamagedError(f"{path} cannot be read ({error}); run rpp-cache verify") from error
        return file, table[:, 0]


def _is_plain(codecs: Any, itemsize: int) -> bool:
    """Return whether codecs store uncompressed chunks in this machine's byte order, followed by a table of
    chunks with a checksum; codecs are spelled as by `canonical`."""
    little, big = ({"name": "bytes", "configuration": {"endian": end}} for end in ("little", "big"))
    native = little if sys.byteorder == "little" else big
    plain = ["bytes", little, big] if itemsize == 1 else [native]
    match codecs:
        case [{"name": "sharding_indexed", "configuration": {"codecs": [inner]} as sharding}]:
            table = (sharding.get("index_codecs"), sharding.get("index_location", "end"))
            return inner in plain and table == ([little, "crc32c"], "end")
    return False
