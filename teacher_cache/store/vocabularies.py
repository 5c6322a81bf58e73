"""The vocabularies of a cache: names, ids and templates as attributes of a group, and class features."""

import json

import numpy as np
import zarr
from numpy.typing import NDArray

from teacher_cache.classes.vocabulary import Vocabulary
from teacher_cache.compat.zarr import read
from teacher_cache.errors import CacheDamagedError
from teacher_cache.files.json_text import parse_json
from teacher_cache.store.checksums import CODEC_ERRORS, bytes_checksum, checksum, sealed, unsealed
from teacher_cache.store.folder import Folder
from teacher_cache.store.layout import group_metadata, objects_in_memory, same_metadata
from teacher_cache.store.presence import GROUP

VOCABULARIES = "vocabularies"
FEATURES = "class_features"


def vocabulary_digest(vocabulary: Vocabulary) -> str:
    """Digest of names, ids and templates."""
    return bytes_checksum(json.dumps(vocabulary.to_json(), ensure_ascii=False).encode())


class Vocabularies:
    """Those in one folder. One whose group metadata are missing does not exist."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder

    def names(self) -> list[str]:
        """Names of those that exist, ascending."""
        found = self._folder.names(VOCABULARIES)
        return [name for name in found if self._folder.exists(f"{VOCABULARIES}/{name}/{GROUP}")]

    def write(self, name: str, vocabulary: Vocabulary, features_CD: NDArray[np.float32]) -> None:
        """Write one, its group metadata last; what is there under that name ceases to exist first."""
        attributes = sealed({**vocabulary.to_json(), FEATURES: checksum(features_CD)})
        self._folder.remove(f"{VOCABULARIES}/{name}/{GROUP}")
        for key, content in _feature_objects(features_CD).items():
            self._folder.write(f"{VOCABULARIES}/{name}/{key}", content)
        self._folder.write(f"{VOCABULARIES}/{name}/{GROUP}", group_metadata(attributes))

    def read(self, name: str) -> tuple[Vocabulary, str]:
        """One of them, and the checksum of its class features.

        Raises:
            FileNotFoundError: it does not exist.
            CacheDamagedError: it is not what was written.
        """
        key = f"{VOCABULARIES}/{name}/{GROUP}"
        what = f"{self._folder.url}/{key}"
        try:
            record = unsealed(parse_json(self._folder.read(key))["attributes"], what)
            return Vocabulary.from_json(record), str(record[FEATURES])
        except (ValueError, KeyError, TypeError) as error:
            raise CacheDamagedError(f"{what} is not readable: {error}") from error

    def class_features(self, name: str, embedding: int) -> NDArray[np.float32]:
        """Unit class features, [C, D] float32.

        Args:
            embedding: D, as the header has it.

        Raises:
            FileNotFoundError: the vocabulary does not exist.
            CacheDamagedError: they are not there, or not what was written.
        """
        vocabulary, expected = self.read(name)
        path = f"{VOCABULARIES}/{name}/{FEATURES}"
        try:
            if not same_metadata(self._folder.read(f"{path}/{GROUP}"), _metadata(len(vocabulary), embedding)):
                raise ValueError(f"its {GROUP} is not what was written")
            array = zarr.open_array(self._folder.zarr_store(writable=False), path=path, mode="r")
            features_CD = read(array, slice(None)).astype(np.float32, copy=False)
        except (FileNotFoundError, *CODEC_ERRORS) as error:
            raise CacheDamagedError(f"{self._folder.url}/{path} is not readable: {error}") from error
        if checksum(features_CD) != expected:
            raise CacheDamagedError(
                f"{self._folder.url}/{path} is not what was written; rpp-cache verify says how it is mended"
            )
        if not np.isfinite(features_CD).all():
            raise CacheDamagedError(f"{self._folder.url}/{path} holds class features that are not finite")
        return features_CD

    def is_sound(self, name: str, embedding: int, digest: str | None = None) -> bool:
        """Whether one exists and is what was written.

        Args:
            embedding: D of its class features.
            digest: what its `vocabulary_digest` has to be, if that is known.
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
    """What the metadata of class features have to mean."""
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
