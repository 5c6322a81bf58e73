"""The cache as one Zarr v3 group: created, opened, extended, committed by parts.

Layout (docs/format.md): arrays whose first axis is the sample row, sharded by part; one group a vocabulary;
`samples.parquet`; `parts/NNNNNN.json`, written last. A part without its JSON does not exist.
"""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from teacher_cache.errors import CacheBusyError, CacheDamagedError, UsageError
from teacher_cache.images import SampleTable
from teacher_cache.store.checksums import CODEC_ERRORS, checksum, file_checksum
from teacher_cache.store.folder import Folder, LocalFolder, folder_at
from teacher_cache.store.header import SAMPLE_ARRAYS, CacheHeader
from teacher_cache.store.header_objects import HEADER_COPY, header_objects, read_header
from teacher_cache.store.layout import (
    GROUP,
    array_metadata,
    group_metadata,
    same_metadata,
)
from teacher_cache.store.lock import LOCK, build_lock
from teacher_cache.store.records import PARTS, PartRecord, record_key, recorded_part
from teacher_cache.store.samples import SAMPLES, StoredSamples, write_samples
from teacher_cache.store.vocabularies import VOCABULARIES, Vocabularies
from teacher_cache.vocabulary import Vocabulary


class CacheStore:
    """An open cache: its header, arrays and part records."""

    def __init__(
        self, folder: Folder, header: CacheHeader, samples_checksum: str, writable: bool = False
    ) -> None:
        self.folder = folder
        self.header = header
        self.samples_checksum = samples_checksum
        self._vocabularies = Vocabularies(folder)
        self._zarr = folder.zarr_store(writable)
        self._mode = "r+" if writable else "r"
        self._arrays: dict[str, zarr.Array[Any]] = {}

    @property
    def path(self) -> str:
        """Path or URL, as it was named."""
        return self.folder.url

    @classmethod
    def exists(cls, path: str | os.PathLike[str]) -> bool:
        """Whether a cache, however damaged, was begun there."""
        folder = folder_at(path)
        return folder.exists(GROUP) or folder.exists(HEADER_COPY)

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        header: CacheHeader,
        samples: SampleTable,
        vocabulary: Vocabulary,
        class_features: NDArray[np.float32],
    ) -> "CacheStore":
        """Lay out a new cache: all but the parts. It appears under `path` complete or not at all.

        Raises:
            UsageError: something else is there, or nothing can be written there.
            CacheBusyError: another build is creating it.
        """
        folder = folder_at(path)
        begun = set(folder.names())
        if isinstance(folder, LocalFolder):
            if begun or (folder.root.exists() and not folder.root.is_dir()):
                raise UsageError(f"{path} exists and is no cache; choose another --out")
            try:
                with folder.made_at_once() as made:
                    _lay_out(made, header, samples, vocabulary, class_features)
            except FileExistsError as error:
                raise CacheBusyError(f"another build has just begun {path}") from error
        else:
            # Without a rename: what has no group metadata is no cache, and a creation that was cut is redone.
            if begun - {VOCABULARIES, SAMPLES, LOCK, *SAMPLE_ARRAYS, *header.per_view}:
                raise UsageError(f"{path} exists and is no cache; choose another --out")
            with build_lock(folder):
                _lay_out(folder, header, samples, vocabulary, class_features)
        return cls.open(path, writable=True)

    @classmethod
    def open(cls, path: str | os.PathLike[str], writable: bool = False) -> "CacheStore":
        """Open a cache: one small object is read.

        Raises:
            UsageError: no cache there, or one of another format.
            CacheDamagedError: neither its header nor the copy of it is readable.
        """
        folder = folder_at(path)
        return cls(folder, *read_header(folder), writable)

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

    @cached_property
    def samples(self) -> StoredSamples:
        """The sample table, in row order; rows are read when they are asked for. Whether they still are what
        the header says, `samples_are_sound` tells.

        Raises:
            CacheDamagedError: it is missing or not readable.
        """
        try:
            return StoredSamples(self.folder.open(SAMPLES), self.header.sample_table_digest)
        except (OSError, ValueError) as error:
            raise CacheDamagedError(f"{self.path}/{SAMPLES} is not readable: {error}") from error

    def samples_are_sound(self) -> bool:
        """Whether `samples.parquet` is, to the last byte, what was written."""
        try:
            return file_checksum(self.folder.open(SAMPLES)) == self.samples_checksum
        except (OSError, ValueError):
            return False

    def locate_images(self, samples: SampleTable, images: str) -> None:
        """Record where the images lie now, if they moved since the cache was begun or its table is damaged.

        Args:
            samples: the same samples as the cache's, by their digest.
            images: the source that they were found in.
        """
        with suppress(CacheDamagedError):
            if self.samples_are_sound() and self.samples.same_as(samples):
                return
        # The header goes first: while the table differs from its checksum, the next build comes here again.
        with self.folder.writing(SAMPLES) as file:
            written = write_samples(samples, file)
            self._write_header(replace(self.header, images=images), written)
        self.__dict__.pop("samples", None)

    def _write_header(self, header: CacheHeader, samples_checksum: str) -> None:
        for key, content in header_objects(header, samples_checksum).items():
            self.folder.write(key, content)
        self.header, self.samples_checksum = header, samples_checksum

    # What is a function of the header

    def _metadata(self) -> dict[str, bytes]:
        """The metadata objects by key, as they should be."""
        return {
            **header_objects(self.header, self.samples_checksum),
            f"{VOCABULARIES}/{GROUP}": group_metadata({}),
            **array_metadata(self.header),
        }

    def damaged_metadata(self) -> list[str]:
        """Keys of the metadata objects that are not what the header says."""

        def sound(key: str, expected: bytes) -> bool:
            try:
                return same_metadata(self.folder.read(key), expected)
            except (FileNotFoundError, NotADirectoryError):
                return False

        return [key for key, expected in self._metadata().items() if not sound(key, expected)]

    def mend_metadata(self) -> list[str]:
        """Write the damaged of them again; returns their keys."""
        damaged, expected = self.damaged_metadata(), self._metadata()
        for key in damaged:
            self.folder.write(key, expected[key])
        self._arrays.clear()
        return damaged

    def add_views(self, views: int) -> None:
        """Add a pass that brings the number of views to `views`; its parts are then missing.

        A kill in between leaves the finished cache, or one whose arrays are resized by `mend_metadata`.
        """
        self._write_header(self.header.extended(views), self.samples_checksum)
        self.mend_metadata()

    # Vocabularies

    def add_vocabulary(self, name: str, vocabulary: Vocabulary, features_CD: NDArray[np.float32]) -> None:
        """Write a vocabulary with its unit class features; one of that name is replaced."""
        self._vocabularies.write(name, vocabulary, features_CD)

    def vocabulary_names(self) -> list[str]:
        """Names of the vocabularies in this cache, the default one first.

        Raises:
            CacheDamagedError: there is none.
        """
        found, default = self._vocabularies.names(), self.header.vocabulary
        if default not in found:
            raise CacheDamagedError(f"the vocabulary '{default}' is missing in {self.path}")
        return [default, *(name for name in found if name != default)]

    def vocabulary(self, name: str | None = None) -> Vocabulary:
        """A vocabulary of this cache; the default one without a name.

        Raises:
            UsageError: no vocabulary of that name.
            CacheDamagedError: it is not readable.
        """
        try:
            return self._vocabularies.read(name or self.header.vocabulary)[0]
        except (FileNotFoundError, NotADirectoryError) as error:
            known = ", ".join(self.vocabulary_names())
            raise UsageError(f"the cache {self.path} has no vocabulary '{name}', only {known}") from error

    def class_features(self, name: str | None = None) -> NDArray[np.float32]:
        """Unit class features of a vocabulary, [C, D] float32.

        Raises:
            CacheDamagedError: they are not there, or not readable.
        """
        return self._vocabularies.class_features(name or self.header.vocabulary)

    def damaged_vocabularies(self) -> list[str]:
        """Names of those that are not what was written, the default one also if it is gone."""
        names = sorted({self.header.vocabulary, *self._vocabularies.names()})
        return [name for name in names if not self.vocabulary_is_sound(name)]

    def vocabulary_is_sound(self, name: str) -> bool:
        """Whether a vocabulary is there, and what was written."""
        default = self.header.vocabulary_digest if name == self.header.vocabulary else None
        return self._vocabularies.is_sound(name, self.header.embedding, default)

    # Parts

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
            return all(
                checksum(np.asarray(self._expected_array(name)[self._region(name, part)])) == expected
                for name, expected in record.checksums.items()
            )
        # A shard that was cut or overwritten fails in the codec in as many ways as there are codecs.
        except (CacheDamagedError, OSError, *CODEC_ERRORS):
            return False

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
        """Keys of the shards of committed parts that are not there: zarr would read them as zeros."""
        header = self.header
        there = {key for name in header.per_view for key in self.folder.sizes(f"{name}/c")}
        return [
            key
            for part in self.committed()
            for name in header.per_view
            for key in self._shards(name, part)
            if key not in there
        ]

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

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the cache for one build; the lock dies with the process, in an object store soon after.

        Raises:
            CacheBusyError: another build holds it.
        """
        with build_lock(self.folder):
            self.header, self.samples_checksum = read_header(
                self.folder
            )  # who held it before may have changed it
            yield


def _lay_out(
    folder: Folder,
    header: CacheHeader,
    samples: SampleTable,
    vocabulary: Vocabulary,
    features_CD: NDArray[np.float32],
) -> None:
    """Write all of a new cache but its parts; the group's metadata last, which make it a cache."""
    for key, content in array_metadata(header).items():
        folder.write(key, content)
    folder.write(f"{VOCABULARIES}/{GROUP}", group_metadata({}))
    Vocabularies(folder).write(header.vocabulary, vocabulary, features_CD)
    with folder.writing(SAMPLES) as file:
        written = write_samples(samples, file)
    for key, content in header_objects(header, written).items():
        folder.write(key, content)
