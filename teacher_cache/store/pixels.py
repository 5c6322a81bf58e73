"""The rendered views of a cache: one tar a part, its index, and a record that is written last.

A tar has one member a view, ordered by view, then by row, so that a block of rows of one view is one run of
bytes. Each member is a sample of WebDataset, whose key is row and view.
"""

import io
import json
import tarfile
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from tempfile import SpooledTemporaryFile

import numpy as np
from numpy.typing import NDArray

from teacher_cache.errors import CacheDamagedError, RppError
from teacher_cache.files.json_text import parse_json, typed_record
from teacher_cache.images.location import ByteRange
from teacher_cache.images.view_codecs import VIEW_CODECS
from teacher_cache.store.checksums import (
    ChecksumWriter,
    bytes_checksum,
    file_checksum,
    with_checksum,
    without_checksum,
)
from teacher_cache.store.folder import Folder
from teacher_cache.store.header import CacheHeader
from teacher_cache.store.records import recorded_part

PIXELS = "pixels"
COMPARED = 64  # samples of a part whose stored pixels are compared with the exact ones
SPOOL_BYTES = 1 << 28  # encoded views of a part that are kept in memory; more go to a temporary file
INDICES_KEPT = 128  # an epoch's window mixes rows of 64 blocks, at most one part each
BLOCK = tarfile.BLOCKSIZE


@dataclass(frozen=True)
class PixelRecord:
    """What is stored of a part's rendered views.

    Attributes:
        part: its number.
        rows, views: start and stop of its rows and views.
        codec: name in `VIEW_CODECS`.
        size: height and width in pixels.
        tar, index: checksums of the two files.
        tar_bytes: size of the tar.
        stored_views: number of members.
        difference: mean absolute difference of the stored from the exact pixels, in 1/255, over the first
            `COMPARED` samples; None if none of them could be read.
        seen_by_teacher: whether the teacher saw the stored pixels, or the exact ones.
    """

    part: int
    rows: tuple[int, int]
    views: tuple[int, int]
    codec: str
    size: tuple[int, int]
    tar: str
    index: str
    tar_bytes: int
    stored_views: int
    difference: float | None
    seen_by_teacher: bool

    def to_bytes(self) -> bytes:
        """Return the stored form, with a checksum of the record."""
        return json.dumps(with_checksum(json.loads(json.dumps(asdict(self)))), indent=1).encode()

    @classmethod
    def from_bytes(cls, content: bytes, what: str) -> "PixelRecord":
        """Read what `to_bytes` returned.

        Args:
            what: name of the record in errors.

        Raises:
            CacheDamagedError: it is something else.
        """
        try:
            return typed_record(cls, without_checksum(parse_json(content), what))
        except ValueError as error:
            raise CacheDamagedError(f"{what} is not readable: {error}") from error


class EncodedViews:
    """Encoded views of a part, added in any order from any thread, until they are written."""

    def __init__(self, samples: int, views: int, codec: str, size: tuple[int, int]) -> None:
        """Args:
        samples, views: of the part.
        codec: name in `VIEW_CODECS`.
        size: height and width of a view.
        """
        self.codec, self.size = codec, size
        self._spool = SpooledTemporaryFile(max_size=SPOOL_BYTES)  # noqa: SIM115  # closed with this object
        self._adding = threading.Lock()
        self._places = np.zeros((samples, views, 2), dtype=np.int64)  # offset in the spool, length
        self._differences = np.full((min(samples, COMPARED), views), np.nan)

    def store(self, position: int, place: int, content: bytes, difference: float | None) -> None:
        """Keep an encoded view.

        Args:
            position, place: of the sample and of the view in the part.
            content: the image file.
            difference: of its pixels from the exact ones, see `pixel_difference`; None if not compared.
        """
        if difference is not None:
            self._differences[position, place] = difference
        with self._adding:
            self._places[position, place] = self._spool.tell(), len(content)
            self._spool.write(content)

    def keep(self, valid: NDArray[np.bool_]) -> None:
        """Forget all samples but these, [N of the part] bool."""
        self._places[~valid] = 0
        self._differences[~valid[: len(self._differences)]] = np.nan

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Bytes of each view, [N of the part, V]; 0 if it is not stored."""
        return self._places[..., 1]

    @property
    def tar_bytes(self) -> int:
        """Bytes that the views take in a tar, without its end."""
        return int((BLOCK + self.lengths + -self.lengths % BLOCK)[self.lengths > 0].sum())

    @property
    def difference(self) -> float | None:
        """Mean absolute difference of stored from exact pixels, in 1/255; None if none was compared."""
        compared = self._differences[~np.isnan(self._differences)]
        return float(compared.mean()) if len(compared) else None

    def content(self, position: int, place: int) -> bytes:
        """Return the image file of a view."""
        offset, length = self._places[position, place].tolist()
        with self._adding:
            end = self._spool.tell()
            self._spool.seek(offset)
            content = self._spool.read(length)
            self._spool.seek(end)
        return content


@dataclass(frozen=True)
class ViewPlaces:
    """Where n views are: part, and offset and length in its tar, each [n] int64."""

    parts: NDArray[np.int64]
    offsets: NDArray[np.int64]
    lengths: NDArray[np.int64]


class StoredPixels:
    """Tars, indices and records of the rendered views that a header describes."""

    def __init__(self, folder: Folder, header: CacheHeader) -> None:
        self._folder, self._header = folder, header
        self.record = lru_cache(INDICES_KEPT)(self._read_record)
        self.index = lru_cache(INDICES_KEPT)(self._read_index)

    def committed(self) -> list[int]:
        """Return the numbers of the parts whose views are stored, ascending."""
        names = (name for name, is_object in self._folder.entries(PIXELS).items() if is_object)
        parts = map(recorded_part, names)
        return sorted(part for part in parts if part is not None and part < self._header.parts)

    def records(self, parts: Sequence[int] | None = None) -> list[PixelRecord]:
        """Return the records of the given parts, of all that are stored if None. They are read together.

        Raises:
            CacheDamagedError: one is not what was written.
        """
        keys = [_key(part, "json") for part in (self.committed() if parts is None else parts)]
        contents = self._folder.read_many(keys)
        return [
            PixelRecord.from_bytes(content, f"{self._folder.url}/{key}")
            for key, content in zip(keys, contents, strict=True)
        ]

    def _read_record(self, part: int) -> PixelRecord:
        return self.records([part])[0]

    def write(self, part: int, encoded: EncodedViews, seen_by_teacher: bool) -> PixelRecord:
        """Write a part's tar and index, then its record. From then on the part's views are stored."""
        rows, views = self._header.rows(part), self._header.views_of(part)
        self._folder.remove(_key(part, "json"))  # of an earlier attempt; the tar is written again
        index = np.zeros((*encoded.lengths.shape, 2), dtype=np.int64)
        offset = 0
        with self._folder.writing(_key(part, "tar")) as sink:
            tar = ChecksumWriter(sink)
            for place, view in enumerate(views):
                for position in np.flatnonzero(encoded.lengths[:, place]).tolist():
                    content = encoded.content(position, place)
                    suffix = VIEW_CODECS[encoded.codec].suffix
                    member = tarfile.TarInfo(f"{view_key(rows.start + position, view)}.{suffix}")
                    member.size = len(content)
                    tar.write(member.tobuf(tarfile.USTAR_FORMAT))
                    index[position, place] = offset + BLOCK, len(content)
                    padding = -len(content) % BLOCK
                    tar.write(content + bytes(padding))
                    offset += BLOCK + len(content) + padding
            end = 2 * BLOCK + -(offset + 2 * BLOCK) % tarfile.RECORDSIZE
            tar.write(bytes(end))
        buffer = io.BytesIO()
        np.save(buffer, index)
        self._folder.write(_key(part, "npy"), buffer.getvalue())
        record = PixelRecord(
            part=part,
            rows=(rows.start, rows.stop),
            views=(views.start, views.stop),
            codec=encoded.codec,
            size=encoded.size,
            tar=tar.checksum,
            index=bytes_checksum(buffer.getvalue()),
            tar_bytes=offset + end,
            stored_views=int((encoded.lengths > 0).sum()),
            difference=encoded.difference,
            seen_by_teacher=seen_by_teacher,
        )
        self._folder.write(_key(part, "json"), record.to_bytes())
        self.record.cache_clear()
        self.index.cache_clear()
        return record

    def _read_index(self, part: int) -> NDArray[np.int64]:
        """Return offset and length in the tar of each view of a part, [N of the part, V, 2] int64.

        Raises:
            CacheDamagedError: it is not what was written.
        """
        key, rows = _key(part, "npy"), self._header.rows(part)
        shape = (rows.stop - rows.start, len(self._header.views_of(part)), 2)
        expected = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            expected, {"descr": "<i8", "fortran_order": False, "shape": shape}
        )
        start = expected.getvalue()
        try:
            content = self._folder.read(key)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise self._damaged(part, key) from error
        same = bytes_checksum(content) == self.record(part).index
        if not same or content[: len(start)] != start or len(content) != len(start) + 8 * np.prod(shape):
            raise self._damaged(part, key)
        return np.frombuffer(content, "<i8", offset=len(start)).reshape(shape)

    def locations(self, rows: NDArray[np.int64], views: NDArray[np.int64]) -> list[ByteRange]:
        """Return where the image files of views are, in order; arguments and errors as for `places`."""
        found = self.places(rows, views)
        root = f"{self._folder.absolute}/{PIXELS}"
        columns = (values.tolist() for values in (found.parts, found.offsets, found.lengths))
        return [
            ByteRange(f"{root}/{part:06d}.tar", offset, length)
            for part, offset, length in zip(*columns, strict=True)
        ]

    def places(self, rows: NDArray[np.int64], views: NDArray[np.int64]) -> "ViewPlaces":
        """Return parts, offsets and lengths of views, in order.

        Args:
            rows, views: [n], of stored parts.

        Raises:
            CacheDamagedError: an index is damaged, or does not have one of the views.
        """
        found = np.zeros((len(rows), 2), dtype=np.int64)
        parts = np.zeros(len(rows), dtype=np.int64)
        for view in np.unique(views).tolist():
            parts[views == view] = self._header.part_of(rows[views == view], view)
        for part in np.unique(parts).tolist():
            own, first = parts == part, self._header.views_of(part).start
            found[own] = self.index(part)[rows[own] - self._header.rows(part).start, views[own] - first]
        if not found[:, 1].all():
            part = int(parts[np.argmin(found[:, 1])])
            raise self._damaged(part, _key(part, "npy"))
        return ViewPlaces(parts, found[:, 0], found[:, 1])

    def advise(self, part: int, offset: int, length: int) -> None:
        """Tell the system that bytes of a part's tar are read soon, if it is on a disk."""
        self._folder.advise(_key(part, "tar"), offset, length)

    def is_intact(self, part: int) -> bool:
        """Return whether record, index and tar of a part are what was written.

        Raises:
            CacheUnreachableError: the store does not answer.
        """
        rows, views = self._header.rows(part), self._header.views_of(part)
        try:
            record = self._read_record(part)
            self._read_index(part)
            tar = file_checksum(self._folder.open(_key(part, "tar")))
        except (CacheDamagedError, OSError):
            return False
        spans = (record.rows, record.views) == ((rows.start, rows.stop), (views.start, views.stop))
        return spans and tar == record.tar

    def withdraw(self, part: int) -> None:
        """Rename a part's record, so that its views are rendered again."""
        key = _key(part, "json")
        self._folder.write(_key(part, "damaged"), self._folder.read(key))
        self._folder.remove(key)
        self.record.cache_clear()

    def remove_leftovers(self) -> None:
        """Remove temporary files of tars that a killed process was writing; nobody else writes now."""
        for name in self._folder.entries(PIXELS):
            if name.startswith("."):
                self._folder.remove(f"{PIXELS}/{name}")

    def require_complete(self, records: Sequence[PixelRecord]) -> None:
        """Refuse tars that are missing or have another size than recorded.

        Raises:
            CacheDamagedError: with the first of them.
        """
        sizes = self._folder.sizes(PIXELS)
        for record in records:
            if sizes.get(_key(record.part, "tar")) != record.tar_bytes:
                raise self._damaged(record.part, _key(record.part, "tar"))

    def _damaged(self, part: int, key: str) -> CacheDamagedError:
        remedy = "rpp-cache render writes" if self._header.pixels == "none" else "rpp-cache build computes"
        return CacheDamagedError(
            f"{self._folder.url}/{key} of the rendered views is not what was written; rpp-cache verify "
            f"withdraws part {part}, {remedy} it again"
        )


def view_key(row: int, view: int) -> str:
    """Return WebDataset's key of a rendered view, the name of its member without the suffix."""
    return f"{row:09d}-{view}"


def one_codec(records: Sequence[PixelRecord], path: str) -> str | None:
    """Return the codec of the stored views; None if no view is stored.

    Raises:
        RppError: several.
    """
    codecs = sorted({record.codec for record in records})
    if len(codecs) > 1:
        raise RppError(
            f"the rendered views of {path} have several codecs ({', '.join(codecs)}): remove the folder "
            f"{PIXELS}/ and run rpp-cache render again"
        )
    return codecs[0] if codecs else None


def _key(part: int, suffix: str) -> str:
    return f"{PIXELS}/{part:06d}.{suffix}"
