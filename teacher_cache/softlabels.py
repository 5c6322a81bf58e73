"""Teacher logits and soft labels from a finished cache.

Selects rows and views and checks what is read; the encoding decodes the stored arrays.

Shapes: B rows, C classes (C' a subset of them), D embedding.
"""

import os
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from teacher_cache.classes.vocabulary import Vocabulary
from teacher_cache.encodings import ClassHead, Encoding, encoding_of
from teacher_cache.errors import CacheDamagedError, UsageError
from teacher_cache.images.table import SampleTable
from teacher_cache.indices import Indices, as_index, as_indices, as_number
from teacher_cache.store.cache_store import CacheStore
from teacher_cache.store.header import CHUNK_ROWS, CacheHeader

PIECE_ROWS = 256  # rows whose logits are in memory at a time: 22 MB with 21,841 classes
SIGNED = {"uint16": "int32", "uint32": "int64"}
Rows = Indices


class TeacherCache:
    """A finished cache, read only, in one of its vocabularies. `len(cache)` is the number of samples.

    While views are added, `num_views` counts those that every sample has.
    """

    def __init__(self, store: CacheStore, vocabulary: str | None = None) -> None:
        self.store = store
        self.vocabulary_name = vocabulary or store.header.vocabulary
        self.num_views = store.parts.finished_views()
        if not self.num_views:
            raise UsageError(
                f"the cache {store.path} is not complete: {len(store.parts.missing())} of "
                f"{store.header.parts} parts are missing; run rpp-cache build again to resume it"
            )
        store.parts.require_all_shards()
        self._compared = set[tuple[str, int]]()  # (array, part) pairs whose zeros are as recorded
        if vocabulary is not None and vocabulary not in store.vocabulary_names():
            store.vocabulary(vocabulary)  # raises, with the names of those that exist

    def __len__(self) -> int:
        return self.store.header.samples

    @property
    def path(self) -> str:
        """Path or URL of the cache."""
        return self.store.path

    @property
    def header(self) -> CacheHeader:
        """What the cache was created from."""
        return self.store.header

    @property
    def teacher(self) -> dict[str, Any]:
        """Model, weights, preprocessing, logit scale and precision of the teacher."""
        return self.store.header.teacher

    @property
    def logit_scale(self) -> float:
        """The factor s of the teacher logits."""
        return float(self.teacher["logit_scale"])

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The vocabulary that labels and logits index."""
        return self.store.vocabulary(self.vocabulary_name)

    @cached_property
    def class_features(self) -> Tensor:
        """Unit class features of the vocabulary, [C, D] float32."""
        return torch.from_numpy(self.store.class_features(self.vocabulary_name))

    @property
    def samples(self) -> SampleTable:
        """Keys, places and labels of the samples."""
        return self.store.samples

    @cached_property
    def labels(self) -> NDArray[np.int32]:
        """Hard labels in the vocabulary, [N]; -1 = none.

        They are stored in the vocabulary of the build. In another one, a label is the class with the same id.
        """
        stored = self._sample_arrays["labels"]
        if len(stored) and not (stored.min() >= -1 and stored.max() < self.header.classes):
            raise CacheDamagedError(
                f"the labels of {self.path} are outside its {self.header.classes} classes; rpp-cache verify "
                "finds the part, rpp-cache build computes it again"
            )
        if self.vocabulary_name == self.header.vocabulary:
            return stored
        there = np.append(self.store.vocabulary().classes_in(self.vocabulary), np.int32(-1))
        return np.asarray(there[stored])

    @cached_property
    def valid(self) -> NDArray[np.bool_]:
        """Whether each sample's image could be read, [N]."""
        return self._sample_arrays["valid"]

    @cached_property
    def _sample_arrays(self) -> dict[str, NDArray[Any]]:
        return self.store.parts.sample_arrays(range(self.header.parts_per_pass))

    @cached_property
    def encoding(self) -> Encoding:
        """The encoding of the stored logits."""
        return encoding_of(self.header.encoding)

    @cached_property
    def head(self) -> ClassHead:
        """Class features of the vocabulary and logit scale, on the CPU."""
        return ClassHead(self.class_features, self.logit_scale)

    @property
    def keeps_image_features(self) -> bool:
        """Whether the encoding keeps the teacher's image features."""
        return self.encoding.keeps_image_features

    def require_view(self, view: int) -> int:
        """Return a view's number as an int if the cache has the view.

        Raises:
            UsageError: the cache does not have it.
        """
        return as_index(view, self.num_views, "view", "the cache, which has views")

    def stored(self, rows: Rows, view: int = 0) -> dict[str, Tensor]:
        """Return the encoding's arrays as stored, each [B, ...]; `encoding.logits` decodes them.

        Unsigned integers become the next larger signed type: torch supports few operations on uint16.
        """
        names = self.encoding.arrays(self.header.embedding, self.header.classes)
        arrays = {name: self._read(name, rows, view) for name in names}
        return {
            name: torch.from_numpy(values.astype(SIGNED.get(values.dtype.name, values.dtype), copy=False))
            for name, values in arrays.items()
        }

    def stored_pieces(self, rows: Rows, view: int = 0) -> Iterator[tuple[slice, dict[str, Tensor]]]:
        """Read the arrays of `stored` once and yield pieces of them with their places in `rows`. All logits
        of a piece fit in memory."""
        stored = self.stored(rows, view)
        for first in range(0, len(next(iter(stored.values()))), PIECE_ROWS):
            at = slice(first, first + PIECE_ROWS)
            yield at, {name: values[at] for name, values in stored.items()}

    def image_features(self, rows: Rows, view: int = 0) -> Tensor:
        """Return the teacher's unit image features, [B, D] float16.

        Raises:
            UsageError: the encoding does not keep them.
        """
        if not self.keeps_image_features:
            raise UsageError(f"the encoding '{self.encoding.name}' of {self.path} keeps no image features")
        return self.encoding.image_features(self.stored(rows, view))

    def crops(self, rows: Rows, view: int = 0) -> NDArray[np.uint16]:
        """Return the stored crops, [B, 5] uint16; see `views.py` for their meaning."""
        return self._read("crops", rows, view)

    def logits(self, rows: Rows, view: int = 0, classes: Indices | None = None) -> Tensor:
        """Return teacher logits of the given rows, [B, C'] float32. With `topk`, their softmax at
        temperature 1 is the soft label.

        Args:
            rows: sample rows in any order: an integer, slice or range, or a list, array or tensor of
                integers or of a boolean for each sample.
            view: number of the view.
            classes: class indices, as `rows`; all classes if None.

        Raises:
            UsageError: a row, view or class that the cache does not have, or an empty list of classes.
        """
        return self._logits(rows, view, classes, temperature=1.0)

    def soft_labels(
        self, rows: Rows, temperature: float = 1.0, view: int = 0, classes: Indices | None = None
    ) -> Tensor:
        """Return softmax(z / T) over the requested classes, [B, C'] float32; each row sums to 1.

        Raises:
            UsageError: a temperature that is not above zero or outside the encoding's range, a class that is
                requested twice, and as `logits`.
        """
        temperature = as_number(temperature, "temperature")
        self.encoding.require_temperature(temperature)
        if classes is not None:
            classes = self._classes(classes, distinct=True)
        return torch.softmax(self._logits(rows, view, classes, temperature) / temperature, dim=-1)

    def _logits(self, rows: Rows, view: int, classes: Indices | None, temperature: float) -> Tensor:
        chosen = None if classes is None else torch.from_numpy(self._classes(classes))
        return self.finite(self.encoding.logits(self.stored(rows, view), self.head, temperature, chosen))

    def _classes(self, wanted: Indices, distinct: bool = False) -> NDArray[np.int64]:
        size = len(self.class_features)
        found = as_indices(wanted, size, "classes", "a vocabulary", "classes", distinct)
        if len(found) == 0:
            raise UsageError(
                f"classes [] requested from a vocabulary of {size} classes: expected at least one index, or "
                "None for all"
            )
        return found

    def finite(self, logits: Tensor) -> Tensor:
        """Return the logits if all are finite.

        Raises:
            CacheDamagedError: some are infinite or NaN.
        """
        if not logits.isfinite().all():
            raise CacheDamagedError(
                f"the stored features or logits of {self.path} are not finite; run rpp-cache verify: if it "
                "finds no damage, build with another --precision"
            )
        return logits

    def require_filled(self, name: str, rows: NDArray[np.int64], view: int, values: NDArray[Any]) -> None:
        """Refuse a hole in a stored file, which reads as zeros, in rows whose image could be read.

        Some arrays have such rows, for example `topk_logits` with one class. A part with zeros is therefore
        compared with its checksum, once.

        Args:
            values: values of a per-view array for these rows, [len(rows), ...], contiguous.

        Raises:
            CacheDamagedError: the part is not what was written.
        """
        if len(rows) == 0:
            return
        bytes_BX = values.reshape(len(rows), -1).view(np.uint8)
        zero = np.flatnonzero(bytes_BX[:, 0] == 0)  # cheap: one byte a row
        zero = rows[zero[~bytes_BX[zero].any(axis=1)]]
        if len(zero) == 0:
            return
        for part in np.unique(self.header.part_of(zero[self.valid[zero]], view)).tolist():
            if (name, part) not in self._compared:
                self.store.parts.require_as_recorded(name, part)
                self._compared.add((name, part))

    def _read(self, name: str, rows: Rows, view: int) -> NDArray[Any]:
        """Return rows of a per-view array; each chunk is read once."""
        view = self.require_view(view)
        wanted = as_indices(rows, len(self))
        array = self.store.parts.array(name)
        result = np.empty((len(wanted), *array.shape[2:]), dtype=array.dtype)
        blocks = wanted // CHUNK_ROWS
        for block in np.unique(blocks):
            here = blocks == block
            start = int(block) * CHUNK_ROWS
            chunk = self.store.parts.read(name, (slice(start, start + CHUNK_ROWS), view))
            result[here] = chunk[wanted[here] - start]
        self.require_filled(name, wanted, view, result)
        return result


def open_cache(path: str | os.PathLike[str], vocabulary: str | None = None) -> TeacherCache:
    """Open a finished cache for reading.

    Args:
        path: a path, or a URL that fsspec knows (`s3://bucket/zarr`).
        vocabulary: name of one that `rpp-cache relabel` added; the build's if None.

    Raises:
        UsageError: no cache there, an unfinished cache, another format, or no such vocabulary.
    """
    return TeacherCache(CacheStore.open(path), vocabulary)
