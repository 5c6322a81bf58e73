"""Rows as a source yields them, before labels are looked up in the vocabulary."""

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from teacher_cache.images.leftovers import Leftovers
from teacher_cache.images.location import WHOLE_FILE
from teacher_cache.images.statements import Statement, Statements, in_order

ROWS_AS_LISTS = 1 << 16  # rows that exist as Python objects at a time; Arrow needs a tenth of their memory

# label_index, label_name: the source's label, as a class index (WebDataset's .cls) or a name or id (a folder,
# a synset), or neither. Where several places state a label, the first of them; `Rows.several` has all.
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
class SeveralStatements:
    """The samples for which a source states several different labels.

    Equal statements of many samples are stored once: there are about as many as classes.

    Attributes:
        rows: of these samples, ascending, [S] int64.
        codes: for each of them, the index of its statements in `sets`, [S] int64.
        sets: the different statements; the first one of each is the label unless another is chosen.
    """

    rows: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    codes: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    sets: list[Statements] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.rows)


@dataclass
class Rows:
    """Rows of one file, or of one folder of images.

    Attributes:
        path: the file or the folder.
        table: columns as in `SCHEMA`; `location.py` describes offset and length.
        notes: remarks for the user.
        several: the labels of samples that have several.
        leftovers: files and folders that were passed over.
        class_list: all classes in the order of the source's own numbers, where it has such a list.
        folder_times: of an image folder, the time of the last change of each folder in it, ns.
        by_order: whether its classes may be matched to the vocabulary by their sorted order.
        reusable: whether unchanged files and folders mean unchanged rows. If not, the source is indexed
            each time.
    """

    path: str
    table: pa.Table
    notes: list[str] = field(default_factory=list)
    several: SeveralStatements = field(default_factory=SeveralStatements)
    leftovers: Leftovers = field(default_factory=Leftovers)
    class_list: tuple[str, ...] | None = None
    folder_times: dict[str, int] = field(default_factory=dict)
    by_order: bool = False
    reusable: bool = True


class RowBuilder:
    """Takes rows one by one and keeps them as Arrow arrays. A label is an index, or a name or id, or None."""

    def __init__(self) -> None:
        self._lists: tuple[list[object], ...] = tuple([] for _ in SCHEMA)
        self._batches: list[pa.RecordBatch] = []
        self._rows, self._codes = array("q"), array("q")
        self._sets: dict[Statements, int] = {}

    def append(
        self, key: str, offset: int, length: int, label_index: int | None, label_name: str | None
    ) -> None:
        """Add an image; `location.py` describes `offset` and `length`."""
        for column, value in zip(self._lists, (key, offset, length, label_index, label_name), strict=True):
            column.append(value)
        if len(self._lists[0]) == ROWS_AS_LISTS:
            self._pack()

    def append_stated(self, key: str, offset: int, length: int, statements: Iterable[Statement]) -> None:
        """Add an image with all that is stated about its label, in the order of precedence."""
        found = in_order(statements)
        if len(found) > 1:
            self._rows.append(sum(map(len, self._batches)) + len(self._lists[0]))
            self._codes.append(self._sets.setdefault(found, len(self._sets)))
        self.append(key, offset, length, *(found[0][2:] if found else (None, None)))

    def append_file(self, key: str, length: int, statements: Iterable[Statement]) -> None:
        """Add an image file of `length` bytes: `key` in the folder."""
        self.append_stated(key, WHOLE_FILE, length, statements)

    def _pack(self) -> None:
        arrays = [pa.array(column, type) for column, type in zip(self._lists, SCHEMA.types, strict=True)]
        self._batches.append(pa.record_batch(arrays, schema=SCHEMA))
        for column in self._lists:
            column.clear()

    def table(self) -> pa.Table:
        """Return all rows so far."""
        self._pack()
        return pa.Table.from_batches(self._batches, SCHEMA)

    @property
    def several(self) -> SeveralStatements:
        """The labels of samples that have several."""
        rows, codes = np.array(self._rows, np.int64), np.array(self._codes, np.int64)
        return SeveralStatements(rows, codes, list(self._sets))


def joined(pieces: Sequence[Rows]) -> pa.Table:
    """Return all rows in the order of the pieces, in one chunk, with the column `path` beside the others.

    The pieces' tables are emptied on the way: 14 million rows twice would take one GB more.
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


def joined_statements(pieces: Iterable[tuple[SeveralStatements, int]]) -> SeveralStatements:
    """Return the statements of all pieces in their order.

    Args:
        pieces: with the number of all rows of each.
    """
    known: dict[Statements, int] = {}
    rows: list[NDArray[np.int64]] = [np.empty(0, np.int64)]
    codes: list[NDArray[np.int64]] = [np.empty(0, np.int64)]
    start = 0
    for piece, count in pieces:
        if len(piece):
            here = np.array([known.setdefault(one, len(known)) for one in piece.sets], np.int64)
            rows.append(piece.rows + start)
            codes.append(here[piece.codes])
        start += count
    return SeveralStatements(np.concatenate(rows), np.concatenate(codes), list(known))
