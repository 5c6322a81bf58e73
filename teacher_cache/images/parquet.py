"""Parquet files of Hugging Face image data sets: each row has a struct (bytes, path) and perhaps a label.

Indexing reads no image. An image is read with its row group, which is kept for its neighbours.
"""

import threading
from collections import OrderedDict
from functools import lru_cache
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from teacher_cache.classes.vocabulary import DIGITS
from teacher_cache.errors import RppError, UsageError
from teacher_cache.files.json_text import parse_json
from teacher_cache.files.remote import RemoteFile, file_info, is_remote, read_range
from teacher_cache.images.decode import UnreadableImageError
from teacher_cache.images.labels import LABEL_KEYS, labels_of_record, synsets_in
from teacher_cache.images.leftovers import Leftovers
from teacher_cache.images.location import PARQUET_ROW
from teacher_cache.images.parallel import map_files
from teacher_cache.images.rows import RowBuilder, Rows
from teacher_cache.images.sources import Source, SourceFile
from teacher_cache.images.statements import Statement

IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = tuple(dict.fromkeys(("label", "labels", "fine_label", *LABEL_KEYS)))
# What pyarrow raises for damaged bytes. A text that is not UTF-8 is found when it becomes a Python string.
DAMAGE = (pa.ArrowException, OSError, UnicodeDecodeError)
KEPT_FILES = 64
LARGEST_GROUP = 4 << 30  # bytes of a row group's images; a few hundred images have some hundred MB
KEPT_BYTES = 256 << 20  # of row groups; the last two always stay, for threads that cross from one to the next


def index_parquet(source: Source) -> list[Rows]:
    """Rows of all Parquet files; raises as `index_file`."""
    return map_files("Parquet files", index_file, source.files)


def index_file(file: SourceFile) -> Rows:
    """Rows of a Parquet file.

    Raises:
        UsageError: not a Parquet file, no column of images, or labels that cannot name a class.
        RppError: the file cannot be read.
    """
    builder, leftovers = RowBuilder(), Leftovers()
    try:
        with _open(file.path, file.size) as parquet:
            if parquet.metadata.num_rows > file.size:  # empty rows take no bytes there, but memory here
                raise UsageError(f"{file.path}: {parquet.metadata.num_rows:,} rows in {file.size:,} bytes")
            schema = parquet.schema_arrow
            image, labels = _image_column(schema, file.path), _label_columns(schema)
            class_lists = {label: names for label in labels if (names := _class_list(schema, label))}
            columns = [f"{image}.path", *labels]
            row = 0
            for group in range(parquet.num_row_groups):
                table = parquet.read_row_group(group, columns=columns)
                names = pc.struct_field(table[image], "path").to_pylist()
                for name, *values in zip(names, *(table[label].to_pylist() for label in labels), strict=True):
                    if name is None or not leftovers.has(name.rpartition("/")[2], name):
                        record = dict(zip(labels, values, strict=True))
                        stated = _labels(record, class_lists, f"{file.path}: row {row}")
                        stated += synsets_in(name or "")
                        builder.append_stated(name or f"{file.stem}/{row}", row, PARQUET_ROW, stated)
                    row += 1
    except DAMAGE as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise RppError(f"cannot read {file.path}: {error.strerror}") from error
        raise UsageError(f"{file.path} is not a readable Parquet file ({_first_line(error)})") from error
    class_list = class_lists.get(labels[0]) if labels else None
    return Rows(file.path, builder.table(), [], builder.several, leftovers, class_list)


def _open(path: str, size: int | None = None) -> pq.ParquetFile:
    if is_remote(path):
        return pq.ParquetFile(RemoteFile(path, int(file_info(path)["size"]) if size is None else size))
    return pq.ParquetFile(path)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _image_column(schema: pa.Schema, path: str) -> str:
    def contains_images(column: pa.Field) -> bool:
        if not pa.types.is_struct(column.type):
            return False
        types = {part.name: part.type for part in column.type}
        content, name = types.get("bytes", pa.null()), types.get("path", pa.null())
        is_binary = pa.types.is_binary(content) or pa.types.is_large_binary(content)
        is_text = pa.types.is_string(name) or pa.types.is_large_string(name)
        return bool(is_binary and is_text)

    found: list[str] = [column.name for column in schema if contains_images(column)]
    if not found:
        raise UsageError(
            f"{path} has no column of images, a struct of bytes and path; its columns are "
            f"{', '.join(schema.names)}"
        )
    return next((name for name in IMAGE_COLUMNS if name in found), found[0])


def _features(schema: pa.Schema) -> dict[str, Any]:
    """Return Hugging Face's description of the columns; empty without one."""
    try:
        features = parse_json((schema.metadata or {}).get(b"huggingface", b"{}"))
    except ValueError:
        return {}
    for key in ("info", "features"):
        features = features.get(key) if isinstance(features, dict) else None
    return features if isinstance(features, dict) else {}


def _label_columns(schema: pa.Schema) -> list[str]:
    """Return the columns of labels in their order; those behind the first must contain numbers or texts."""
    known = [name for name in LABEL_COLUMNS if name in schema.names]
    if not known:
        lists = [name for name in schema.names if _class_list(schema, name)]
        return lists if len(lists) == 1 else []

    def is_simple(kind: pa.DataType) -> bool:
        return bool(pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind))

    return [known[0], *(name for name in known[1:] if is_simple(schema.field(name).type))]


def _class_list(schema: pa.Schema, label: str) -> tuple[str, ...] | None:
    feature = _features(schema).get(label)
    names = feature.get("names") if isinstance(feature, dict) else None
    if isinstance(names, dict):  # index -> name, as in a data set's card
        if not all(key.isdecimal() and len(key) <= DIGITS for key in names):
            return None
        names = [names[key] for key in sorted(names, key=int)]
    return tuple(str(name) for name in names) if isinstance(names, list) and names else None


def _labels(record: dict[str, Any], class_lists: dict[str, tuple[str, ...]], where: str) -> list[Statement]:
    """Return the labels of a row; a number of a column with a list of classes becomes its name."""
    for value in record.values():
        if isinstance(value, float | list | dict | bytes):
            raise UsageError(f"{where}: the label {str(value)[:40]!r} is neither a class index nor a name")
    found = []
    for label in labels_of_record("column", record, list(record), where):
        names = class_lists.get(label.key)
        if names is not None and label.number is not None and label.number >= 0:
            if label.number >= len(names):
                raise UsageError(
                    f"{where}: the label {label.number}, but the file names only {len(names)} classes"
                )
            label = Statement("column", label.key, None, names[label.number])
        found.append(label)
    return found


class _OpenFile:
    """A Parquet file whose footer has been read."""

    def __init__(self, path: str) -> None:
        self.parquet = _open(path)
        footer = self.parquet.metadata
        self.image = _image_column(self.parquet.schema_arrow, path)
        rows = [footer.row_group(group).num_rows for group in range(footer.num_row_groups)]
        self.starts = np.cumsum([0, *rows])
        self.reading = threading.Lock()

    def images(self, group: int) -> pa.ChunkedArray:
        """Read the images of a row group, structs of bytes and path.

        Raises:
            UnreadableImageError: the row group claims an impossible size.
        """
        size = self.parquet.metadata.row_group(group).total_byte_size
        if not 0 <= size <= LARGEST_GROUP:
            raise UnreadableImageError(f"its row group has {size:,} bytes, more than {LARGEST_GROUP:,}")
        return self.parquet.read_row_group(group, columns=[self.image])[self.image]


class ParquetImages:
    """Reads images of Parquet files by (file, row) from any number of threads. Rows in order read each row
    group once; rows in random order read one row group for each image."""

    def __init__(self) -> None:
        self._open = lru_cache(KEPT_FILES)(_OpenFile)
        self._groups: OrderedDict[tuple[str, int], pa.ChunkedArray] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, path: str, row: int) -> bytes:
        """Return the bytes of the image in one row.

        Raises:
            UnreadableImageError: the row has no image, the file that it names is missing, or its row group
                is damaged.
            RppError: the Parquet file cannot be read, which concerns more than one image.
        """
        file = self._file(path)
        group = int(np.searchsorted(file.starts, row, side="right")) - 1
        if not 0 <= group < len(file.starts) - 1:
            raise RppError(f"{path} has no row {row}; it changed since it was indexed")
        try:
            with file.reading:  # threads that need the same row group wait for the one that reads it
                images = self._images(path, file, group)
        except DAMAGE as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise RppError(f"cannot read {path}: {error.strerror or error}") from error
            raise UnreadableImageError(f"its row group is damaged ({_first_line(error)[:200]})") from error
        place = row - int(file.starts[group])
        if not 0 <= place < len(images):
            raise UnreadableImageError(f"its row group is damaged (it has {len(images)} rows)")
        try:
            image = images[place]
            if not image.is_valid:
                raise UnreadableImageError("the row has no image")
            content, name = image["bytes"].as_py(), image["path"].as_py()
        except DAMAGE as error:
            raise UnreadableImageError(f"its row is damaged ({_first_line(error)[:200]})") from error
        return _read_beside(path, name) if content is None else bytes(content)

    def _file(self, path: str) -> _OpenFile:
        try:
            with self._lock:
                return self._open(path)
        except DAMAGE as error:
            raise RppError(f"cannot read {path}: {_first_line(error)}") from error

    def _images(self, path: str, file: _OpenFile, group: int) -> pa.ChunkedArray:
        with self._lock:
            if (images := self._groups.get((path, group))) is not None:
                self._groups.move_to_end((path, group))
                return images
        images = file.images(group)
        with self._lock:
            self._groups[path, group] = images
            while len(self._groups) > 2 and sum(kept.nbytes for kept in self._groups.values()) > KEPT_BYTES:
                self._groups.popitem(last=False)
        return images


def _read_beside(parquet: str, name: str | None) -> bytes:
    """Read an image that a row names by its path, relative to the Parquet file."""
    if not name:
        raise UnreadableImageError("the row has neither bytes nor a path")
    relative = PurePosixPath(name)
    if relative.is_absolute() or ".." in relative.parts or "://" in name or "\0" in name:
        raise UnreadableImageError(f"the path {name!r} is outside the Parquet file's folder")
    path = f"{parquet.rpartition('/')[0]}/{name}"
    try:
        if is_remote(path):
            return read_range(path, 0, int(file_info(path)["size"]))
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise UnreadableImageError(f"cannot read {path}: {error.strerror or 'no such file'}") from error
