"""Where an image is: bytes of a file, a file of its own, or a row of a Parquet file.

In the table of samples each is a pair of numbers, `offset` and `length`, beside `path` and `key`.
"""

from typing import NamedTuple

WHOLE_FILE = -1  # as offset: the file `key` in the folder `path`
PARQUET_ROW = -1  # as length: row `offset` of the Parquet file `path`


class ByteRange(NamedTuple):
    """`length` bytes of a file, from byte `offset` on: a member of a tar."""

    path: str
    offset: int
    length: int


class WholeFile(NamedTuple):
    """An image file of its own, which had `length` bytes when it was indexed."""

    path: str
    length: int


class ParquetRow(NamedTuple):
    """A row of a Parquet file, counted from 0."""

    path: str
    row: int


Location = ByteRange | WholeFile | ParquetRow


def stored_location(path: str, offset: int, length: int, key: str) -> Location:
    """Return the location that a row of the table describes."""
    if offset == WHOLE_FILE:
        return WholeFile(f"{path}/{key}", length)
    if length == PARQUET_ROW:
        return ParquetRow(path, offset)
    return ByteRange(path, offset, length)
