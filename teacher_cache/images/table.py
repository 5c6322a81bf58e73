"""The table of samples: where each row's image is and which class it has.

`index.py` creates it from a source; a cache stores it as Parquet.
"""

import hashlib
import json
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import cast, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from teacher_cache.files.json_text import parse_json, typed_record
from teacher_cache.images.location import Location, stored_location
from teacher_cache.images.statements import LabelChoice
from teacher_cache.indices import Indices, as_indices

_ORIGIN, _LABELS = b"rpp.origin", b"rpp.labels"


@dataclass(frozen=True)
class LabelReport:
    """What is known about the labels of a table, for the user; None is what was not counted.

    Attributes:
        choice: which label counts where several of a sample name different classes: `LabelChoice`.
        labelled, unlabelled: samples with and without a hard label.
        outside_vocabulary: samples without one because their class is not in the vocabulary.
        contradictory: samples whose labels name different classes.
        first_unlabelled, first_contradictory: keys of the first three.
        notes: all remarks of indexing.
    """

    choice: str = "auto"
    labelled: int | None = None
    unlabelled: int | None = None
    outside_vocabulary: int | None = None
    contradictory: int | None = None
    first_unlabelled: list[str] = field(default_factory=list)
    first_contradictory: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


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
        # ASCII: names of folders may contain what UTF-8 cannot encode
        return self._with_metadata({_ORIGIN: json.dumps(vars(origin))})

    @property
    def label_report(self) -> LabelReport | None:
        """What indexing reported about the labels; None in tables of earlier versions."""
        record = (self.schema.metadata or {}).get(_LABELS)
        with suppress(ValueError, TypeError):
            return typed_record(LabelReport, parse_json(record or b""))
        return None

    @property
    def label_choice(self) -> LabelChoice:
        """Which label counted where several contradicted one another: to index the same images again."""
        choice = self.label_report.choice if self.label_report else None
        return cast(LabelChoice, choice) if choice in get_args(LabelChoice) else "first"

    def with_label_report(self, report: LabelReport) -> "SampleTable":
        """Return the same table with the report recorded; it is stored in the Parquet file's metadata."""
        return self._with_metadata({_LABELS: json.dumps(asdict(report))})

    def _with_metadata(self, more: dict[bytes, str]) -> "SampleTable":
        metadata = {**(self.schema.metadata or {}), **more}
        return SampleTable(self.table.replace_schema_metadata(metadata))

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
