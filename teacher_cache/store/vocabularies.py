"""The vocabularies of a cache: names, ids and templates as attributes, and class features."""

import json

import numpy as np
import zarr
from numpy.typing import NDArray

from teacher_cache.classes.vocabulary import Vocabulary
from teacher_cache.compat.zarr import read
from teacher_cache.errors import CacheDamagedError
from teacher_cache.files.json_text import parse_json
from teacher_cache.store.checksums import bytes_checksum, checksum, with_checksum, without_checksum
from teacher_cache.store.folder import Folder
from teacher_cache.store.layout import group_metadata, objects_in_memory, same_metadata
from teacher_cache.store.presence import GROUP

VOCABULARIES = "vocabularies"
FEATURES = "class_features"


def vocabulary_digest(vocabulary: Vocabulary) -> str:
    """Return a digest of names, ids and templates."""
    return bytes_checksum(json.dumps(vocabulary.to_json(), ensure_ascii=False).encode())


class Vocabularies:
    """The vocabularies in a cache's folder. One without group metadata does not exist."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder

    def names(self) -> list[str]:
        """Return the names of the vocabularies, ascending."""
        found = sorted(self._folder.entries(VOCABULARIES))
        return [name for name in found if self._folder.exists(f"{VOCABULARIES}/{name}/{GROUP}")]

    def write(self, name: str, vocabulary: Vocabulary, features_CD: NDArray[np.float32]) -> None:
        """Write a vocabulary, its group metadata last. One of the same name is removed first."""
        attributes = with_checksum({**vocabulary.to_json(), FEATURES: checksum(features_CD)})
        self._folder.remove(f"{VOCABULARIES}/{name}/{GROUP}")
        for key, content in _feature_objects(features_CD).items():
            self._folder.write(f"{VOCABULARIES}/{name}/{key}", content)
        self._folder.write(f"{VOCABULARIES}/{name}/{GROUP}", group_metadata(attributes))

    def read(self, name: str) -> tuple[Vocabulary, str]:
        """Return a vocabulary and the checksum of its class features.

        Raises:
            FileNotFoundError: it does not exist.
            CacheDamagedError: it is not what was written.
        """
        key = f"{VOCABULARIES}/{name}/{GROUP}"
        what = f"{self._folder.url}/{key}"
        try:
            metadata = parse_json(self._folder.read(key))
            record = without_checksum(
                metadata.get("attributes") if isinstance(metadata, dict) else None, what
            )
            return Vocabulary.from_json(record), str(record[FEATURES])
        except (ValueError, KeyError) as error:
            raise CacheDamagedError(f"{what} is not readable: {error}") from error

    def class_features(self, name: str, embedding: int) -> NDArray[np.float32]:
        """Return the unit class features, [C, D] float32.

        Args:
            embedding: D of the header.

        Raises:
            FileNotFoundError: the vocabulary does not exist.
            CacheDamagedError: the features are missing or not what was written.
        """
        vocabulary, expected = self.read(name)
        path = f"{VOCABULARIES}/{name}/{FEATURES}"
        what = f"{self._folder.url}/{path}"
        try:
            metadata = self._folder.read(f"{path}/{GROUP}")
        except (FileNotFoundError, NotADirectoryError) as error:
            raise CacheDamagedError(f"{what} is not readable: {error}") from error
        if not same_metadata(metadata, _metadata(len(vocabulary), embedding)):
            raise CacheDamagedError(f"{what} is not readable: its {GROUP} is not what was written")
        array = zarr.open_array(self._folder.zarr_store(writable=False), path=path, mode="r")
        try:
            features_CD = read(array, slice(None)).astype(np.float32, copy=False)
        except ValueError as error:
            raise CacheDamagedError(f"{what} is not readable: {error}") from error
        if checksum(features_CD) != expected:
            raise CacheDamagedError(f"{what} is not what was written; rpp-cache verify names the remedy")
        if not np.isfinite(features_CD).all():
            raise CacheDamagedError(f"{what} has class features that are not finite")
        return features_CD

    def is_intact(self, name: str, embedding: int, digest: str | None = None) -> bool:
        """Return whether a vocabulary exists and is what was written.

        Args:
            embedding: D of its class features.
            digest: its `vocabulary_digest`, if known.
        """
        try:
            vocabulary, _ = self.read(name)
            if digest not in (None, vocabulary_digest(vocabulary)):
                return False
            self.class_features(name, embedding)
            return True
        except (CacheDamagedError, FileNotFoundError, NotADirectoryError):
            return False


def _metadata(classes: int, embedding: int) -> bytes:
    """Return the expected metadata of class features."""
    return _feature_objects(np.zeros((classes, embedding), np.float32))[f"{FEATURES}/{GROUP}"]


def _feature_objects(features_CD: NDArray[np.float32]) -> dict[str, bytes]:
    def lay_out(group: zarr.Group) -> None:
        array = group.create_array(
            FEATURES,
            shape=features_CD.shape,
            dtype="float32",
            chunks=features_CD.shape,
            compressors=None,
            dimension_names=("class", "feature"),
        )
        array[:] = features_CD

    return objects_in_memory(lay_out)
