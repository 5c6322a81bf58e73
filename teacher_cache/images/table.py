"""The table of samples: where each row's image is and which class it has.

`index.py` creates it from a source; a cache stores it as Parquet.
"""

import hashlib
import json
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from teacher_cache.files.json_text import parse_json
from teacher_cache.images.location import Location, stored_location
from teacher_cache.indices import Indices, as_indices

_ORIGIN = b"rpp.origin"


@dataclass(frozen=True)
class Origin:
    """The source of a table.

    Attributes:
        fingerprint: of the source's files and of the vocabulary; equal while nothing changed.
        notes: remarks of indexing for the user.
        folders: of an image folder, the relative paths of all folders in it.
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
        for chunk in keys.chunks:  # Arrow's own bytes: 14 million Python strings would take one GB
            _, ends, characters = chunk.buffers()
            if len(chunk) and characters is not None:
                bounds = np.frombuffer(ends, dtype=np.int64)[chunk.offset : chunk.offset + len(chunk) + 1]
                digest.update(memoryview(characters)[bounds[0] : bounds[-1]])
        digest.update(np.asarray(self.table["length"].to_numpy(), dtype=np.int64).tobytes())
        digest.update(self.labels.tobytes())
        return f"blake2b:{digest.hexdigest()}"

    @property
    def origin(self) -> Origin | None:
        """The table's source, if it is recorded; it is stored in the Parquet file's metadata."""
        record = (self.schema.metadata or {}).get(_ORIGIN)
        with suppress(ValueError, TypeError):
            origin = Origin(**parse_json(record or b""))
            if all(isinstance(text, str) for text in (origin.fingerprint, *origin.notes, *origin.folders)):
                return origin
        return None  # the source is indexed again

    def with_origin(self, origin: Origin) -> "SampleTable":
        """Return the same table with its source recorded."""
        record = json.dumps(vars(origin))  # ASCII: names of folders may contain what UTF-8 cannot encode
        return SampleTable(self.table.replace_schema_metadata({_ORIGIN: record}))

    def keys(self, rows: Indices) -> list[str]:
        """Keys of the given rows."""
        return list(self.take(rows)["key"].to_pylist())

    def take(self, rows: Indices) -> pa.Table:
        """Return the given rows in their order, with all columns.

        Raises:
            UsageError: a row that the table does not have.
        """
        return self.table.take(pa.array(as_indices(rows, len(self))))

    def locations(self, rows: Indices) -> list[Location]:
        """Locations of the given rows, as `ImageReader.read` takes them."""
        part = self.take(rows)
        columns = (part[name].to_pylist() for name in ("path", "offset", "length", "key"))
        return [stored_location(*row) for row in zip(*columns, strict=True)]
