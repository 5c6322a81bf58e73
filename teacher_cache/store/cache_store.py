"""A cache as one Zarr v3 group: created, opened, repaired, extended and locked.

Layout (docs/format.md): arrays whose first axis is the sample row, sharded by part, and `parts/NNNNNN.json`
(both in `parts.py`); one group a vocabulary; `samples.parquet`.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from teacher_cache.classes.vocabulary import Vocabulary
from teacher_cache.errors import CacheBusyError, CacheDamagedError, UsageError
from teacher_cache.files.places import place_of
from teacher_cache.images.table import SampleTable
from teacher_cache.store.checksums import file_checksum
from teacher_cache.store.folder import Folder
from teacher_cache.store.header import SAMPLE_ARRAYS, CacheHeader
from teacher_cache.store.header_objects import header_is_intact, header_objects, read_header
from teacher_cache.store.layout import array_metadata, group_metadata, same_metadata
from teacher_cache.store.local_folder import LocalFolder
from teacher_cache.store.lock import LOCK, build_lock
from teacher_cache.store.parts import StoredParts
from teacher_cache.store.pixels import StoredPixels
from teacher_cache.store.presence import GROUP, HEADER_COPY
from teacher_cache.store.remote_folder import RemoteFolder
from teacher_cache.store.samples import SAMPLES, StoredSamples, write_samples
from teacher_cache.store.vocabularies import VOCABULARIES, Vocabularies


class CacheStore:
    """An open cache.

    Attributes:
        folder: where it is stored.
        header: what it was created from.
        samples_checksum: checksum of `samples.parquet`.
        parts: its per-sample arrays and their records.
    """

    def __init__(
        self, folder: Folder, header: CacheHeader, samples_checksum: str, writable: bool = False
    ) -> None:
        self.folder = folder
        self._writable = writable
        self._vocabularies = Vocabularies(folder)
        self._samples: StoredSamples | None = None
        self._set_header(header, samples_checksum)

    def _set_header(self, header: CacheHeader, samples_checksum: str) -> None:
        self.header, self.samples_checksum = header, samples_checksum
        self.parts = StoredParts(self.folder, header, self._writable)

    @property
    def pixels(self) -> StoredPixels:
        """Its rendered views."""
        return self.parts.pixels

    @property
    def path(self) -> str:
        """Path or URL as the user gave it."""
        return self.folder.url

    @classmethod
    def exists(cls, path: str | os.PathLike[str]) -> bool:
        """Return whether a cache, possibly damaged or incomplete, is at this place."""
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
        lock: bool = True,
    ) -> "CacheStore":
        """Create a cache without parts. It appears under `path` complete or not at all.

        Args:
            lock: whether to lock a cache in an object store meanwhile.

        Raises:
            UsageError: the place is occupied or cannot be written.
            CacheBusyError: another build is creating it.
        """
        folder = folder_at(path)
        present = set(folder.entries())
        if isinstance(folder, LocalFolder):
            if present or (folder.root.exists() and not folder.root.is_dir()):
                raise UsageError(f"{path} exists and is not a cache; choose another --out")
            try:
                with folder.create_atomically() as created:
                    _write_new(created, header, samples, vocabulary, class_features)
            except FileExistsError as error:
                raise CacheBusyError(f"another build has just created {path}") from error
        else:
            # Object stores cannot rename. Without group metadata there is no cache: an interrupted creation
            # is repeated.
            if present - {VOCABULARIES, SAMPLES, LOCK, *SAMPLE_ARRAYS, *header.per_view}:
                raise UsageError(f"{path} exists and is not a cache; choose another --out")
            with build_lock(folder, lock):
                _write_new(folder, header, samples, vocabulary, class_features)
        return cls.open(path, writable=True)

    @classmethod
    def open(cls, path: str | os.PathLike[str], writable: bool = False) -> "CacheStore":
        """Open a cache. Only its header is read.

        Raises:
            UsageError: no cache there, or a cache of another format.
            CacheDamagedError: neither its header nor the copy of it is readable.
        """
        folder = folder_at(path)
        return cls(folder, *read_header(folder), writable)

    @property
    def samples(self) -> StoredSamples:
        """The sample table, in row order. Rows are read on access; `samples_are_intact` compares all of them
        with the checksum.

        Raises:
            CacheDamagedError: it is missing or not readable.
        """
        if self._samples is None:
            what = f"{self.path}/{SAMPLES}"
            found = StoredSamples.open(self.folder, self.header.sample_table_digest)
            if len(found) != self.header.samples:
                raise CacheDamagedError(
                    f"{what} has {len(found):,} rows, the header {self.header.samples:,} samples"
                )
            self._samples = found
        return self._samples

    def samples_are_intact(self) -> bool:
        """Return whether `samples.parquet` is, to the last byte, what was written."""
        try:
            return file_checksum(self.folder.open(SAMPLES)) == self.samples_checksum
        except (OSError, CacheDamagedError):
            return False

    def locate_images(self, samples: SampleTable, images: str) -> None:
        """Record where the images are now, if they moved since the cache was created or its table is damaged.

        Args:
            samples: the cache's samples, equal by their digest.
            images: the source that they were found in.
        """
        with suppress(CacheDamagedError):
            if self.samples_are_intact() and self.samples.same_as(samples):
                return
        # The header is written first: while it does not match the table, the next build repeats this.
        with self.folder.writing(SAMPLES) as file:
            written = write_samples(samples, file)
            self._write_header(replace(self.header, images=images), written)
        self._samples = None

    def _write_header(self, header: CacheHeader, samples_checksum: str) -> None:
        for key, content in header_objects(header, samples_checksum).items():
            self.folder.write(key, content)
        self._set_header(header, samples_checksum)

    # Metadata that follow from the header

    def _metadata(self) -> dict[str, bytes]:
        """Return the expected metadata objects by key, without the header's."""
        return {f"{VOCABULARIES}/{GROUP}": group_metadata({}), **array_metadata(self.header)}

    def damaged_metadata(self) -> list[str]:
        """Return the keys of the metadata objects that do not agree with the header."""

        def is_intact(key: str, expected: bytes) -> bool:
            try:
                return same_metadata(self.folder.read(key), expected)
            except (FileNotFoundError, NotADirectoryError, CacheDamagedError):
                return False

        header = self.header, self.samples_checksum
        damaged = [k for k in (GROUP, HEADER_COPY) if not header_is_intact(self.folder, k, *header)]
        return damaged + [key for key, expected in self._metadata().items() if not is_intact(key, expected)]

    def repair_metadata(self) -> list[str]:
        """Write damaged metadata objects again; return their keys."""
        damaged = self.damaged_metadata()
        expected = {**header_objects(self.header, self.samples_checksum), **self._metadata()}
        for key in damaged:
            self.folder.write(key, expected[key])
        self._set_header(self.header, self.samples_checksum)  # open arrays have the metadata of before
        return damaged

    def add_views(self, views: int) -> None:
        """Add a pass up to `views` views; its parts are then missing.

        If the process dies in between, the cache is unchanged, or `repair_metadata` resizes its arrays.
        """
        self._write_header(self.header.extended(views), self.samples_checksum)
        self.repair_metadata()

    # Vocabularies

    def add_vocabulary(self, name: str, vocabulary: Vocabulary, features_CD: NDArray[np.float32]) -> None:
        """Write a vocabulary and its unit class features; replaces one of the same name."""
        self._vocabularies.write(name, vocabulary, features_CD)

    def vocabulary_names(self) -> list[str]:
        """Return the names of the vocabularies, the default one first.

        Raises:
            CacheDamagedError: the default vocabulary is missing.
        """
        found, default = self._vocabularies.names(), self.header.vocabulary
        if default not in found:
            raise CacheDamagedError(f"the vocabulary '{default}' is missing in {self.path}")
        return [default, *(name for name in found if name != default)]

    def vocabulary(self, name: str | None = None) -> Vocabulary:
        """Return a vocabulary of this cache; the default one if None.

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
        """Return the unit class features of a vocabulary, [C, D] float32.

        Raises:
            CacheDamagedError: they are missing or not readable.
        """
        return self._vocabularies.class_features(name or self.header.vocabulary, self.header.embedding)

    def damaged_vocabularies(self) -> list[str]:
        """Return the names of damaged vocabularies, and the default one's if it is missing."""
        names = sorted({self.header.vocabulary, *self._vocabularies.names()})
        return [name for name in names if not self.vocabulary_is_intact(name)]

    def vocabulary_is_intact(self, name: str) -> bool:
        """Return whether a vocabulary exists and is what was written."""
        default = self.header.vocabulary_digest if name == self.header.vocabulary else None
        return self._vocabularies.is_intact(name, self.header.embedding, default)

    @contextmanager
    def locked(self, lock: bool = True) -> Iterator[None]:
        """Lock the cache for one build. The lock ends with the process, or expires where there are no locks.

        Args:
            lock: if false, only read what another build may have changed.

        Raises:
            CacheBusyError: another build has locked it.
        """
        with build_lock(self.folder, lock):
            # another build may have changed it
            self._set_header(*read_header(self.folder))
            if lock:
                self.pixels.remove_leftovers()
            yield


def folder_at(place: str | os.PathLike[str]) -> Folder:
    """Return the folder of a path or URL; it need not exist.

    Raises:
        UsageError: a URL with an unknown protocol.
    """
    url = place_of(place)
    return RemoteFolder(url) if "://" in url else LocalFolder(url)


def _write_new(
    folder: Folder,
    header: CacheHeader,
    samples: SampleTable,
    vocabulary: Vocabulary,
    features_CD: NDArray[np.float32],
) -> None:
    """Write a new cache without parts; the group's metadata are last and make it a cache."""
    for key, content in array_metadata(header).items():
        folder.write(key, content)
    folder.write(f"{VOCABULARIES}/{GROUP}", group_metadata({}))
    Vocabularies(folder).write(header.vocabulary, vocabulary, features_CD)
    with folder.writing(SAMPLES) as file:
        written = write_samples(samples, file)
    for key, content in header_objects(header, written).items():
        folder.write(key, content)
