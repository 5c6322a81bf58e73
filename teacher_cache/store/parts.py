"""The parts of a cache: its per-sample arrays and one record a part, which is written last.

A part without its record does not exist. Which rows and views a part has is the header's business; sample
table, vocabularies and metadata are `cache_store.py`'s.
"""

import time
from collections.abc import Sequence
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from teacher_cache.compat.zarr import open_with_metadata, read
from teacher_cache.errors import CacheDamagedError
from teacher_cache.files.json_text import parse_json
from teacher_cache.store.checksums import CODEC_ERRORS, checksum
from teacher_cache.store.folder import Folder
from teacher_cache.store.header import SAMPLE_ARRAYS, CacheHeader
from teacher_cache.store.layout import METADATA_ERRORS, array_metadata, canonical
from teacher_cache.store.presence import GROUP
from teacher_cache.store.records import PARTS, PartRecord, record_key, recorded_part
from teacher_cache.store.samples import SAMPLES


class StoredParts:
    """The arrays and records of a cache: read, committed, checked and taken back by parts."""

    def __init__(self, folder: Folder, header: CacheHeader, writable: bool = False) -> None:
        self.folder = folder
        self.header = header
        self._zarr = folder.zarr_store(writable)
        self._mode = "r+" if writable else "r"
        self._arrays: dict[str, zarr.Array[Any]] = {}

    @property
    def path(self) -> str:
        """Path or URL, as it was named."""
        return self.folder.url

    def array(self, name: str) -> zarr.Array[Any]:
        """One of the stored arrays, by its path in the group.

        Raises:
            CacheDamagedError: it is not there, or of another shape, type, chunk or codec than the header
                says, whose reading could ask for any amount of memory.
        """
        if name not in self._arrays:
            what = f"{self.path}/{name}/{GROUP}"
            try:
                stored = parse_json(self.folder.read(f"{name}/{GROUP}"))
                if _laid_out(stored) != _laid_out(parse_json(self._expected_metadata[name])):
                    raise CacheDamagedError(
                        f"{what} is not what was written; rpp-cache build writes it again"
                    )
                array = zarr.open_array(self._zarr, path=name, mode=self._mode, zarr_format=3)
            except FileNotFoundError as error:
                raise CacheDamagedError(f"the array '{name}' is missing in {self.path}") from error
            except METADATA_ERRORS as error:
                raise CacheDamagedError(f"{what} is not readable: {error}") from error
            self._arrays[name] = array
        return self._arrays[name]

    def committed(self) -> list[int]:
        """Parts that are complete, ascending."""
        parts = [recorded_part(name) for name in self.folder.objects(PARTS)]
        return sorted(part for part in parts if part is not None and part < self.header.parts)

    def missing(self) -> list[int]:
        """Parts that are still to be computed, ascending."""
        return sorted(set(range(self.header.parts)) - set(self.committed()))

    def finished_views(self) -> int:
        """Views that every sample has: those of the passes before the first missing part."""
        missing = self.missing()
        passes = missing[0] // self.header.parts_per_pass if missing else len(self.header.passes)
        return self.header.passes[passes - 1] if passes else 0

    def record(self, part: int) -> PartRecord:
        """The record of a committed part.

        Raises:
            CacheDamagedError: it is not what was written.
        """
        key = record_key(part)
        return PartRecord.from_bytes(self.folder.read(key), f"{self.path}/{key}")

    def records(self, parts: Sequence[int] | None = None) -> list[PartRecord]:
        """The records of some committed parts, of all of them where none are named; read together.

        Raises:
            CacheDamagedError: one is not what was written.
        """
        keys = [record_key(part) for part in (self.committed() if parts is None else parts)]
        contents = self.folder.read_many(keys)
        return [
            PartRecord.from_bytes(content, f"{self.path}/{key}")
            for key, content in zip(keys, contents, strict=True)
        ]

    def skipped(self) -> list[dict[str, Any]]:
        """Samples that could not be read: row, key and reason, each once, ascending."""
        entries = [entry for record in self.records() for entry in record.skipped]
        return [entry for _, entry in sorted({entry["row"]: entry for entry in reversed(entries)}.items())]

    def commit(
        self,
        part: int,
        arrays: dict[str, NDArray[Any]],
        seconds: dict[str, float],
        skipped: list[dict[str, Any]],
    ) -> PartRecord:
        """Write a part's arrays, then its record: the moment at which the part exists."""
        rows = self.header.rows(part)
        started = time.monotonic()
        for name, values in arrays.items():
            self._erase_shards(name, part)
            self.array(name)[self._region(name, part)] = values
        seconds = {**seconds, "write": time.monotonic() - started}
        record = PartRecord(
            part=part,
            rows=(rows.start, rows.stop),
            checksums={name: checksum(values) for name, values in arrays.items()},
            seconds={name: round(value, 3) for name, value in seconds.items()},
            skipped=skipped,
        )
        self.write_record(record)
        return record

    def write_record(self, record: PartRecord) -> None:
        """Write the record of a part whose arrays are there."""
        self.folder.write(record_key(record.part), record.to_bytes())

    def _region(self, name: str, part: int) -> tuple[slice, ...]:
        """Where a part's values stand in an array."""
        rows, views = self.header.rows(part), self.header.views_of(part)
        return (rows,) if name in SAMPLE_ARRAYS else (rows, slice(views.start, views.stop))

    def _erase_shards(self, name: str, part: int) -> None:
        """Remove what an earlier attempt left of a part: zarr reads a shard that it does not fill, and
        cannot read a cut one."""
        for key in self._shards(name, part):
            self.folder.remove(key)

    def _shards(self, name: str, part: int) -> list[str]:
        """Keys of the shards of an array that hold a part."""
        row = part % self.header.parts_per_pass
        if name in SAMPLE_ARRAYS:
            return [f"{name}/c/{row}"]
        inner = "/0" * len(self.header.per_view[name].axes)  # a shard spans all of the further axes
        return [f"{name}/c/{row}/{view}{inner}" for view in self.header.views_of(part)]

    def part_is_sound(self, part: int) -> bool:
        """Whether record and stored arrays of a committed part are those that were written.

        Raises:
            CacheUnreachableError: the store does not answer, which says nothing about the part.
        """
        try:
            record = self.record(part)
            if slice(*record.rows) != self.header.rows(part):
                return False
            if set(record.checksums) != self.header.arrays_of(part):
                return False
            return all(self._is_as_recorded(name, part, record) for name in record.checksums)
        except (CacheDamagedError, OSError, *CODEC_ERRORS):
            return False

    def _is_as_recorded(self, name: str, part: int, record: PartRecord) -> bool:
        try:
            values = read(self._expected_array(name), self._region(name, part))
        # A shard that was cut or overwritten fails in the codec in as many ways as there are codecs.
        except (OSError, CacheDamagedError, *CODEC_ERRORS):
            return False
        return checksum(values) == record.checksums.get(name)

    def read(self, name: str, selection: Any) -> NDArray[Any]:
        """Values of a stored array, selected as zarr does.

        Raises:
            CacheDamagedError: they are not readable.
        """
        array = self.array(name)
        try:
            return read(array, selection)
        except CODEC_ERRORS as error:
            raise CacheDamagedError(
                f"'{name}' in {self.path} is not readable ({error}); rpp-cache verify finds the part, build "
                "computes it again"
            ) from error

    def sample_arrays(self, parts: range) -> dict[str, NDArray[Any]]:
        """`valid` and `labels` of consecutive parts of the first pass, by name: they decide which rows count,
        so they are compared with their checksums whenever they are read.

        Raises:
            CacheDamagedError: they are not what was written.
        """
        rows = slice(self.header.rows(parts[0]).start, self.header.rows(parts[-1]).stop)
        found = {name: self.read(name, rows) for name in SAMPLE_ARRAYS}
        for part, record in zip(parts, self.records(parts), strict=True):
            at = self.header.rows(part)
            for name, values in found.items():
                here = values[at.start - rows.start : at.stop - rows.start]
                if checksum(here) != record.checksums.get(name):
                    raise self._damaged(name, part)
        return found

    def require_as_recorded(self, name: str, part: int) -> None:
        """Refuse an array of a part that is not what was written.

        Raises:
            CacheDamagedError: it is not, or its record is not.
        """
        if not self._is_as_recorded(name, part, self.record(part)):
            raise self._damaged(name, part)

    def _damaged(self, name: str, part: int) -> CacheDamagedError:
        rows = self.header.rows(part)
        return CacheDamagedError(
            f"'{name}' of part {part} (rows {rows.start} to {rows.stop - 1}) in {self.path} is not what was "
            "written; rpp-cache verify takes the part back, rpp-cache build computes it again"
        )

    def require_whole(self) -> None:
        """Refuse a cache that has lost shards of committed parts: zarr would read them as the fill value.

        Raises:
            CacheDamagedError: naming the first, or the record of a part without some of its shards is not
                what was written.
        """
        if absent := self._absent_shards():
            raise CacheDamagedError(
                f"{len(absent)} stored files of the cache {self.path} are gone, the first {absent[0]}: copy "
                "it whole, or let rpp-cache verify find the parts and build compute them again"
            )

    def _absent_shards(self) -> list[str]:
        """Keys of the shards of committed parts that are gone.

        A shard that is nothing but the fill value zarr does not write, as where no image of a part could be
        read, or none has a label.
        """
        names = (*self.header.per_view, *SAMPLE_ARRAYS)
        there = {key for name in names for key in self.folder.sizes(f"{name}/c")}
        absent: dict[int, dict[str, list[str]]] = {}
        for part in self.committed():
            for name in self.header.arrays_of(part):
                if gone := [key for key in self._shards(name, part) if key not in there]:
                    absent.setdefault(part, {})[name] = gone
        return [
            key
            for (part, arrays), record in zip(absent.items(), self.records([*absent]), strict=True)
            for name, keys in arrays.items()
            if not self._may_be_absent(name, part, keys, record)
            for key in keys
        ]

    def _may_be_absent(self, name: str, part: int, absent: list[str], record: PartRecord) -> bool:
        """Whether an array of a part is what was written though these shards of it are not there."""
        if len(absent) < len(self._shards(name, part)):
            return self._is_as_recorded(name, part, record)
        rows = len(range(self.header.samples)[self.header.rows(part)])
        spec = (SAMPLE_ARRAYS | self.header.per_view)[name]
        views = () if name in SAMPLE_ARRAYS else (len(self.header.views_of(part)),)
        shape = (rows, *views, *(size for _, size in spec.axes))
        return record.checksums.get(name) == _fill_checksum(shape, spec.dtype, spec.fill)

    @cached_property
    def _expected_metadata(self) -> dict[str, bytes]:
        """`zarr.json` of each array, by the array's name."""
        return {key.removesuffix(f"/{GROUP}"): text for key, text in array_metadata(self.header).items()}

    def _expected_array(self, name: str) -> zarr.Array[Any]:
        """An array by what its metadata should be: damage of them is no damage of parts."""
        return open_with_metadata(self._zarr, name, self._expected_metadata[name])

    def withdraw(self, part: int) -> None:
        """Take back a part's record; the next build computes the part again."""
        key = record_key(part)
        self.folder.write(key.replace(".json", ".damaged"), self.folder.read(key))
        self.folder.remove(key)

    def bytes_per_view(self) -> float:
        """Stored bytes of all that grows with the number of samples, per committed view."""
        header = self.header
        spans = [(header.rows(part), len(header.views_of(part))) for part in self.committed()]
        views: int = sum((rows.stop - rows.start) * views for rows, views in spans)
        if not views:
            return 0.0
        sizes = self.folder.sizes()
        grows = (PARTS, *(f"{name}/c" for name in (*header.per_view, *SAMPLE_ARRAYS)))
        prefixes = tuple(f"{name}/" for name in grows)
        size = float(sum(size for key, size in sizes.items() if key.startswith(prefixes)))
        # `verify` is who says that the table is gone
        return size / views + float(sizes.get(SAMPLES, 0)) / (header.samples * header.views)


def _laid_out(metadata: Any) -> dict[str, Any]:
    """What of an array's metadata decides how it is read. The number of views may lag behind the header, or
    an opened header behind it, while views are added."""
    names = ("data_type", "chunk_grid", "chunk_key_encoding", "codecs", "fill_value")
    samples, *more = metadata["shape"]
    return {**{name: canonical(metadata[name]) for name in names}, "shape": [samples, *more[1:]]}


@lru_cache(maxsize=32)
def _fill_checksum(shape: tuple[int, ...], dtype: str, fill: Any) -> str | None:
    """Checksum of an array that is nothing but its fill value; none of one that no memory holds."""
    try:
        return checksum(np.full(shape, fill, dtype))
    except MemoryError:
        return None
