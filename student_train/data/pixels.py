"""Read and decode pixels of samples in worker processes: the crops that the teacher saw.

Decoding in threads of the training process would delay the launch of the towers' kernels; torch's DataLoader
manages the processes. They exchange plain values through pipes: no cache is open in them, and no shared
memory is needed.
"""

import atexit
import multiprocessing
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
from torch.utils.data import DataLoader, Dataset

from student_train.compat.torch import WorkerProcesses
from student_train.data.rendered import RenderedViews, StoredRenderer
from teacher_cache.errors import RppError, UsageError
from teacher_cache.images.decode import MAX_PIXELS, UnreadableImageError, decode_image
from teacher_cache.images.location import ByteRange, Location, ParquetRow, WholeFile
from teacher_cache.images.reader import ImageReader
from teacher_cache.images.table import SampleTable
from teacher_cache.views import ViewRenderer

PIECE = 16  # images that a worker decodes at a time; a batch is spread over all workers
PARENT_CHECK_SECONDS = 1.0
TAR_BLOCK = 512
FULL_KEY = 90  # characters; a tar header has names of up to 100 bytes untruncated, extension included


@dataclass(frozen=True)
class ViewRequest:
    """A view of a sample to read.

    Attributes:
        key: key of the sample in the sample table.
        location: where the bytes of the image are.
        view, crop: as in the cache; the crop is [5] uint16.
        check: whether to compare the key with the name of what is at the location.
    """

    key: str
    location: Location
    view: int
    crop: NDArray[np.uint16]
    check: bool = False


@dataclass(frozen=True)
class ViewRequests:
    """B views to read: rows and views [B] int64, crops [B, 5] uint16."""

    rows: NDArray[np.int64]
    views: NDArray[np.int64]
    crops: NDArray[np.uint16]


def read_pixels(
    requests: Iterable[ViewRequest],
    renderer: ViewRenderer,
    reader: ImageReader,
    max_pixels: int = MAX_PIXELS,
) -> NDArray[np.uint8]:
    """Return the pixels of n views, [n, 3, H, W] uint8.

    Raises:
        RppError: an image cannot be read.
        UsageError: another sample is at the location of this one.
    """
    pixels = []
    for request in requests:
        try:
            if request.check:
                check_key(request, reader)
            image = decode_image(reader.read(request.location), max_pixels=max_pixels)
        except UsageError:
            raise
        except (UnreadableImageError, RppError) as error:
            if isinstance(renderer, StoredRenderer):
                raise RppError(
                    f"the rendered view {request.key} in {request.location[0]} cannot be read: {error}; run "
                    "rpp-cache verify"
                ) from error
            raise RppError(
                f"{request.key} in {request.location[0]} cannot be read now, although the teacher could read "
                f"it: {error}; if the images moved, give their new place with --images"
            ) from error
        pixels.append(renderer.render(image, request.view, request.crop))
    return np.stack(pixels)


def check_key(request: ViewRequest, reader: ImageReader) -> None:
    """Compare a sample's key with the name of the tar member or file at its location.

    If a tar header truncates the name, only the size is compared.

    Raises:
        UsageError: they differ.
    """
    location = request.location
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
            is_full = request.key.isascii() and len(request.key) <= FULL_KEY
            if (is_full and stem != request.key) or header.size != length:
                found = f"{header.name} ({header.size} bytes)"
    elif isinstance(location, WholeFile) and not path.endswith(request.key):
        found = path
    if found is not None:
        raise UsageError(
            f"{path} has {found} at byte {offset}, but the cache has {request.key} ({length} bytes) there: "
            "the images changed since the cache was built; give the original ones with --images"
        )


class PixelWorkers:
    """Read and decode batches in worker processes, some batches ahead of the caller."""

    def __init__(
        self,
        samples: SampleTable | RenderedViews,
        part_size: int,
        renderer: ViewRenderer,
        workers: int,
        pin: bool = False,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        """Args:
        samples: keys and locations of all rows, or of the cache's rendered views.
        part_size: rows of a part; keys are checked in the first batch that has rows of a part.
        renderer: renders views with the student's preprocessing; `StoredRenderer` for rendered ones.
        workers: number of processes; with 0 the caller's thread decodes.
        pin: return page-locked memory, from which copies to a GPU are asynchronous.
        max_pixels: largest number of pixels of an image, as in the cache.
        """
        # one chunk a column: taking rows from many chunks is a hundred times slower
        self._samples: SampleTable | RenderedViews = (
            samples if isinstance(samples, RenderedViews) else SampleTable(samples.table.combine_chunks())
        )
        self._part_size, self._renderer = part_size, renderer
        self._workers, self._pin, self._max_pixels = workers, pin, max_pixels

    @property
    def codec(self) -> str | None:
        """Codec of the rendered views; None if the original images are read."""
        return self._samples.codec if isinstance(self._samples, RenderedViews) else None

    def read_ahead(self, rows: NDArray[np.int64], views: NDArray[np.int64]) -> None:
        """Start to read the rendered views of a window, ordered by view, then by row; see `RenderedViews`."""
        if isinstance(self._samples, RenderedViews):
            self._samples.read_ahead(rows, views)

    def decode(self, batches: Iterable[ViewRequests], batch_size: int) -> Iterator[Tensor]:
        """Yield the pixels of each batch, [B, 3, H, W] uint8.

        Args:
            batches: views to read; consumed as far ahead as keeps the workers busy.
            batch_size: size of the largest batch.

        Raises:
            RppError, UsageError: raised by a worker, or a worker died.
        """
        orders: deque[NDArray[np.int64]] = deque()
        pieces_per_batch = -(-batch_size // PIECE)
        loader: DataLoader[NDArray[np.uint8] | RppError] = DataLoader(
            _DecodedPieces(self._renderer, self._max_pixels),
            batch_size=None,
            sampler=self._pieces(batches, orders),
            num_workers=self._workers,
            collate_fn=_unchanged,
            worker_init_fn=partial(_prepare_worker, os.getpid()),
            # enough for this batch and the next
            prefetch_factor=max(2, -(-2 * pieces_per_batch // self._workers)) if self._workers else None,
        )
        pieces = _received(loader)
        height, width = self._renderer.size
        for first in pieces:
            order = orders.popleft()
            pixels = torch.empty(len(order), 3, height, width, dtype=torch.uint8, pin_memory=self._pin)
            for begin in range(0, len(order), PIECE):
                piece = first if begin == 0 else next(pieces)
                pixels[torch.from_numpy(order[begin : begin + PIECE])] = torch.from_numpy(piece)
            yield pixels

    def _pieces(
        self, batches: Iterable[ViewRequests], orders: deque[NDArray[np.int64]]
    ) -> Iterator[list[ViewRequest]]:
        """Split each batch into pieces, in the order of their bytes in the shards; append it to `orders`."""
        checked = np.zeros(len(self._samples) // self._part_size + 1, dtype=bool)
        for batch in batches:
            parts = batch.rows // self._part_size
            check = ~checked[parts]
            checked[parts] = True
            if isinstance(self._samples, RenderedViews):
                keys, locations = self._samples.where(batch.rows, batch.views)
            else:
                keys, locations = self._samples.keys(batch.rows), self._samples.locations(batch.rows)
            fields = zip(keys, locations, batch.views.tolist(), batch.crops, check.tolist(), strict=True)
            requests = [ViewRequest(*values) for values in fields]
            order = sorted(range(len(requests)), key=lambda i: requests[i].location)
            orders.append(np.array(order))
            for begin in range(0, len(order), PIECE):
                yield [requests[i] for i in order[begin : begin + PIECE]]


def _received(loader: DataLoader[NDArray[np.uint8] | RppError]) -> Iterator[NDArray[np.uint8]]:
    workers = WorkerProcesses(loader)
    # An error's traceback may keep this generator open until the interpreter exits, which waits for workers.
    atexit.register(workers.end)
    try:
        for piece in workers.pieces:
            if isinstance(piece, RppError):
                raise piece
            yield piece
    except RuntimeError as error:  # torch's: a worker was killed
        raise RppError(
            f"a process that decodes images ended ({str(error).splitlines()[0]}); if memory ran out, use "
            "fewer --workers"
        ) from error
    finally:
        workers.end()
        atexit.unregister(workers.end)


class _DecodedPieces(Dataset[NDArray[np.uint8] | RppError]):
    """Decodes pieces in a worker. Returns errors: torch would put a traceback into a raised one's message."""

    def __init__(self, renderer: ViewRenderer, max_pixels: int) -> None:
        self._renderer, self._max_pixels = renderer, max_pixels
        self._reader = ImageReader()

    def __getitem__(self, piece: list[ViewRequest]) -> NDArray[np.uint8] | RppError:
        try:
            return read_pixels(piece, self._renderer, self._reader, self._max_pixels)
        except RppError as error:
            return error


def _unchanged(piece: Any) -> Any:
    return piece


def _prepare_worker(parent: int, worker: int) -> None:
    """Ignore signals so that the current step can finish; exit if the parent dies."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    Thread(target=_exit_with_parent, args=(parent,), daemon=True).start()


def _exit_with_parent(parent: int) -> None:
    is_child = os.getppid() == parent  # with `forkserver`, the server is in between
    started_by = multiprocessing.parent_process()
    while (os.getppid() == parent) if is_child else (started_by is not None and started_by.is_alive()):
        time.sleep(PARENT_CHECK_SECONDS)
    os._exit(1)
