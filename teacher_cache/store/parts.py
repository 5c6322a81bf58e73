"""The parts of a cache: its per-sample arrays, and one record a part that is written last.

A part without its record does not exist. The header says which rows and views a part has.
"""

import time
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import zarr
from numpy.typing import NDArray

from teacher_cache.compat.zarr import open_with_metadata, read
from teacher_cache.errors import CacheDamagedError
from teacher_cache.store.checksums import checksum
from teacher_cache.store.folder import Folder
from teacher_cache.store.header import SAMPLE_ARRAYS, CacheHeader
from teacher_cache.store.layout import array_metadata, same_layout
from teacher_cache.store.pixels import EncodedViews, StoredPixels
from teacher_cache.store.presence import GROUP
from teacher_cache.store.records import PARTS, PartRecord, Resources, record_key, recorded_part
from teacher_cache.store.samples import SAMPLES


class StoredParts:
    """Arrays and records of the parts that a header describes.

    Attributes:
        pixels: their rendered views.
    """

    def __init__(self, folder: Folder, header: CacheHeader, writable: bool = False) -> None:
        self._folder = folder
        self._header = header
        self._zarr = folder.zarr_store(writable)
        self._mode = "r+" if writable else "r"
        self._arrays: dict[str, zarr.Array[Any]] = {}
        self.pixels = StoredPixels(folder, header)

    def array(self, name: str) -> zarr.Array[Any]:
        """Return a stored array by its name.

        Raises:
            CacheDamagedError: it is missing, or its shape, type, chunks or codecs are not those of the
                header: reading it could allocate any amount of memory.
        """
        if name not in self._arrays:
            key = f"{name}/{GROUP}"
            try:
                stored = self._folder.read(key)
            except (FileNotFoundError, NotADirectoryError) as error:
                raise CacheDamagedError(f"the array '{name}' is missing in {self._folder.url}") from error
            if not same_layout(stored, self._expected_metadata[name]):
                raise CacheDamagedError(
                    f"{self._folder.url}/{key} is not what was written; rpp-cache build writes it again"
                )
            self._arrays[name] = zarr.open_array(self._zarr, path=name, mode=self._mode, zarr_format=3)
        return self._arrays[name]

    def committed(self) -> list[int]:
        """Return the numbers of the complete parts, ascending."""
        names = (name for name, is_object in self._folder.entries(PARTS).items() if is_object)
        parts = map(recorded_part, names)
        found = {part for part in parts if part is not None and part < self._header.parts}
        # a version that does not know rendered views may have computed a part without them
        return sorted(found if self._header.pixels == "none" else found & set(self.pixels.committed()))

    def missing(self) -> list[int]:
        """Return the numbers of the parts that are not complete, ascending."""
        return sorted(set(range(self._header.parts)) - set(self.committed()))

    def finished_views(self) -> int:
        """Return the number of views that every sample has: those of the passes before the first missing
        part."""
        missing = self.missing()
        passes = missing[0] // self._header.parts_per_pass if missing else len(self._header.passes)
        return self._header.passes[passes - 1] if passes else 0

    def record(self, part: int) -> PartRecord:
        """Return the record of a committed part.

        Raises:
            CacheDamagedError: it is not what was written.
        """
        return self.records([part])[0]

    def records(self, parts: Sequence[int] | None = None) -> list[PartRecord]:
        """Return the records of the given committed parts, of all if None. They are read together.

        Raises:
            CacheDamagedError: one is not what was written.
        """
        keys = [record_key(part) for part in (self.committed() if parts is None else parts)]
        contents = self._folder.read_many(keys)
        return [
            PartRecord.from_bytes(content, f"{self._folder.url}/{key}")
            for key, content in zip(keys, contents, strict=True)
        ]

    def skipped(self) -> list[dict[str, Any]]:
        """Return row, key and reason of each unreadable sample, by ascending row."""
        entries = [entry for record in self.records() for entry in record.skipped]
        return [entry for _, entry in sorted({entry["row"]: entry for entry in reversed(entries)}.items())]

    def commit(
        self,
        part: int,
        arrays: dict[str, NDArray[Any]],
        seconds: dict[str, float],
        skipped: list[dict[str, Any]],
        resources: Resources | None = None,
        encoded: EncodedViews | None = None,
    ) -> PartRecord:
        """Write a part's arrays, then its record. From then on the part exists.

        Args:
            encoded: its views, if the teacher saw stored ones; they are written first.
        """
        rows = self._header.rows(part)
        started = time.monotonic()
        pixels = encoded and self.pixels.write(part, encoded, seen_by_teacher=True)
        for name, values in arrays.items():
            # zarr reads a shard that it does not fill, and fails on a truncated one of an earlier attempt
            for key in self._shards(name, part):
                self._folder.remove(key)
            self.array(name)[self._region(name, part)] = values
        seconds = {**seconds, "write": time.monotonic() - started}
        record = PartRecord(
            part=part,
            rows=(rows.start, rows.stop),
            checksums={name: checksum(values) for name, values in arrays.items()},
            seconds={name: round(value, 3) for name, value in seconds.items()},
            skipped=skipped,
            resources=resources,
            pixels=pixels.tar if pixels else None,
        )
        self.write_record(record)
        return record

    def write_record(self, record: PartRecord) -> None:
        """Write the record of a part whose arrays are stored."""
        self._folder.write(record_key(record.part), record.to_bytes())

    def _region(self, name: str, part: int) -> tuple[slice, ...]:
        """Return the selection of a part in an array."""
        rows, views = self._header.rows(part), self._header.views_of(part)
        return (rows,) if name in SAMPLE_ARRAYS else (rows, slice(views.start, views.stop))

    def _shards(self, name: str, part: int) -> list[str]:
        """Return the keys of a part's shards of an array."""
        row = part % self._header.parts_per_pass
        if name in SAMPLE_ARRAYS:
            return [f"{name}/c/{row}"]
        inner = "/0" * len(self._header.per_view[name].axes)  # a shard spans all further axes
        return [f"{name}/c/{row}/{view}{inner}" for view in self._header.views_of(part)]

    def is_intact(self, part: int) -> bool:
        """Return whether record and arrays of a committed part are what was written.

        Raises:
            CacheUnreachableError: the store does not answer.
        """
        try:
            record = self.record(part)
        except (CacheDamagedError, OSError):
            return False
        return (
            slice(*record.rows) == self._header.rows(part)
            and set(record.checksums) == self._header.arrays_of(part)
            and all(self._is_as_recorded(name, part, record) for name in record.checksums)
            and self._has_pixels(part, record)
        )

    def _has_pixels(self, part: int, record: PartRecord) -> bool:
        """Return whether the views that the teacher saw are intact, if it saw stored ones."""
        if self._header.pixels == "none":
            return True
        return self.pixels.is_intact(part) and self.pixels.record(part).tar == record.pixels

    def _is_as_recorded(self, name: str, part: int, record: PartRecord) -> bool:
        # the expected metadata: if the stored metadata are damaged, the part is not
        array = open_with_metadata(self._zarr, name, self._expected_metadata[name])
        try:
            values = read(array, self._region(name, part))
        except (
            OSError,
            CacheDamagedError,
            ValueError,
        ):  # zarr raises ValueError for cut or overwritten bytes
            return False
        return checksum(values) == record.checksums.get(name)

    def read(self, name: str, selection: Any) -> NDArray[Any]:
        """Return values of a stored array, selected as zarr does.

        Raises:
            CacheDamagedError: they cannot be read.
        """
        array = self.array(name)
        try:
            return read(array, selection)
        except ValueError as error:
            raise CacheDamagedError(
                f"'{name}' in {self._folder.url} is not readable ({error}); rpp-cache verify finds the part, "
                "rpp-cache build computes it again"
            ) from error

    def sample_arrays(self, parts: range) -> dict[str, NDArray[Any]]:
        """Return `valid` and `labels` of consecutive parts of the first pass, by name. They decide which rows
        count, so each read compares them with their checksums.

        Raises:
            CacheDamagedError: they are not what was written.
        """
        rows = slice(self._header.rows(parts[0]).start, self._header.rows(parts[-1]).stop)
        found = {name: self.read(name, rows) for name in SAMPLE_ARRAYS}
        for part, record in zip(parts, self.records(parts), strict=True):
            at = self._header.rows(part)
            for name, values in found.items():
                part_values = values[at.start - rows.start : at.stop - rows.start]
                if checksum(part_values) != record.checksums.get(name):
                    raise self._damaged(name, part)
        return found

    def require_as_recorded(self, name: str, part: int) -> None:
        """Refuse an array of a part that is not what was written.

        Raises:
            CacheDamagedError: the array or the record is damaged.
        """
        if not self._is_as_recorded(name, part, self.record(part)):
            raise self._damaged(name, part)

    def _damaged(self, name: str, part: int) -> CacheDamagedError:
        rows = self._header.rows(part)
        return CacheDamagedError(
            f"'{name}' of part {part} (rows {rows.start} to {rows.stop - 1}) in {self._folder.url} is not "
            "what was written; rpp-cache verify withdraws the part, rpp-cache build computes it again"
        )

    def require_all_shards(self) -> None:
        """Refuse a cache that has lost shards of committed parts: zarr reads them as the fill value.

        zarr does not write a shard of nothing but the fill value, for example the labels of a part without
        labels. A part with missing shards is therefore compared with its checksums.

        Raises:
            CacheDamagedError: with the first missing shard, or if the record of such a part is damaged.
        """
        names = (*self._header.per_view, *SAMPLE_ARRAYS)
        stored = {key for name in names for key in self._folder.sizes(f"{name}/c")}
        missing = [
            (part, name, keys)
            for part in self.committed()
            for name in self._header.arrays_of(part)
            if (keys := [key for key in self._shards(name, part) if key not in stored])
        ]
        records = {record.part: record for record in self.records(sorted({part for part, *_ in missing}))}
        lost = [
            key
            for part, name, keys in missing
            if not self._was_not_written(name, part, records[part])
            for key in keys
        ]
        if lost:
            raise CacheDamagedError(
                f"{len(lost)} stored files of the cache {self._folder.url} are missing, the first is "
                f"{lost[0]}: copy the complete cache, or run rpp-cache verify and rpp-cache build"
            )

    def _was_not_written(self, name: str, part: int, record: PartRecord) -> bool:
        """Return whether a part's array is as recorded although shards of it are missing."""
        try:
            return self._is_as_recorded(name, part, record)
        except MemoryError:  # a forged header can describe a part of any size
            return False

    @cached_property
    def _expected_metadata(self) -> dict[str, bytes]:
        """`zarr.json` of each array, by the array's name."""
        return {key.removesuffix(f"/{GROUP}"): text for key, text in array_metadata(self._header).items()}

    def withdraw(self, part: int) -> None:
        """Rename a part's record, so that the next build computes the part again."""
        key = record_key(part)
        self._folder.write(key.replace(".json", ".damaged"), self._folder.read(key))
        self._folder.remove(key)

    def bytes_per_view(self) -> float:
        """Return the stored bytes of all that grows with the number of samples, per committed view."""
        header = self._header
        spans = [(header.rows(part), len(header.views_of(part))) for part in self.committed()]
        views: int = sum((rows.stop - rows.start) * views for rows, views in spans)
        if not views:
            return 0.0
        sizes = self._folder.sizes()
        grows = (PARTS, *(f"{name}/c" for name in (*header.per_view, *SAMPLE_ARRAYS)))
        prefixes = tuple(f"{name}/" for name in grows)
        size = float(sum(size for key, size in sizes.items() if key.startswith(prefixes)))
        return size / views + float(sizes.get(SAMPLES, 0)) / (header.samples * header.views)
