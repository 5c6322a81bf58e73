"""The cache as one Zarr v3 group: created, opened, extended, held by one build.

Layout (docs/format.md): arrays whose first axis is the sample row, sharded by part, and `parts/NNNNNN.json`
(both in `parts.py`); one group a vocabulary; `samples.parquet`.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from teacher_cache.classes.vocabulary import Vocabulary
from teacher_cache.errors import CacheBusyError, CacheDamagedError, UsageError
from teacher_cache.images import SampleTable
from teacher_cache.store.checksums import file_checksum
from teacher_cache.store.folder import Folder
from teacher_cache.store.header import SAMPLE_ARRAYS, CacheHeader
from teacher_cache.store.header_objects import header_is_intact, header_objects, read_header
from teacher_cache.store.layout import (
    array_metadata,
    group_metadata,
    same_metadata,
)
from teacher_cache.store.local_folder import LocalFolder
from teacher_cache.store.lock import LOCK, build_lock
from teacher_cache.store.parts import StoredParts
from teacher_cache.store.places import folder_at
from teacher_cache.store.presence import GROUP, HEADER_COPY
from teacher_cache.store.samples import DAMAGE, SAMPLES, StoredSamples, write_samples
from teacher_cache.store.vocabularies import VOCABULARIES, Vocabularies


class CacheStore(StoredParts):
    """An open cache: its header, sample table and vocabularies, and its parts."""

    def __init__(
        self, folder: Folder, header: CacheHeader, samples_checksum: str, writable: bool = False
    ) -> None:
        super().__init__(folder, header, writable)
        self.samples_checksum = samples_checksum
        self._vocabularies = Vocabularies(folder)

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
            UsageError: no cache there, or a cache of another format.
            CacheDamagedError: neither its header nor the copy of it is readable.
        """
        folder = folder_at(path)
        header, samples_checksum = read_header(folder)
        return cls(folder, header, samples_checksum, writable)

    @cached_property
    def samples(self) -> StoredSamples:
        """The sample table, in row order; rows are read when they are asked for. Whether they still are what
        the header says, `samples_are_sound` tells.

        Raises:
            CacheDamagedError: it is missing or not readable.
        """
        what = f"{self.path}/{SAMPLES}"
        try:
            found = StoredSamples(self.folder.open(SAMPLES), self.header.sample_table_digest, what)
        except DAMAGE as error:
            raise CacheDamagedError(f"{what} is not readable: {error}") from error
        if len(found) != self.header.samples:
            raise CacheDamagedError(
                f"{self.path}/{SAMPLES} has {len(found):,} rows, the header {self.header.samples:,} samples"
            )
        return found

    def samples_are_sound(self) -> bool:
        """Whether `samples.parquet` is, to the last byte, what was written."""
        try:
            return file_checksum(self.folder.open(SAMPLES)) == self.samples_checksum
        except (OSError, ValueError, CacheDamagedError):
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
        self.__dict__.pop("_expected_metadata", None)

    # What is a function of the header

    def _metadata(self) -> dict[str, bytes]:
        """Return the expected metadata objects by key, without the header's."""
        return {
            f"{VOCABULARIES}/{GROUP}": group_metadata({}),
            **array_metadata(self.header),
        }

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

    def mend_metadata(self) -> list[str]:
        """Write the damaged of them again; returns their keys."""
        damaged = self.damaged_metadata()
        expected = {**header_objects(self.header, self.samples_checksum), **self._metadata()}
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
        return self._vocabularies.class_features(name or self.header.vocabulary, self.header.embedding)

    def damaged_vocabularies(self) -> list[str]:
        """Names of those that are not what was written, the default one also if it is gone."""
        names = sorted({self.header.vocabulary, *self._vocabularies.names()})
        return [name for name in names if not self.vocabulary_is_sound(name)]

    def vocabulary_is_sound(self, name: str) -> bool:
        """Whether a vocabulary is there, and what was written."""
        default = self.header.vocabulary_digest if name == self.header.vocabulary else None
        return self._vocabularies.is_sound(name, self.header.embedding, default)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the cache for one build; the lock dies with the process, in an object store soon after.

        Raises:
            CacheBusyError: another build holds it.
        """
        with build_lock(self.folder):
            # who held it before may have changed it
            self.header, self.samples_checksum = read_header(self.folder)
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
