"""The table of samples: where each row's image lies and which class it has.

Read from images by `index.py`, kept in the cache as Parquet.
"""

import hashlib
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

# What a source yields. The label is what the source says: a class index (WebDataset's .cls) or a name or
# id (a folder, a synset).
INDEX_SCHEMA = pa.schema(
    [
        ("key", pa.large_string()),
        ("path", pa.dictionary(pa.int32(), pa.string())),
        ("offset", pa.int64()),
        ("length", pa.int64()),
        ("label_index", pa.int32()),
        ("label_name", pa.string()),
    ]
)


@dataclass(frozen=True)
class SampleTable:
    """All samples in row order: columns key, path, offset, length, label (int32, -1 = no hard label)."""

    table: pa.Table

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @cached_property
    def labels(self) -> NDArray[np.int32]:
        """Hard labels, [N] int32."""
        return np.asarray(self.table["label"].to_numpy(), dtype=np.int32)

    @cached_property
    def digest(self) -> str:
        """Digest of keys, lengths and labels. Paths are left out: images may move."""
        digest = hashlib.blake2b(digest_size=16)
        keys = self.table["key"]
        digest.update(np.asarray(pc.binary_length(keys).to_numpy(), dtype=np.int64).tobytes())
        for chunk in keys.chunks:
            digest.update("".join(chunk.to_pylist()).encode())
        digest.update(np.asarray(self.table["length"].to_numpy(), dtype=np.int64).tobytes())
        digest.update(self.labels.tobytes())
        return f"blake2b:{digest.hexdigest()}"

    def keys(self, rows: slice | NDArray[np.int64]) -> list[str]:
        """Keys of the given rows."""
        return list(self._take(rows)["key"].to_pylist())

    def _take(self, rows: slice | NDArray[np.int64]) -> pa.Table:
        if isinstance(rows, slice):
            start, stop, _ = rows.indices(len(self))
            return self.table.slice(start, stop - start)
        return self.table.take(pa.array(rows))

    def locations(self, rows: slice | NDArray[np.int64]) -> list[tuple[str, int, int]]:
        """(path, byte offset, byte length) of the given rows."""
        part = self._take(rows)
        columns = (part[name].to_pylist() for name in ("path", "offset", "length"))
        return list(zip(*columns, strict=True))

    def write(self, path: Path) -> None:
        """Write as Parquet, complete or not at all."""
        temporary = path.with_suffix(".tmp")
        pq.write_table(self.table, temporary, row_group_size=1 << 17, compression="zstd")
        os.replace(temporary, path)

    @classmethod
    def read(cls, path: Path) -> "SampleTable":
        """Read what `write` wrote."""
        return cls(pq.read_table(path, read_dictionary=["path"]))
