"""Join samples with the teacher's soft labels: the batches of a run, by step number.

The join is by row. `order.py` chooses the rows of a step; readers and pixel workers read them while the batch
before is used.

Shapes: B samples of the step in this process, D embedding, H, W image size.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import groupby, islice
from queue import SimpleQueue
from threading import Thread
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from student_train.data.order import Order
from student_train.data.pixels import PixelWorkers, ViewRequests
from student_train.data.readers import LoadedWindow, StoredArrays, make_reader
from student_train.data.settings import ReaderName
from teacher_cache.errors import UsageError
from teacher_cache.images.index import index_images
from teacher_cache.images.table import SampleTable
from teacher_cache.softlabels import TeacherCache

# With two, neither side waits for the other thread to wake up.
BATCHES_AHEAD = 2

Item = TypeVar("Item")
Arrays = dict[str, dict[str, Tensor]]  # [B, ...] by source and name


@dataclass(frozen=True)
class Batch:
    """This process's samples of a step.

    Attributes:
        rows, views: [B] int64, their places in the cache.
        labels: [B] int64 hard labels in the cache's vocabulary, -1 = none.
        step_labels: [B of all processes] int64 labels of the complete step.
        teacher: arrays of the cache's encoding for each view, [B, ...] by name; empty if the run does not
            use them.
        student_features: [B, D'] unit features of the student's own image tower (feature mode).
        pixels: [B, 3, H, W] uint8 (image mode).
        prepared: what `prepare` of `Join.batches` returned for it.
    """

    rows: NDArray[np.int64]
    views: NDArray[np.int64]
    labels: Tensor
    step_labels: Tensor
    teacher: dict[str, Tensor]
    student_features: Tensor | None = None
    pixels: Tensor | None = None
    prepared: Any = None

    def tensors(self) -> dict[str, Tensor]:
        """Return what a step computes with: the teacher's arrays, features and pixels, by name."""
        optional = {"student_features": self.student_features, "pixels": self.pixels}
        arrays = {f"teacher.{name}": values for name, values in self.teacher.items()}
        return arrays | {name: values for name, values in optional.items() if values is not None}

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> "Batch":
        """Return the batch with copies of these tensors."""
        return replace(
            self,
            teacher={name: tensors[f"teacher.{name}"] for name in self.teacher},
            student_features=tensors.get("student_features"),
            pixels=tensors.get("pixels"),
        )

    @property
    def share(self) -> float:
        """This process's share of the step's samples."""
        return len(self.labels) / len(self.step_labels)

    @property
    def labelled_share(self) -> float:
        """This process's share of the step's labelled samples."""
        return _labelled(self.labels) / max(1, _labelled(self.step_labels))


def _labelled(labels: Tensor) -> int:
    return int(np.count_nonzero(labels.numpy() >= 0))


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
        cache: the teacher's cache.
        rows: rows of the run, ascending, [N] int64.
        batch_size: samples per step, of all processes.
        seed: seed of the order.
        soft_labels: whether batches have the teacher's arrays.
        student_features: in feature mode, a cache of the student's own features.
        pixels: in image mode, the workers that read and decode.
        reader: how stored arrays are read.
        device: device of the stored arrays.
        rank, ranks: number of this process, and of processes.
        ranks_here: processes on this machine.

        Raises:
            UsageError: a step has fewer samples than there are processes.
        """
        self.cache, self.rows = cache, rows
        self.batch_size = min(batch_size, len(rows))
        if self.batch_size < ranks:
            raise UsageError(f"a step of {self.batch_size} samples cannot be shared by {ranks} processes")
        self.steps_per_epoch = len(rows) // self.batch_size
        self.order = Order(rows, cache.num_views, seed)
        self._own = slice(self.batch_size * rank // ranks, self.batch_size * (rank + 1) // ranks)
        self._pixels = pixels

        sources = {}
        if soft_labels or student_features is cache:
            sources["teacher"] = _encoded(cache)
        if student_features is not None and student_features is not cache:
            sources["student"] = _encoded(student_features)
        if pixels is not None:
            sources["crops"] = StoredArrays(cache, ("crops",))
        self._student_features = student_features
        self._soft_labels = soft_labels
        self._sources = list(sources)
        self.reader = make_reader(
            reader, list(sources.values()), rows, cache.num_views, device, processes=ranks_here
        )

    @property
    def mode(self) -> str:
        """Where image features come from: `features` (a cache; no image is read) or `images`."""
        return "images" if self._student_features is None else "features"

    @property
    def pixels(self) -> str | None:
        """Where pixels come from: `originals`, or the codec of the rendered views; None if none are read."""
        return None if self._pixels is None else self._pixels.codec or "originals"

    def batches(
        self, first_step: int, last_step: int, prepare: Callable[[Batch, int], Any] | None = None
    ) -> Generator[Batch, None, None]:
        """Yield the batches of steps first_step .. last_step - 1, each read while the one before is used.

        The caller closes the generator.

        Args:
            prepare: computes more for a batch and its step, in the thread that makes the batches.

        Raises:
            RppError: an image that the teacher read cannot be read now, or is a different one.
        """
        joined = self._joined(first_step, last_step)
        if self._pixels is not None:
            batches = self._with_pixels(joined, self._pixels)
        else:
            batches = (batch for batch, _ in joined)
        if prepare is not None:
            batches = (
                replace(batch, prepared=prepare(batch, step))
                for step, batch in enumerate(batches, first_step)
            )
        return _ahead(batches, BATCHES_AHEAD)

    def step_samples(self, step: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return rows and views of a step, of all processes, each [B of all processes] int64."""
        epoch, number = divmod(step, self.steps_per_epoch)
        return self.order.samples(epoch, number * self.batch_size, (number + 1) * self.batch_size)

    def _own_pieces(self, step: int) -> Iterator[tuple[tuple[int, int], slice]]:
        """Yield where this process's samples of a step are: (epoch, window), and a slice of its samples."""
        epoch, number = divmod(step, self.steps_per_epoch)
        start = number * self.batch_size
        for window, samples in self.order.pieces(epoch, start + self._own.start, start + self._own.stop):
            yield (epoch, window), samples

    def _windows(self, first_step: int, last_step: int) -> Iterator[LoadedWindow]:
        """Load each window that the steps need once."""
        keys = (key for step in range(first_step, last_step) for key, _ in self._own_pieces(step))
        for (epoch, number), _ in groupby(keys):
            window = self.order.window(epoch, number)
            if self._pixels is not None:
                self._pixels.read_ahead(self.rows[window.positions], window.views)
            yield self.reader.load(window)

    def _joined(self, first_step: int, last_step: int) -> Iterator[tuple[Batch, Arrays]]:
        """Yield each step's batch without pixels, and the arrays read for it."""
        windows = _ahead(self._windows(first_step, last_step))
        loaded_key: tuple[int, int] | None = None
        for step in range(first_step, last_step):
            parts = []
            for key, samples in self._own_pieces(step):
                if key != loaded_key:
                    loaded_key, loaded = key, next(windows)
                parts.append(loaded.take(samples))
            stored = dict(zip(self._sources, map(_joined_arrays, zip(*parts, strict=True)), strict=True))
            yield self._batch(step, stored), stored

    def _batch(self, step: int, stored: Arrays) -> Batch:
        rows, views = self.step_samples(step)
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

        def requests() -> Iterator[ViewRequests]:
            for batch, stored in joined:
                waiting.append(batch)
                crops = stored["crops"]["crops"].numpy().astype(np.uint16)
                yield ViewRequests(batch.rows, batch.views, crops)

        for decoded in pixels.decode(requests(), self._own.stop - self._own.start):
            yield replace(waiting.popleft(), pixels=decoded)


def _encoded(cache: TeacherCache) -> StoredArrays:
    names = cache.encoding.arrays(cache.header.embedding, cache.header.classes)
    return StoredArrays(cache, tuple(names))


def _joined_arrays(parts: tuple[dict[str, Tensor], ...]) -> dict[str, Tensor]:
    if len(parts) == 1:
        return parts[0]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _ahead(items: Iterator[Item], number: int = 1) -> Generator[Item, None, None]:
    """Yield the items; a thread computes up to `number` of them ahead.

    One plain thread computes all items: with a thread per item, torch would start its own threads again each
    time.
    """
    wanted: SimpleQueue[bool] = SimpleQueue()
    computed: SimpleQueue[list[Item] | BaseException] = SimpleQueue()  # an empty list is the end

    def compute() -> None:
        while wanted.get():
            try:
                computed.put(list(islice(items, 1)))
            except BaseException as error:  # raised again in the caller's thread
                computed.put(error)

    thread = Thread(target=compute, daemon=True)
    thread.start()
    for _ in range(number):
        wanted.put(True)
    try:
        while item := computed.get():
            if isinstance(item, BaseException):
                raise item
            wanted.put(True)
            yield item[0]
    finally:
        wanted.put(False)
        thread.join()


def locate_images(cache: TeacherCache, images: str | None) -> SampleTable:
    """Return where the images of a cache are: as recorded, or in another source with the same samples.

    Raises:
        UsageError: the other source has different samples.
    """
    if images is None:
        return cache.samples
    samples, _ = index_images(images, cache.vocabulary, labels=cache.samples.label_choice)
    if samples.digest != cache.header.sample_table_digest:
        raise UsageError(
            f"'{images}' does not have the samples of the cache {cache.path}: expected {len(cache)} samples, "
            f"first '{cache.samples.keys(slice(0, 1))[0]}'; found {len(samples)}, first "
            f"'{samples.keys(slice(0, 1))[0]}' (keys, sizes, labels and their order must be equal)"
        )
    return samples
