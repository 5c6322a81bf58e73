"""Pixels of samples, read and decoded in worker processes: the crops that the teacher saw.

Decoding in threads of the training process would hold up the launch of the towers' kernels; torch's
DataLoader keeps the processes. What they get and give are plain values: no cache is open in them, and
arrays come through a pipe, so that no shared memory is needed.
"""

import atexit
import os
import signal
import tarfile
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from threading import Thread
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from student_train.compat.torch import WorkerProcesses
from teacher_cache.errors import RppError, UsageError
from teacher_cache.images import (
    ImageReader,
    SampleTable,
    UnreadableImageError,
    decode_image,
)
from teacher_cache.images.decode import MAX_PIXELS
from teacher_cache.images.location import ByteRange, Location, ParquetRow, WholeFile
from teacher_cache.views import ViewRenderer

PIECE = 16  # images that a worker decodes at a time; a batch is spread over all of them
LOOK_FOR_PARENT_SECONDS = 1.0
TAR_BLOCK = 512
WHOLE_NAME = 90  # a tar header holds names up to 100 bytes whole, with their extension


@dataclass(frozen=True)
class Shown:
    """One view of one sample to be read.

    Attributes:
        key: of the sample, as the sample table has it.
        location: where its bytes are.
        view, crop: as the cache has them; crop is [5] uint16.
        check: whether to look if the sample of that key is what lies there.
    """

    key: str
    location: Location
    view: int
    crop: NDArray[np.uint16]
    check: bool = False


@dataclass(frozen=True)
class ShownViews:
    """B views to be read: rows and views [B] int64, crops [B, 5] uint16."""

    rows: NDArray[np.int64]
    views: NDArray[np.int64]
    crops: NDArray[np.uint16]


def read_pixels(
    samples: Iterable[Shown], renderer: ViewRenderer, reader: ImageReader, max_pixels: int = MAX_PIXELS
) -> NDArray[np.uint8]:
    """Pixels of the views, [n, 3, H, W] uint8.

    Raises:
        RppError: an image cannot be read.
        UsageError: another sample lies where the table says that this one does.
    """
    pixels = []
    for shown in samples:
        try:
            if shown.check:
                check_key(shown, reader)
            image = decode_image(reader.read(shown.location), max_pixels=max_pixels)
        except UsageError:
            raise
        except (UnreadableImageError, RppError) as error:
            raise RppError(
                f"{shown.key} in {shown.location[0]} cannot be read now, though the teacher could: {error}; "
                "if the images moved, say where with --images"
            ) from error
        pixels.append(renderer.render(image, shown.view, shown.crop))
    return np.stack(pixels)


def check_key(shown: Shown, reader: ImageReader) -> None:
    """Compare a sample's key with the name of what lies at its place: a tar member, or a file.

    Of a name that a tar header cannot hold whole, the size alone is compared.

    Raises:
        UsageError: they differ.
    """
    location = shown.location
    if isinstance(location, ParquetRow):
        return
    path, length = location.path, location.length
    offset = 0 if isinstance(location, WholeFile) else location.offset
    found = None
    if path.endswith(".tar"):
        try:
            header = tarfile.TarInfo.frombuf(
                reader.read(ByteRange(path, offset - TAR_BLOCK, TAR_BLOCK)), "utf-8", "surrogateescape"
            )
        except (tarfile.HeaderError, UnreadableImageError, ValueError):
            found = "no tar member"
        else:
            folder, _, name = header.name.rpartition("/")
            stem = f"{folder}/{name.partition('.')[0]}".lstrip("/")
            whole = shown.key.isascii() and len(shown.key) <= WHOLE_NAME
            if (whole and stem != shown.key) or header.size != length:
                found = f"{header.name} ({header.size} bytes)"
    elif isinstance(location, WholeFile) and not path.endswith(shown.key):
        found = path
    if found is not None:
        raise UsageError(
            f"{path} holds {found} at byte {offset}, where the cache has {shown.key} ({length} bytes): the "
            "images changed since the cache was built; name the ones that it was built from with --images"
        )


class PixelWorkers:
    """Reads and decodes batches in worker processes, some batches ahead of whoever takes them."""

    def __init__(
        self,
        samples: SampleTable,
        part_size: int,
        renderer: ViewRenderer,
        workers: int,
        pin: bool = False,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        """Args:
        samples: keys and places of all rows.
        part_size: rows of a part; keys are checked in the first batch that has rows of it.
        renderer: of the student's preprocessing.
        workers: processes; with 0 the caller's thread decodes.
        pin: give page-locked memory, from which a GPU copies without waiting.
        max_pixels: of an image, as the cache was built with.
        """
        # one chunk a column: rows are taken out of many chunks a hundred times more slowly
        self._samples = SampleTable(samples.table.combine_chunks())
        self._part_size, self._renderer = part_size, renderer
        self._workers, self._pin, self._max_pixels = workers, pin, max_pixels

    def decode(self, batches: Iterable[ShownViews], batch_size: int) -> Iterator[Tensor]:
        """Pixels of each batch, [B, 3, H, W] uint8.

        Args:
            batches: taken as far ahead as the workers need to be busy.
            batch_size: the largest batch, in samples.

        Raises:
            RppError, UsageError: what a worker raised, or that it died.
        """
        taken: deque[NDArray[np.int64]] = deque()
        pieces_per_batch = -(-batch_size // PIECE)
        loader: DataLoader[NDArray[np.uint8] | RppError] = DataLoader(
            _Pieces(self._renderer, self._max_pixels),
            batch_size=None,
            sampler=_InReadingOrder(self._named(batches), taken),
            num_workers=self._workers,
            collate_fn=_as_it_is,
            worker_init_fn=partial(_live_as_the_parent_does, os.getpid()),
            # this batch and the next
            prefetch_factor=max(2, -(-2 * pieces_per_batch // self._workers)) if self._workers else None,
        )
        pieces = _received(loader)
        height, width = self._renderer.size
        for first in pieces:
            order = taken.popleft()
            pixels = torch.empty(len(order), 3, height, width, dtype=torch.uint8, pin_memory=self._pin)
            for begin in range(0, len(order), PIECE):
                piece = first if begin == 0 else next(pieces)
                pixels[torch.from_numpy(order[begin : begin + PIECE])] = torch.from_numpy(piece)
            yield pixels

    def _named(self, batches: Iterable[ShownViews]) -> Iterator[list[Shown]]:
        checked = np.zeros(len(self._samples) // self._part_size + 1, dtype=bool)
        for batch in batches:
            parts = batch.rows // self._part_size
            check = ~checked[parts]
            checked[parts] = True
            keys, locations = self._samples.keys(batch.rows), self._samples.locations(batch.rows)
            fields = zip(keys, locations, batch.views.tolist(), batch.crops, check.tolist(), strict=True)
            yield [Shown(*of_sample) for of_sample in fields]


def _received(
    loader: DataLoader[NDArray[np.uint8] | RppError],
) -> Iterator[NDArray[np.uint8]]:
    workers = WorkerProcesses(loader)
    # A caller that never closes this generator may stay in an error's traceback until the interpreter's exit,
    # where worker processes are waited for.
    atexit.register(workers.end)
    try:
        for piece in workers.pieces:
            if isinstance(piece, RppError):
                raise piece
            yield piece
    except RuntimeError as error:  # torch's: a worker was killed
        raise RppError(
            f"a process that decodes images ended ({str(error).splitlines()[0]}); if memory ran out, take "
            "fewer --workers"
        ) from error
    finally:
        workers.end()
        atexit.unregister(workers.end)


class _InReadingOrder(Sampler[list[Shown]]):
    """The pieces of every batch, front to back through its shards; notes which samples of the batch each
    piece holds, batch by batch, in `taken`."""

    def __init__(self, batches: Iterable[list[Shown]], taken: deque[NDArray[np.int64]]) -> None:
        self._batches, self._taken = batches, taken

    def __iter__(self) -> Iterator[list[Shown]]:
        for batch in self._batches:
            order = sorted(range(len(batch)), key=lambda i: batch[i].location)
            self._taken.append(np.array(order))
            for begin in range(0, len(order), PIECE):
                yield [batch[i] for i in order[begin : begin + PIECE]]


class _Pieces(Dataset[NDArray[np.uint8] | RppError]):
    """What a worker does. Errors are values here: torch would wrap their message in a stack trace."""

    def __init__(self, renderer: ViewRenderer, max_pixels: int) -> None:
        self._renderer, self._max_pixels = renderer, max_pixels
        self._reader = ImageReader()

    def __getitem__(self, piece: list[Shown]) -> NDArray[np.uint8] | RppError:
        try:
            return read_pixels(piece, self._renderer, self._reader, self._max_pixels)
        except RppError as error:
            return error


def _as_it_is(piece: Any) -> Any:
    return piece


def _live_as_the_parent_does(parent: int, worker: int) -> None:
    """A signal to the whole process group must not take the workers from a step that is to be finished; but
    where the parent is gone, nobody will ever take what they still want to send."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    Thread(target=_end_after, args=(parent,), daemon=True).start()


def _end_after(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(LOOK_FOR_PARENT_SECONDS)
    os._exit(1)
