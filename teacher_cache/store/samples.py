"""`samples.parquet`: the sample table on disk, of which only the rows that are asked for are read."""

import threading
from collections import OrderedDict
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from teacher_cache.images import SampleTable
from teacher_cache.store.checksums import ChecksumWriter
from teacher_cache.store.folder import Sink

SAMPLES = "samples.parquet"
GROUP_ROWS = 8192  # a row group: what reading one row costs
GROUPS_KEPT = 128  # an epoch's window mixes rows of 64 blocks, each in one row group


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

    def __init__(self, file: Any, digest: str | None = None) -> None:
        """
        Args:
            file: seekable, binary, as pyarrow reads it.
            digest: the table's, where it is known: computing it reads all.
        """
        if digest is not None:
            self.__dict__["digest"] = digest
        self._parquet = pq.ParquetFile(file, read_dictionary=["path"], pre_buffer=True)
        footer = self._parquet.metadata
        counts = [footer.row_group(group).num_rows for group in range(footer.num_row_groups)]
        self._starts = np.cumsum([0, *counts])
        self._recent: OrderedDict[int, pa.Table] = OrderedDict()
        self._reading = threading.Lock()

    def __len__(self) -> int:
        return int(self._starts[-1])

    @cached_property
    def table(self) -> pa.Table:
        """The whole table."""
        return self._parquet.read()

    @cached_property
    def labels(self) -> NDArray[np.int32]:
        """Hard labels, [N] int32."""
        return np.asarray(self._parquet.read(columns=["label"])["label"].to_numpy(), dtype=np.int32)

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
                table = self._parquet.read_row_group(group)
            self._recent[group] = table  # the newest stands last
            while len(self._recent) > GROUPS_KEPT:
                self._recent.popitem(last=False)
        return table
