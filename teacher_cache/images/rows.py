"""Rows as a source yields them, before labels are looked up in the vocabulary."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

ROWS_AS_LISTS = 1 << 16  # Python objects of so many rows exist at once; Arrow takes a tenth of their memory

# label_index, label_name: what the source says, a class index (WebDataset's .cls) or a name or id (a folder,
# a synset), or neither.
SCHEMA = pa.schema(
    [
        ("key", pa.large_string()),
        ("offset", pa.int64()),
        ("length", pa.int64()),
        ("label_index", pa.int32()),
        ("label_name", pa.dictionary(pa.int32(), pa.string())),
    ]
)


@dataclass
class Rows:
    """Rows of one file, or of one folder of images.

    Attributes:
        path: the file or the folder.
        table: columns as `SCHEMA`; what offset and length mean is said in `table.py`.
        notes: remarks for the user.
        class_list: all classes in the order of the source's own numbers, where it has such a list.
    """

    path: str
    table: pa.Table
    notes: list[str] = field(default_factory=list)
    class_list: tuple[str, ...] | None = None


class RowBuilder:
    """Takes rows one by one and keeps them as Arrow arrays."""

    def __init__(self) -> None:
        self._lists: tuple[list[object], ...] = tuple([] for _ in SCHEMA)
        self._batches: list[pa.RecordBatch] = []

    def append(
        self, key: str, offset: int, length: int, label_index: int | None, label_name: str | None
    ) -> None:
        """Add a row."""
        for column, value in zip(self._lists, (key, offset, length, label_index, label_name), strict=True):
            column.append(value)
        if len(self._lists[0]) == ROWS_AS_LISTS:
            self._pack()

    def _pack(self) -> None:
        arrays = [pa.array(column, type) for column, type in zip(self._lists, SCHEMA.types, strict=True)]
        self._batches.append(pa.record_batch(arrays, schema=SCHEMA))
        for column in self._lists:
            column.clear()

    def table(self) -> pa.Table:
        """All rows so far."""
        self._pack()
        return pa.Table.from_batches(self._batches, SCHEMA)


def joined(pieces: Sequence[Rows]) -> pa.Table:
    """All rows in the order of the pieces, in one chunk, with the column `path` beside the others.

    The pieces' tables are emptied on the way: 14 million rows twice would be a GB more.
    """
    counts = [piece.table.num_rows for piece in pieces]
    places = pa.array(np.repeat(np.arange(len(pieces), dtype=np.int32), counts))
    columns = {"path": pa.DictionaryArray.from_arrays(places, pa.array([piece.path for piece in pieces]))}
    for name, kind in zip(SCHEMA.names, SCHEMA.types, strict=True):
        chunks = [chunk for piece in pieces for chunk in piece.table[name].chunks]
        column = pa.chunked_array(chunks, kind).unify_dictionaries()
        columns[name] = column.combine_chunks()
        for piece in pieces:
            piece.table = piece.table.drop_columns([name])
        del chunks, column
    return pa.table(columns)
