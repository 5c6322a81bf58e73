"""Samples joined with what the teacher said of them, in a shuffled order that resumes by arithmetic.

Knows which rows a run trains on, in which order, which view of each, and how their pixels or features are
read. The order is a function of (seed, epoch) alone: step k needs no state of step k - 1.

Shapes: B batch, N rows of the run, D embedding, H, W image size.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from teacher_cache.errors import RppError, UsageError
from teacher_cache.images import ImageReader, SampleTable, UnreadableImageError, decode_image, index_images
from teacher_cache.softlabels import TeacherCache
from teacher_cache.store import CHUNK_ROWS
from teacher_cache.views import ViewRenderer

ClassSubset = Literal["all", "base", "new"]

WINDOW_BLOCKS = 64  # blocks of the cache whose rows are shuffled among each other and read together


def subset_classes(num_classes: int, subset: ClassSubset) -> NDArray[np.int64]:
    """Class indices of a subset: `base` is the first half (rounded up) and `new` the rest, as in CoOp."""
    half = -(-num_classes // 2)
    bounds = {"all": (0, num_classes), "base": (0, half), "new": (half, num_classes)}
    return np.arange(*bounds[subset], dtype=np.int64)


def select_rows(
    labels: NDArray[np.int32],
    valid: NDArray[np.bool_],
    num_classes: int,
    subset: ClassSubset = "all",
    shots: int | None = None,
    seed: int = 0,
) -> NDArray[np.int64]:
    """Rows that a run trains on, ascending.

    Args:
        labels: hard labels, [N] int32, -1 = none.
        valid: whether the image could be read, [N].
        subset: rows of these classes only; rows without a hard label belong to `all` alone.
        shots: at most this many rows a class, drawn by the seed; rows without a hard label are left out.

    Raises:
        UsageError: nothing is left.
    """
    rows = np.flatnonzero(valid)
    if subset != "all":
        rows = rows[np.isin(labels[rows], subset_classes(num_classes, subset))]
    if shots is not None:
        rows = rows[labels[rows] >= 0]
        drawn = np.random.default_rng([seed, 0]).permutation(rows)
        drawn = drawn[np.argsort(labels[drawn], kind="stable")]
        sorted_labels = labels[drawn]
        starts = np.searchsorted(sorted_labels, sorted_labels)  # where the row's class begins
        rows = np.sort(drawn[np.arange(len(drawn)) - starts < shots])
    if len(rows) == 0:
        raise UsageError(f"no sample to train on (class subset '{subset}', shots {shots})")
    return rows


def epoch_order(
    rows: NDArray[np.int64], seed: int, epoch: int, window_blocks: int = WINDOW_BLOCKS
) -> NDArray[np.int64]:
    """All rows once, shuffled: blocks of the cache in random order, rows mixed within windows of blocks.

    Reading a window then touches few blocks, each once, whole.
    """
    random = np.random.default_rng([seed, 1, epoch])
    blocks = rows // CHUNK_ROWS
    present = np.unique(blocks)
    window_of_block = np.empty(int(present[-1]) + 1, dtype=np.int64)
    window_of_block[random.permutation(present)] = np.arange(len(present)) // window_blocks
    # One sort: by window, and at random within it.
    return rows[np.lexsort((random.random(len(rows)), window_of_block[blocks]))]


@dataclass(frozen=True)
class Batch:
    """One step's samples.

    Attributes:
        rows, views: [B] int64, where they stand in the cache.
        labels: [B] int64 hard labels in the cache's vocabulary, -1 = none.
        teacher: what the cache's encoding stored of each view, [B, ...] by array name.
        student_features: [B, D'] float16 unit features of the student's own image tower (feature mode).
        pixels: [B, 3, H, W] uint8 (image mode).
    """

    rows: NDArray[np.int64]
    views: NDArray[np.int64]
    labels: Tensor
    teacher: dict[str, Tensor]
    student_features: Tensor | None
    pixels: Tensor | None


class Join:
    """Batches of one run, by step number."""

    def __init__(
        self,
        cache: TeacherCache,
        rows: NDArray[np.int64],
        batch_size: int,
        seed: int,
        *,
        renderer: ViewRenderer | None = None,
        samples: SampleTable | None = None,
        student_features: TeacherCache | None = None,
        threads: int = 4,
    ) -> None:
        """Image mode with `renderer` (`samples` then says where the images lie now, if not where the cache
        found them); feature mode with `student_features`."""
        self.cache, self.rows, self.seed = cache, rows, seed
        self.batch_size = min(batch_size, len(rows))
        self.steps_per_epoch = len(rows) // self.batch_size
        self._renderer, self._student_features = renderer, student_features
        self._samples = samples if samples is not None else cache.samples if renderer else None
        self._labels = torch.from_numpy(cache.labels.astype(np.int64))
        self._reader, self._threads = ImageReader(), threads

    def batches(self, first_step: int, last_step: int) -> Iterator[Batch]:
        """Batches of steps first_step .. last_step - 1, each read while the one before is used.

        Raises:
            RppError: an image that the teacher could read cannot be read now.
        """
        with ThreadPoolExecutor(self._threads) as pool, ThreadPoolExecutor(1) as ahead:
            windows = _Windows(self)
            following: Future[Batch] | None = None
            for step in range(first_step, last_step):
                current = following or ahead.submit(self._batch, step, windows, pool)
                following = None
                batch = current.result()
                if step + 1 < last_step:
                    following = ahead.submit(self._batch, step + 1, windows, pool)
                yield batch

    def _epoch(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows and their views in the order of the epoch."""
        order = epoch_order(self.rows, self.seed, epoch)
        random = np.random.default_rng([self.seed, 2, epoch])
        return order, random.integers(0, self.cache.num_views, size=len(order))

    def _batch(self, step: int, windows: "_Windows", pool: ThreadPoolExecutor) -> Batch:
        rows, views, teacher, student = windows.read(step)
        pixels = None
        if self._renderer is not None and self._samples is not None:
            crops = np.empty((len(rows), 5), dtype=np.uint16)
            for view in np.unique(views):
                crops[views == view] = self.cache.crops(rows[views == view], int(view))
            pixels = read_pixels(self._samples, rows, views, crops, self._renderer, self._reader, pool.map)
        return Batch(rows, views, self._labels[rows], teacher, student, pixels)


class _Windows:
    """Features of the rows of many steps, read together: every block of the cache once a window."""

    def __init__(self, join: Join) -> None:
        self._join = join
        self._epoch = self._first = self._last = -1

    def read(
        self, step: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], dict[str, Tensor], Tensor | None]:
        join = self._join
        epoch, k = divmod(step, join.steps_per_epoch)
        if epoch != self._epoch:
            self._order, self._views = join._epoch(epoch)
            self._epoch, self._last = epoch, -1
        start, stop = k * join.batch_size, (k + 1) * join.batch_size
        if not (self._first <= start and stop <= self._last):
            batches = max(1, WINDOW_BLOCKS * CHUNK_ROWS // join.batch_size)
            self._first, self._last = start, min(start + batches * join.batch_size, len(self._order))
            self._teacher = self._stored(join.cache)
            other = join._student_features
            stored = self._teacher if other is None or other is join.cache else self._stored(other)
            self._student = None if other is None else other.encoding.image_features(stored)
        here, at = slice(start, stop), slice(start - self._first, stop - self._first)
        teacher = {name: values[at] for name, values in self._teacher.items()}
        student = None if self._student is None else self._student[at]
        return self._order[here], self._views[here], teacher, student

    def _stored(self, cache: TeacherCache) -> dict[str, Tensor]:
        """What the encoding stored of every row of the window, in the epoch's order."""
        rows, views = self._order[self._first : self._last], self._views[self._first : self._last]
        window: dict[str, Tensor] = {}
        for view in np.unique(views):
            chosen = views == view
            for name, values in cache.stored(rows[chosen], int(view)).items():
                whole = window.setdefault(name, values.new_empty((len(rows), *values.shape[1:])))
                whole[torch.from_numpy(chosen)] = values
        return window


def read_pixels(
    samples: SampleTable,
    rows: NDArray[np.int64],
    views: NDArray[np.int64],
    crops: NDArray[np.uint16],
    renderer: ViewRenderer,
    reader: ImageReader,
    map_over: Callable[..., Iterator[Tensor]],
) -> Tensor:
    """Pixels of the given views of the given rows, [B, 3, H, W] uint8: the crops that the teacher saw.

    Args:
        map_over: `map`, or a thread pool's.

    Raises:
        RppError: an image cannot be read.
    """

    def pixels(key: str, location: tuple[str, int, int], view: int, crop: NDArray[np.uint16]) -> Tensor:
        try:
            image = decode_image(reader.read(*location))
        except (UnreadableImageError, RppError) as error:
            raise RppError(
                f"{key} in {location[0]} cannot be read now, though the teacher could: {error}; if the "
                "images moved, say where with --images"
            ) from error
        return torch.from_numpy(renderer.render(image, view, crop))

    shown = map_over(pixels, samples.keys(rows), samples.locations(rows), views.tolist(), crops)
    return torch.stack(list(shown))


def locate_images(cache: TeacherCache, images: str | None) -> SampleTable:
    """Where the images of a cache lie: where it found them, or under another source that has the same ones.

    Raises:
        UsageError: the other source has other samples.
    """
    if images is None:
        return cache.samples
    samples, _ = index_images(images, cache.vocabulary)
    if samples.digest != cache.header.sample_table_digest:
        ours: Sequence[str] = cache.samples.keys(slice(0, 1))
        raise UsageError(
            f"'{images}' does not hold the samples of the cache {cache.path}: {len(samples)} samples, first "
            f"'{samples.keys(slice(0, 1))[0]}', against {len(cache)}, first '{ours[0]}' (keys, sizes, labels "
            "and their order must be equal)"
        )
    return samples
