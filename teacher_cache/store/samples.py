"""`samples.parquet`: the sample table on disk, of which only the rows that are asked for are read."""

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
from teacher_cache.images import SampleTable
from teacher_cache.store.checksums import ChecksumWriter
from teacher_cache.store.folder import Sink

SAMPLES = "samples.parquet"
GROUP_ROWS = 8192  # a row group: what reading one row costs
LARGEST_GROUP = 1 << 20  # rows that are taken into memory at a time: a row may take no byte in the file
DAMAGE = (pa.ArrowException, OSError, ValueError, TypeError, LookupError, OverflowError, MemoryError)
GROUPS_KEPT = 128  # an epoch's window mixes rows of 64 blocks, each in one row group
# One type each, but for texts: they may come as a dictionary, and long ones with long offsets.
_TEXTS = {"string", "large_string", "dictionary<values=string, indices=int32, ordered=0>"}
_COLUMNS = {"key": _TEXTS, "path": _TEXTS, "offset": {"int64"}, "length": {"int64"}, "label": {"int32"}}


def _sound(table: pa.Table) -> pa.Table:
    """The table, if it is what `write_samples` may have written.

    Raises:
        ValueError: empty values, or bytes that are no text.
    """
    table.validate(full=True)
    if empty := [name for name in table.schema.names if table[name].null_count]:
        raise ValueError(f"its column {empty[0]} has empty values")
    return table


def write_samples(samples: SampleTable, file: Sink) -> str:
    """Write the table as Parquet; returns the checksum of the file."""
    sink, table = ChecksumWriter(file), samples.table
    path = table.schema.get_field_index("path")
    schema = table.schema.set(path, pa.field("path", pa.string()))
    with pq.ParquetWriter(sink, schema, compression="zstd") as writer:
        for start in range(0, len(table), GROUP_ROWS):
            # as plain texts: of a dictionary array every row group would hold the whole dictionary
            writer.write_table(table.slice(start, GROUP_ROWS).cast(schema))
    return sink.checksum


class StoredSamples(SampleTable):
    """The table as `write_samples` wrote it. Opening reads the footer alone, and `table` all."""

    def __init__(self, file: Any, digest: str | None = None, what: str = SAMPLES) -> None:
        """
        Args:
            file: seekable, binary, as pyarrow reads it.
            digest: the table's, where it is known: computing it reads all.
            what: how an error names it.

        Raises:
            ValueError: it is no sample table; and what pyarrow raises where it is no Parquet, see `DAMAGE`.
        """
        self.__dict__["what"] = what
        if digest is not None:
            self.__dict__["digest"] = digest
        self._parquet = pq.ParquetFile(file, read_dictionary=["path"], pre_buffer=True)
        footer = self._parquet.metadata
        counts = [footer.row_group(group).num_rows for group in range(footer.num_row_groups)]
        found = {field.name: str(field.type) for field in self._parquet.schema_arrow}
        if any(found.get(name) not in kinds for name, kinds in _COLUMNS.items()):
            raise ValueError(f"its columns are {str(found)[:200]}")
        if min(counts, default=0) < 0 or max(counts, default=0) > LARGEST_GROUP:
            raise ValueError(f"its largest row group has {max(counts):,} rows")
        self._starts = np.cumsum([0, *counts])
        self._recent: OrderedDict[int, pa.Table] = OrderedDict()
        self._reading = threading.Lock()

    def __len__(self) -> int:
        return int(self._starts[-1])

    @cached_property
    def table(self) -> pa.Table:
        """The whole table."""
        with self._damage():
            return _sound(self._parquet.read())

    @cached_property
    def labels(self) -> NDArray[np.int32]:
        """Hard labels, [N] int32."""
        with self._damage():
            found = _sound(self._parquet.read(columns=["label"]))
            return np.asarray(found["label"].to_numpy(), dtype=np.int32)

    @contextmanager
    def _damage(self) -> Iterator[None]:
        try:
            yield
        except DAMAGE as error:
            raise CacheDamagedError(
                f"{self.__dict__['what']} is not readable ({error}); rpp-cache build writes it again"
            ) from error

    @property
    def schema(self) -> pa.Schema:
        """Columns and metadata, without reading rows."""
        return self._parquet.schema_arrow

    def part(self, rows: slice) -> SampleTable:
        """The given rows as a table of their own."""
        return SampleTable(self._take(rows))

    def same_as(self, other: SampleTable) -> bool:
        """Whether both hold the same samples in the same places, compared without reading all at once."""
        if len(self) != len(other) or self.schema.names != other.schema.names:
            return False
        if (self.schema.metadata or {}) != (other.schema.metadata or {}):
            return False
        for group, start in enumerate(self._starts[:-1]):
            ours, rows = self._group(group), other._take(slice(start, self._starts[group + 1]))
            for name in ours.schema.names:
                kind = pa.large_string() if name in ("key", "path") else ours[name].type
                if not ours[name].cast(kind).equals(rows[name].cast(kind)):
                    return False
        return True

    def _take(self, rows: slice | NDArray[np.int64]) -> pa.Table:
        """The given rows in their order; each row group that is needed is read once."""
        wanted = np.arange(*rows.indices(len(self))) if isinstance(rows, slice) else np.asarray(rows)
        wanted = wanted.astype(np.int64)
        groups = np.searchsorted(self._starts, wanted, side="right") - 1
        present = np.unique(groups)
        pieces = [self._group(int(g)).take(pa.array(wanted[groups == g] - self._starts[g])) for g in present]
        if not pieces:
            return self.schema.empty_table()
        # the pieces stand by group: put the rows back into the order asked for
        back = np.argsort(np.argsort(groups, kind="stable"), kind="stable")
        return pa.concat_tables(pieces).unify_dictionaries().combine_chunks().take(pa.array(back))

    def _group(self, group: int) -> pa.Table:
        with self._reading:
            table = self._recent.pop(group, None)
            if table is None:
                with self._damage():
                    table = _sound(self._parquet.read_row_group(group))
            self._recent[group] = table  # the newest stands last
            while len(self._recent) > GROUPS_KEPT:
                self._recent.popitem(last=False)
        return table
