"""`samples.parquet`: the sample table on disk, of which only the requested rows are read."""

import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from teacher_cache.errors import CacheDamagedError
from teacher_cache.images.table import SampleTable
from teacher_cache.indices import Indices, as_indices
from teacher_cache.store.checksums import ChecksumWriter
from teacher_cache.store.folder import Folder, Sink

SAMPLES = "samples.parquet"
GROUP_ROWS = 8192  # rows of a row group, which is read as a whole
LARGEST_GROUP = 1 << 20  # rows read into memory at a time: in a forged file, a row may take no byte
READ_ERRORS = (pa.ArrowException, OSError, ValueError)  # pyarrow's, for a file that is not valid Parquet
GROUPS_KEPT = 128  # an epoch's window mixes rows of 64 blocks, one row group each
# Texts may be dictionary-encoded, and have 32-bit or 64-bit offsets.
_TEXTS = {"string", "large_string", "dictionary<values=string, indices=int32, ordered=0>"}
_COLUMNS = {"key": _TEXTS, "path": _TEXTS, "offset": {"int64"}, "length": {"int64"}, "label": {"int32"}}


def _checked(table: pa.Table) -> pa.Table:
    """Return the table if its values are valid.

    Raises:
        ValueError: missing values, or texts that are not UTF-8.
    """
    table.validate(full=True)
    if empty := [name for name in table.schema.names if table[name].null_count]:
        raise ValueError(f"its column {empty[0]} has empty values")
    return table


def write_samples(samples: SampleTable, file: Sink) -> str:
    """Write the table as Parquet; return the checksum of the file."""
    sink, table = ChecksumWriter(file), samples.table
    path = table.schema.get_field_index("path")
    schema = table.schema.set(path, pa.field("path", pa.string()))
    with pq.ParquetWriter(sink, schema, compression="zstd") as writer:
        for start in range(0, len(table), GROUP_ROWS):
            # as plain texts: a dictionary array would repeat the whole dictionary in every row group
            writer.write_table(table.slice(start, GROUP_ROWS).cast(schema))
    return sink.checksum


class StoredSamples(SampleTable):
    """The table as `write_samples` wrote it. Opening it reads only the footer, `table` reads everything."""

    def __init__(self, file: Any, digest: str | None = None, what: str = SAMPLES) -> None:
        """
        Args:
            file: seekable binary file that pyarrow reads.
            digest: the table's digest, if known: computing it reads everything.
            what: name of the file in errors.

        Raises:
            CacheDamagedError: it is not a sample table.
        """
        self._what, self._digest = what, digest
        with self._damage():
            self._open(file)
        self._recent: OrderedDict[int, pa.Table] = OrderedDict()
        self._reading = threading.Lock()

    @classmethod
    def open(cls, folder: Folder, digest: str) -> "StoredSamples":
        """Open the table of a cache.

        Raises:
            CacheDamagedError: it is missing or not readable.
        """
        what = f"{folder.url}/{SAMPLES}"
        try:
            file = folder.open(SAMPLES)
        except OSError as error:
            raise CacheDamagedError(f"{what} is not readable: {error}") from error
        return cls(file, digest, what)

    def _open(self, file: Any) -> None:
        self._parquet = pq.ParquetFile(file, read_dictionary=["path"], pre_buffer=True)
        footer = self._parquet.metadata
        counts = [footer.row_group(group).num_rows for group in range(footer.num_row_groups)]
        found = {field.name: str(field.type) for field in self._parquet.schema_arrow}
        if any(found.get(name) not in kinds for name, kinds in _COLUMNS.items()):
            raise ValueError(f"its columns are {str(found)[:200]}")
        if min(counts, default=0) < 0 or max(counts, default=0) > LARGEST_GROUP:
            raise ValueError(f"its largest row group has {max(counts):,} rows")
        self._starts = np.cumsum([0, *counts])

    def __len__(self) -> int:
        return int(self._starts[-1])

    @cached_property
    def digest(self) -> str:
        """Digest of keys, lengths and labels."""
        return self._digest or SampleTable(self.table).digest

    @cached_property
    def table(self) -> pa.Table:
        """The complete table."""
        with self._damage():
            return _checked(self._parquet.read())

    @cached_property
    def labels(self) -> NDArray[np.int32]:
        """Hard labels, [N] int32."""
        with self._damage():
            found = _checked(self._parquet.read(columns=["label"]))
            return np.asarray(found["label"].to_numpy(), dtype=np.int32)

    @contextmanager
    def _damage(self) -> Iterator[None]:
        try:
            yield
        except READ_ERRORS as error:
            raise CacheDamagedError(
                f"{self._what} is not readable ({error}); rpp-cache build writes it again"
            ) from error

    @property
    def schema(self) -> pa.Schema:
        """Columns and metadata, without reading rows."""
        return self._parquet.schema_arrow

    def part(self, rows: slice) -> SampleTable:
        """Return the given rows as a table."""
        return SampleTable(self.take(rows))

    def same_as(self, other: SampleTable) -> bool:
        """Return whether both have the same samples in the same places, comparing a row group at a time."""
        if len(self) != len(other) or self.schema.names != other.schema.names:
            return False
        if (self.schema.metadata or {}) != (other.schema.metadata or {}):
            return False
        for group, start in enumerate(self._starts[:-1]):
            ours, rows = self._group(group), other.take(slice(start, self._starts[group + 1]))
            for name in ours.schema.names:
                kind = pa.large_string() if name in ("key", "path") else ours[name].type
                if not ours[name].cast(kind).equals(rows[name].cast(kind)):
                    return False
        return True

    def take(self, rows: Indices) -> pa.Table:
        """Return the given rows in their order, with all columns; each row group is read once."""
        wanted = as_indices(rows, len(self))
        groups = np.searchsorted(self._starts, wanted, side="right") - 1
        present = np.unique(groups)
        pieces = [self._group(int(g)).take(pa.array(wanted[groups == g] - self._starts[g])) for g in present]
        if not pieces:
            return self.schema.empty_table()
        # the pieces are sorted by group: restore the requested order
        back = np.argsort(np.argsort(groups, kind="stable"), kind="stable")
        return pa.concat_tables(pieces).unify_dictionaries().combine_chunks().take(pa.array(back))

    def _group(self, group: int) -> pa.Table:
        with self._reading:
            table = self._recent.pop(group, None)
            if table is None:
                with self._damage():
                    table = _checked(self._parquet.read_row_group(group))
            self._recent[group] = table  # the newest is last
            while len(self._recent) > GROUPS_KEPT:
                self._recent.popitem(last=False)
        return table
