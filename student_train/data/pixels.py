"""Read and decode pixels of samples in worker processes: the crops that the teacher saw.

Decoding in threads of the training process would delay the launch of the towers' kernels. The processes are
those of `teacher_cache/pixels`; no cache is open in them.
"""

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from student_train.data.rendered import RenderedViews
from student_train.data.stored_views import DecodeStoredViews, RenderViews, ViewRequest
from teacher_cache.images.decode import MAX_PIXELS
from teacher_cache.images.location import Location
from teacher_cache.images.table import SampleTable
from teacher_cache.pixels.decoders import BatchRequest, Decoders, PixelJob, open_decoders
from teacher_cache.views import ViewRenderer

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ViewRequests:
    """B views to read: rows and views [B] int64, crops [B, 5] uint16."""

    rows: NDArray[np.int64]
    views: NDArray[np.int64]
    crops: NDArray[np.uint16]


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
        renderer: renders views with the student's preprocessing; rendered ones have it.
        workers: number of processes; with 0 the caller's thread decodes.
        pin: return page-locked memory of torch, from which copies to a GPU are asynchronous.
        max_pixels: largest number of pixels of an image, as in the cache.
        """
        # one chunk a column: taking rows from many chunks is a hundred times slower
        self._samples: SampleTable | RenderedViews = (
            samples if isinstance(samples, RenderedViews) else SampleTable(samples.table.combine_chunks())
        )
        self._part_size, self._size, self._workers, self._pin = part_size, renderer.size, workers, pin
        self._job: PixelJob = (
            DecodeStoredViews(renderer.size)
            if isinstance(samples, RenderedViews)
            else RenderViews(renderer.plain, max_pixels)
        )

    @property
    def codec(self) -> str | None:
        """Codec of the rendered views; None if the original images are read."""
        return self._samples.codec if isinstance(self._samples, RenderedViews) else None

    def read_ahead(self, rows: NDArray[np.int64], views: NDArray[np.int64]) -> None:
        """Start to read the rendered views of a window, ordered by view, then by row; see `RenderedViews`."""
        if isinstance(self._samples, RenderedViews):
            self._samples.read_ahead(rows, views)

    def decode(self, batches: Iterable[ViewRequests], batch_size: int) -> Iterator[Tensor]:
        """Yield the pixels of each batch, [B, 3, H, W] uint8, channels last in memory.

        Args:
            batches: views to read; consumed as far ahead as keeps the workers busy.
            batch_size: size of the largest batch.

        Raises:
            RppError, UsageError: an image cannot be read, or a worker died.
        """
        with self._decoders(batch_size) as decoders:
            for pixels_VBHWC, errors in decoders.decode(self._requests(batches)):
                for error in errors:
                    if error is not None:
                        raise error
                yield pixels_VBHWC[0].permute(0, 3, 1, 2)

    def _decoders(self, batch_size: int) -> Decoders:
        # Pinned memory is torch's own, which it does not reuse before the device has copied it.
        return open_decoders(
            self._job,
            self._size,
            self._workers,
            threads=self._workers,
            largest=(1, batch_size),
            option="--workers",
            pin=self._pin,
            on_note=log.warning,
        )

    def _requests(self, batches: Iterable[ViewRequests]) -> Iterator[BatchRequest]:
        """Turn each batch into requests in the order of their bytes in the shards."""
        checked = np.zeros(len(self._samples) // self._part_size + 1, dtype=bool)
        for batch in batches:
            parts = batch.rows // self._part_size
            check = ~checked[parts]
            checked[parts] = True
            if isinstance(self._samples, RenderedViews):
                keys, locations = self._samples.where(batch.rows, batch.views)
            else:
                keys, locations = self._where(batch)
            fields = zip(keys, locations, batch.views.tolist(), batch.crops, check.tolist(), strict=True)
            requests = [ViewRequest(*values) for values in fields]
            order = sorted(range(len(requests)), key=lambda i: requests[i].location)
            yield BatchRequest(1, len(requests), [(i, requests[i]) for i in order])

    def _where(self, batch: ViewRequests) -> tuple[list[str], list[Location]]:
        """Return keys and locations of what is read."""
        if isinstance(self._samples, RenderedViews):
            return self._samples.where(batch.rows, batch.views)
        return self._samples.keys(batch.rows), list(self._samples.locations(batch.rows))
