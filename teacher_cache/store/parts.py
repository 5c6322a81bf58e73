"""The parts of a cache: its per-sample arrays and one record a part, which is written last.

A part without its record does not exist. Which rows and views a part has is the header's business; sample
table, vocabularies and metadata are `cache_store.py`'s.
"""

import json
import time
from functools import cached_property
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from teacher_cache.errors import CacheDamagedError
from teacher_cache.store.checksums import CODEC_ERRORS, checksum
from teacher_cache.store.folder import Folder
from teacher_cache.store.header import SAMPLE_ARRAYS, CacheHeader
from teacher_cache.store.layout import GROUP, array_metadata
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
            CacheDamagedError: it is not there.
        """
        if name not in self._arrays:
            try:
                self._arrays[name] = zarr.open_array(self._zarr, path=name, mode=self._mode, zarr_format=3)
            except FileNotFoundError as error:
                raise CacheDamagedError(f"the array '{name}' is missing in {self.path}") from error
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise CacheDamagedError(f"{self.path}/{name}/zarr.json is not readable: {error}") from error
        return self._arrays[name]

    def committed(self) -> list[int]:
        """Parts that are complete, ascending."""
        parts = [recorded_part(name) for name in self.folder.names(PARTS)]
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

    def records(self) -> list[PartRecord]:
        """The records of all committed parts, read together.

        Raises:
            CacheDamagedError: one is not what was written.
        """
        keys = [record_key(part) for part in self.committed()]
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
            values = np.asarray(self._expected_array(name)[self._region(name, part)])
        # A shard that was cut or overwritten fails in the codec in as many ways as there are codecs.
        except (OSError, *CODEC_ERRORS):
            return False
        return checksum(values) == record.checksums.get(name)

    def read(self, name: str, selection: Any) -> NDArray[Any]:
        """Values of a stored array, selected as zarr does.

        Raises:
            CacheDamagedError: they are not readable.
        """
        array = self.array(name)
        try:
            return np.asarray(array[selection])
        except CODEC_ERRORS as error:
            raise CacheDamagedError(
                f"'{name}' in {self.path} is not readable ({error}); rpp-cache verify finds the part, build "
                "computes it again"
            ) from error

    def absent_shards(self) -> list[str]:
        """Keys of the shards of committed parts that are gone: zarr would read them as the fill value.

        A shard that is nothing else zarr does not write, as where no image of a part could be read.

        Raises:
            CacheDamagedError: the record of a part with such shards is not what was written.
        """
        there = {key for name in self.header.per_view for key in self.folder.sizes(f"{name}/c")}
        gone = []
        for part in self.committed():
            for name in self.header.per_view:
                absent = [key for key in self._shards(name, part) if key not in there]
                if absent and not self._is_as_recorded(name, part, self.record(part)):
                    gone += absent
        return gone

    @cached_property
    def _expected_metadata(self) -> dict[str, Any]:
        return {key: json.loads(content) for key, content in array_metadata(self.header).items()}

    def _expected_array(self, name: str) -> zarr.Array[Any]:
        """An array by what its metadata should be: damage of them is no damage of parts."""
        place = zarr.storage.StorePath(self._zarr, name)
        return zarr.Array(zarr.AsyncArray(self._expected_metadata[f"{name}/{GROUP}"], place))

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
