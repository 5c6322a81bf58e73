"""Samples joined with what the teacher said of them: the batches of a run, by step number.

The join is by row. Which rows a step has is the order's business (`order.py`), reading is the readers' and
the pixel workers'; what is read next is read while the batch before is used.

Shapes: B samples of the step in this process, D embedding, H, W image size.
"""

from collections import deque
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from itertools import groupby, islice
from queue import SimpleQueue
from threading import Thread
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from student_train.data.order import Order, select_rows, subset_classes
from student_train.data.pixels import PixelWorkers, ShownViews
from student_train.data.readers import LoadedWindow, StoredArrays, make_reader
from student_train.data.settings import ClassSubset, ReaderName
from teacher_cache.errors import UsageError
from teacher_cache.images import SampleTable, index_images
from teacher_cache.softlabels import TeacherCache

__all__ = ["Batch", "ClassSubset", "Join", "locate_images", "select_rows", "subset_classes"]

# With two of them neither side waits for the other to wake up.
BATCHES_AHEAD = 2

Item = TypeVar("Item")
Arrays = dict[str, dict[str, Tensor]]  # by source and name


@dataclass(frozen=True)
class Batch:
    """One step's samples, or those of them that are this process's.

    Attributes:
        rows, views: [B] int64, where they stand in the cache.
        labels: [B] int64 hard labels in the cache's vocabulary, -1 = none.
        step_labels: [B of all processes] int64, those of the whole step.
        teacher: what the cache's encoding stored of each view, [B, ...] by array name; empty where a run
            has no use for it.
        student_features: [B, D'] unit features of the student's own image tower (feature mode).
        pixels: [B, 3, H, W] uint8 (image mode).
    """

    rows: NDArray[np.int64]
    views: NDArray[np.int64]
    labels: Tensor
    step_labels: Tensor
    teacher: dict[str, Tensor]
    student_features: Tensor | None = None
    pixels: Tensor | None = None

    @property
    def share(self) -> float:
        """This process's share of the step's samples."""
        return len(self.labels) / len(self.step_labels)

    @property
    def labelled_share(self) -> float:
        """This process's share of the step's samples that have a label."""
        return int((self.labels >= 0).sum()) / max(1, int((self.step_labels >= 0).sum()))


class Join:
    """Batches of one run, by step number."""

    def __init__(
        self,
        cache: TeacherCache,
        rows: NDArray[np.int64],
        batch_size: int,
        seed: int,
        *,
        soft_labels: bool = True,
        student_features: TeacherCache | None = None,
        pixels: PixelWorkers | None = None,
        reader: ReaderName = "auto",
        device: torch.device = torch.device("cpu"),
        rank: int = 0,
        ranks: int = 1,
        ranks_here: int = 1,
    ) -> None:
        """Args:
        cache: what the teacher said.
        rows: of the run, ascending.
        batch_size: samples a step, of all processes.
        seed: of the order.
        soft_labels: whether batches need what the teacher said.
        student_features: feature mode: a cache of the student's own features.
        pixels: image mode: who reads and decodes.
        reader: how stored arrays are read.
        device: where they are wanted.
        rank, ranks: which share of each step is this process's.
        ranks_here: processes on this machine.

        Raises:
            UsageError: fewer samples a step than processes.
        """
        self.cache, self.rows = cache, rows
        self.batch_size = min(batch_size, len(rows))
        if self.batch_size < ranks:
            raise UsageError(f"a step of {self.batch_size} samples cannot be shared by {ranks} processes")
        self.steps_per_epoch = len(rows) // self.batch_size
        self.order = Order(rows, cache.num_views, seed)
        self._own = slice(self.batch_size * rank // ranks, self.batch_size * (rank + 1) // ranks)
        self._pixels = pixels

        encoding_arrays = tuple(cache.encoding.arrays(cache.header.embedding, cache.header.classes))
        sources = {}
        if soft_labels or student_features is cache:
            sources["teacher"] = StoredArrays(cache, encoding_arrays)
        if student_features is not None and student_features is not cache:
            header = student_features.header
            names = student_features.encoding.arrays(header.embedding, header.classes)
            sources["student"] = StoredArrays(student_features, tuple(names))
        if pixels is not None:
            sources["crops"] = StoredArrays(cache, ("crops",))
        self._student_features = student_features
        self._soft_labels = soft_labels
        self._sources = list(sources)
        self.reader = make_reader(
            reader, list(sources.values()), rows, cache.num_views, device, processes=ranks_here
        )

    def batches(self, first_step: int, last_step: int) -> Generator[Batch, None, None]:
        """Batches of steps first_step .. last_step - 1, each read while the one before is used; to be closed.

        Raises:
            RppError: an image that the teacher could read cannot be read now, or is another one.
        """
        joined = self._joined(first_step, last_step)
        if self._pixels is not None:
            return _ahead(self._with_pixels(joined, self._pixels), BATCHES_AHEAD)
        return _ahead((batch for batch, _ in joined), BATCHES_AHEAD)

    def samples_of(self, step: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows and views of a step, of all processes."""
        epoch, number = divmod(step, self.steps_per_epoch)
        return self.order.samples(epoch, number * self.batch_size, (number + 1) * self.batch_size)

    def _own_pieces(self, step: int) -> Iterator[tuple[tuple[int, int], slice]]:
        """Where this process's samples of a step are: (epoch, window), and which of the window's samples."""
        epoch, number = divmod(step, self.steps_per_epoch)
        start = number * self.batch_size
        for window, samples in self.order.pieces(epoch, start + self._own.start, start + self._own.stop):
            yield (epoch, window), samples

    def _windows(self, first_step: int, last_step: int) -> Iterator[LoadedWindow]:
        """Each window that the steps need, once."""
        keys = (key for step in range(first_step, last_step) for key, _ in self._own_pieces(step))
        for (epoch, number), _ in groupby(keys):
            yield self.reader.load(self.order.window(epoch, number))

    def _joined(self, first_step: int, last_step: int) -> Iterator[tuple[Batch, Arrays]]:
        """Each step's batch, still without pixels, and what was read for it by source."""
        windows = _ahead(self._windows(first_step, last_step))
        at: tuple[int, int] | None = None
        for step in range(first_step, last_step):
            parts = []
            for key, samples in self._own_pieces(step):
                if key != at:
                    at, loaded = key, next(windows)
                parts.append(loaded.take(samples))
            stored = dict(zip(self._sources, map(_joined_arrays, zip(*parts, strict=True)), strict=True))
            yield self._batch(step, stored), stored

    def _batch(self, step: int, stored: Arrays) -> Batch:
        rows, views = self.samples_of(step)
        step_labels = torch.from_numpy(self.cache.labels[rows].astype(np.int64))
        features = None
        if self._student_features is not None:
            source = "student" if "student" in stored else "teacher"
            features = self._student_features.encoding.image_features(stored[source])
        return Batch(
            rows[self._own],
            views[self._own],
            step_labels[self._own],
            step_labels,
            teacher=stored["teacher"] if self._soft_labels else {},
            student_features=features,
        )

    def _with_pixels(self, joined: Iterator[tuple[Batch, Arrays]], pixels: PixelWorkers) -> Iterator[Batch]:
        waiting: deque[Batch] = deque()  # the workers are some batches ahead

        def shown() -> Iterator[ShownViews]:
            for batch, stored in joined:
                waiting.append(batch)
                crops = stored["crops"]["crops"].numpy().astype(np.uint16)
                yield ShownViews(batch.rows, batch.views, crops)

        for decoded in pixels.decode(shown(), self._own.stop - self._own.start):
            yield replace(waiting.popleft(), pixels=decoded)


def _joined_arrays(parts: tuple[dict[str, Tensor], ...]) -> dict[str, Tensor]:
    if len(parts) == 1:
        return parts[0]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _ahead(items: Iterator[Item], number: int = 1) -> Generator[Item, None, None]:
    """The same items; so many of them are made, in a thread, while the one before is used.

    One plain thread for all of them. Worker processes are forked in it, and from a thread of an executor they
    could not end without an error (Python's executors join all of theirs at the end, and so themselves); in a
    thread for each item torch would start its own threads anew each time.
    """
    wanted: SimpleQueue[bool] = SimpleQueue()
    made: SimpleQueue[list[Item] | BaseException] = SimpleQueue()

    def make() -> None:
        while wanted.get():
            try:
                made.put(list(islice(items, 1)))
            except BaseException as error:  # raised where the item is wanted
                made.put(error)

    thread = Thread(target=make, daemon=True)
    thread.start()
    for _ in range(number):
        wanted.put(True)
    try:
        while item := made.get():
            if isinstance(item, BaseException):
                raise item
            wanted.put(True)
            yield item[0]
    finally:
        wanted.put(False)
        thread.join()


def locate_images(cache: TeacherCache, images: str | None) -> SampleTable:
    """Where the images of a cache lie: where it found them, or under another source that has the same ones.

    Raises:
        UsageError: the other source has other samples.
    """
    if images is None:
        return cache.samples
    samples, _ = index_images(images, cache.vocabulary)
    if samples.digest != cache.header.sample_table_digest:
        ours = cache.samples.keys(slice(0, 1))
        raise UsageError(
            f"'{images}' does not hold the samples of the cache {cache.path}: {len(samples)} samples, first "
            f"'{samples.keys(slice(0, 1))[0]}', against {len(cache)}, first '{ours[0]}' (keys, sizes, labels "
            "and their order must be equal)"
        )
    return samples
