"""The table of samples: where each row's image lies and which class it has.

Made from a source by `index.py`, kept in the cache as Parquet.
"""

import hashlib
import json
import os
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from teacher_cache.files.json_text import parse_json

# How a row is found: bytes offset .. offset + length of `path`; or, in their place,
LOOSE_FILE = -1  # as offset: the file `key` in the folder `path`
PARQUET_ROW = -1  # as length: row `offset` of the Parquet file `path`

_ORIGIN = b"rpp.origin"


@dataclass(frozen=True)
class Origin:
    """What a table was made of.

    Attributes:
        fingerprint: of the source's files and of the vocabulary; equal while nothing changed.
        notes: what indexing had to say.
        folders: of an image folder, all folders in it by their places.
    """

    fingerprint: str
    notes: list[str]
    folders: list[str]


@dataclass(frozen=True)
class SampleTable:
    """All samples in row order: columns key, path, offset, length, label (int32, -1 = no hard label)."""

    table: pa.Table

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @property
    def schema(self) -> pa.Schema:
        """Columns and metadata, without reading rows."""
        return self.table.schema

    @cached_property
    def labels(self) -> NDArray[np.int32]:
        """Hard labels, [N] int32."""
        return np.asarray(self.table["label"].to_numpy(), dtype=np.int32)

    @cached_property
    def digest(self) -> str:
        """Digest of keys, lengths and labels. Paths are left out: images may move."""
        digest = hashlib.blake2b(digest_size=16)
        keys = self.table["key"].cast(pa.large_string())
        digest.update(np.asarray(pc.binary_length(keys).to_numpy(), dtype=np.int64).tobytes())
        for chunk in keys.chunks:  # the bytes as they lie in memory: 14 million strings would be a GB
            _, ends, characters = chunk.buffers()
            if len(chunk) and characters is not None:
                bounds = np.frombuffer(ends, dtype=np.int64)[chunk.offset : chunk.offset + len(chunk) + 1]
                digest.update(memoryview(characters)[bounds[0] : bounds[-1]])
        digest.update(np.asarray(self.table["length"].to_numpy(), dtype=np.int64).tobytes())
        digest.update(self.labels.tobytes())
        return f"blake2b:{digest.hexdigest()}"

    @property
    def origin(self) -> Origin | None:
        """What the table was made of, if it says so; it is kept in the Parquet file's own metadata."""
        record = (self.schema.metadata or {}).get(_ORIGIN)
        with suppress(ValueError, TypeError):
            origin = Origin(**parse_json(record or b""))
            if all(isinstance(text, str) for text in (origin.fingerprint, *origin.notes, *origin.folders)):
                return origin
        return None  # a table that says nothing of itself is indexed anew

    def made_of(self, origin: Origin) -> "SampleTable":
        """The same table, saying what it was made of."""
        record = json.dumps(vars(origin))  # ASCII: names of folders may hold what UTF-8 cannot
        return SampleTable(self.table.replace_schema_metadata({_ORIGIN: record}))

    def keys(self, rows: slice | NDArray[np.int64]) -> list[str]:
        """Keys of the given rows."""
        return list(self._take(rows)["key"].to_pylist())

    def _take(self, rows: slice | NDArray[np.int64]) -> pa.Table:
        if isinstance(rows, slice):
            start, stop, _ = rows.indices(len(self))
            return self.table.slice(start, stop - start)
        return self.table.take(pa.array(rows))

    def locations(self, rows: slice | NDArray[np.int64]) -> list[tuple[str, int, int]]:
        """(path, byte offset, byte length) of the given rows, as `ImageReader.read` takes them."""
        part = self._take(rows)
        columns = (part[name].to_pylist() for name in ("path", "offset", "length", "key"))
        return [
            (f"{path}/{key}", 0, length) if offset == LOOSE_FILE else (path, offset, length)
            for path, offset, length, key in zip(*columns, strict=True)
        ]

    def write(self, path: Path) -> None:
        """Write as Parquet, complete or not at all."""
        temporary = path.with_suffix(".tmp")
        pq.write_table(self.table, temporary, row_group_size=1 << 17, compression="zstd")
        os.replace(temporary, path)

    @classmethod
    def read(cls, path: Path) -> "SampleTable":
        """Read what `write` wrote."""
        return cls(pq.read_table(path, read_dictionary=["path"]))
