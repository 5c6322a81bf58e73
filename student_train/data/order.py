"""The rows of a cache that a run trains on, their order, and the view of each.

The order depends only on (seed, epoch) and has no state: step k of a resumed run equals step k of an
uninterrupted one. Blocks of the cache in random order are split into windows, and rows are shuffled within a
window, so that a reader of a window reads each of its blocks once.
"""

from bisect import bisect_right
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from student_train.data.settings import ClassSubset
from teacher_cache.errors import UsageError
from teacher_cache.store.header import CHUNK_ROWS

# Rows that are shuffled together, and kept in memory by a reader of blocks (256 MB of features at D = 512).
# Sources are often sorted by class: this many rows mix some 400 classes of ImageNet-21K.
WINDOW_ROWS = 1 << 18
# A small cache is split into about this many blocks, so that its batches mix rows and views.
FEWEST_BLOCKS = 64


def subset_classes(num_classes: int, subset: ClassSubset) -> NDArray[np.int64]:
    """Return the classes of a subset, int64: `base` is the first half (rounded up), `new` the rest (CoOp)."""
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
    """Return the rows that a run trains on, ascending, int64.

    Args:
        labels: hard labels, [N] int32, -1 = none.
        num_classes: number of classes.
        valid: whether the image could be read, [N].
        subset: only rows of these classes; rows without a hard label belong only to `all`.
        shots: at most this many rows per class, drawn by the seed, without rows that have no hard label.

    Raises:
        UsageError: no row is left.
    """
    rows = np.flatnonzero(valid)
    if subset != "all":
        rows = rows[np.isin(labels[rows], subset_classes(num_classes, subset))]
    if shots is not None:
        rows = rows[labels[rows] >= 0]
        drawn = np.random.default_rng([seed, 0]).permutation(rows)
        drawn = drawn[np.argsort(labels[drawn], kind="stable")]
        sorted_labels = labels[drawn]
        starts = np.searchsorted(sorted_labels, sorted_labels)  # where the row's class starts
        rows = np.sort(drawn[np.arange(len(drawn)) - starts < shots])
    if len(rows) == 0:
        raise UsageError(f"no sample to train on (class subset '{subset}', shots {shots})")
    return rows


@dataclass(frozen=True)
class Window:
    """A part of an epoch's samples that is read together; n samples.

    Attributes:
        positions: indices into the run's rows, [n], in the order of reading: by view, then ascending.
        views: the view of each, [n], in the same order.
        shuffled: the order of training, [n]: the window's sample i is positions[shuffled[i]].
    """

    positions: NDArray[np.int64]
    views: NDArray[np.int64]
    shuffled: NDArray[np.int64]


class Order:
    """The order of a run's rows in every epoch."""

    def __init__(
        self, rows: NDArray[np.int64], views: int, seed: int, window_rows: int = WINDOW_ROWS
    ) -> None:
        """Args:
        rows: the run's rows of the cache, ascending, [N].
        views: number of views; a block has one of them in an epoch, and the next one in the next epoch.
        seed: seed of the order.
        window_rows: about how many rows a window has.
        """
        self.rows, self._views, self._seed, self._window_rows = rows, views, seed, window_rows
        blocks = rows // min(CHUNK_ROWS, -(-len(rows) // FEWEST_BLOCKS))
        self._begins = np.flatnonzero(np.diff(blocks, prepend=-1))
        self._lengths = np.diff(self._begins, append=len(rows))
        self._first_views = np.random.default_rng([seed, 2]).integers(0, views, len(self._begins))
        # each step uses the same epoch and one of few windows
        self._epoch = lru_cache(maxsize=2)(self._make_epoch)
        self.window = lru_cache(maxsize=4)(self._make_window)

    def pieces(self, epoch: int, start: int, stop: int) -> list[tuple[int, slice]]:
        """Return where samples start .. stop - 1 of an epoch are: numbers of windows and slices of them."""
        bounds = self._epoch(epoch)[2]
        number, pieces = bisect_right(bounds, start) - 1, []
        while bounds[number] < stop:
            begin, end = bounds[number], bounds[number + 1]
            pieces.append((number, slice(max(start - begin, 0), min(stop, end) - begin)))
            number += 1
        return pieces

    def samples(self, epoch: int, start: int, stop: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return rows and views of samples start .. stop - 1 of an epoch, each [stop - start]."""
        rows, views = [], []
        for number, samples in self.pieces(epoch, start, stop):
            window = self.window(epoch, number)
            index = window.shuffled[samples]
            rows.append(self.rows[window.positions[index]])
            views.append(window.views[index])
        return np.concatenate(rows), np.concatenate(views)

    def _make_epoch(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64], list[int]]:
        """Return the blocks in the epoch's order, and each window's first block and first sample; behind the
        latter, the number of samples."""
        blocks = np.random.default_rng([self._seed, 1, epoch]).permutation(len(self._begins))
        starts = np.cumsum(self._lengths[blocks]) - self._lengths[blocks]
        first_blocks = np.flatnonzero(np.diff(starts // self._window_rows, prepend=-1))
        return blocks, first_blocks, [*starts[first_blocks].tolist(), len(self.rows)]

    def _make_window(self, epoch: int, number: int) -> Window:
        blocks, first_blocks, _ = self._epoch(epoch)
        bounds = np.append(first_blocks, len(blocks))
        own = blocks[bounds[number] : bounds[number + 1]]
        views = (self._first_views[own] + epoch) % self._views
        by_view = np.lexsort((own, views))
        own, views = own[by_view], views[by_view]
        lengths = self._lengths[own]
        ends = np.cumsum(lengths)
        positions = np.arange(ends[-1]) + np.repeat(self._begins[own] - ends + lengths, lengths)
        shuffled = np.random.default_rng([self._seed, 3, epoch, number]).permutation(len(positions))
        return Window(positions, np.repeat(views, lengths), shuffled)
