"""One part of a cache: read -> decode -> forward -> arrays.

Batches are cut within a part, and the teacher sees one view of them at a time: the arrays do not depend on
who computes which part when, nor on how many views a pass has.
Who that is, and what is done with the arrays, is `cluster.py`'s business.

Shapes: B views of a batch, V views of the part's pass, H and W pixels, D embedding.
"""

import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from teacher_cache.command_settings import ViewPolicy
from teacher_cache.encodings import ClassHead, encoding_of
from teacher_cache.errors import RppError
from teacher_cache.images import ImageReader, SampleTable, UnreadableImageError, decode_image
from teacher_cache.store import CacheHeader
from teacher_cache.teacher.teacher import Teacher
from teacher_cache.views import ViewRenderer, draw_crop, evaluation_crop

BATCHES_AHEAD = 2  # batches that are decoded while another is with the teacher
VIEWS_AT_ONCE = 8  # views rendered of an image while it is decoded; more views decode it again
BATCHES_ON_DEVICE = 32  # batches whose features stay on the device before they are fetched and encoded


@dataclass
class PartResult:
    """A computed part, not yet committed.

    Attributes:
        arrays: what the part writes, by name.
        seconds: `wall`, from the first read to the last array; `wait`, how long the teacher had no pixels,
            and `forward`, how long it had; `read`, summed over threads; `decode`, processor time of all
            threads, resizing included.
        skipped: row, key and reason of each image that could not be read.
    """

    arrays: dict[str, NDArray[Any]]
    seconds: dict[str, float]
    skipped: list[dict[str, Any]]


def part_arrays(
    header: CacheHeader,
    part: int,
    samples: SampleTable,
    teacher: Teacher,
    head: ClassHead,
    *,
    batch_size: int,
    threads: int,
    strict: bool = False,
    readable: NDArray[np.bool_] | None = None,
    on_batch: Callable[[int], None] = lambda samples: None,
) -> PartResult:
    """Compute one part.

    Args:
        samples: the part's own rows, no others.
        head: on the teacher's device.
        batch_size: images a forward pass, one view of each.
        threads: how many read and decode.
        strict: stop at the first unreadable image.
        readable: in a later pass, which of the rows the first pass could read, [N of the part] bool. Those
            that it could not read stay zero.
        on_batch: called with the number of samples that are done so far.

    Raises:
        RppError: `strict` and an image cannot be read; no image can be read; an image cannot be read in a
            later pass that could be read in the first.
    """
    started = time.perf_counter()
    first_row, count, views = header.rows(part).start, len(samples), header.views_of(part)
    encoding = encoding_of(header.encoding)
    arrays: dict[str, NDArray[Any]] = {
        name: np.full((count, len(views), *(size for _, size in spec.axes)), spec.fill, dtype=spec.dtype)
        for name, spec in header.per_view.items()
    }
    valid = np.ones(count, dtype=np.bool_) if readable is None else readable.copy()
    pixels = PartPixels(
        header, part, samples, teacher.renderer, arrays["crops"], valid, teacher.device.type == "cuda"
    )
    seconds = {"wait": 0.0, "forward": 0.0}
    skipped: list[dict[str, Any]] = []
    on_device: deque[tuple[Batch, int, Tensor]] = deque()
    launched: deque[torch.cuda.Event] = deque()

    def encode() -> None:
        for batch, view, features_BD in on_device:
            if not features_BD.isfinite().all():
                raise RppError(
                    f"the teacher's features of samples {first_row + batch.samples.start} to "
                    f"{first_row + batch.samples.stop - 1} are not finite: its weights are damaged, or are "
                    "too much for the --precision"
                )
            for name, values in encoding.encode(features_BD, head).items():
                arrays[name][batch.slots, view] = values
        on_device.clear()

    batches = cut_batches(count, len(views), batch_size)
    with ThreadPoolExecutor(threads, initializer=_yield_to_the_teacher) as pool:
        asked = time.perf_counter()
        for batch, pixels_VBCHW, unreadable in pixels.decoded(pool, batches):
            arrived = time.perf_counter()
            seconds["wait"] += arrived - asked
            for position, reason in unreadable.items():
                if strict or readable is not None:
                    what = "" if strict else ", and its row is valid in the views that the cache has"
                    raise RppError(f"{pixels.name(position)}: {reason}{what}")
                if valid[position]:
                    entry = {"row": first_row + position, "key": pixels.keys[position], "reason": reason}
                    skipped.append(entry)
                valid[position] = False
            if valid[batch.slots].any():
                for view, pixels_BCHW in zip(batch.views, pixels_VBCHW, strict=True):
                    on_device.append((batch, view, teacher.image_features(pixels_BCHW)))
                if teacher.device.type == "cuda":
                    launched.append(torch.cuda.Event())
                    launched[-1].record()
                    if len(launched) > 1:  # the launches may not run away from the device: memory is bounded
                        launched.popleft().synchronize()
            if len(on_device) >= BATCHES_ON_DEVICE:
                encode()
            if batch.views.stop == len(views):
                on_batch(batch.samples.stop)
            asked = time.perf_counter()
            seconds["forward"] += asked - arrived
        encode()
        ended = time.perf_counter()
        seconds["forward"] += ended - asked
    if len(skipped) == count and count > 1:
        raise RppError(
            f"none of the {count} images of part {part} could be read (first: {skipped[0]['key']}: "
            f"{skipped[0]['reason']}): that is no damage of single images; the part was not committed"
        )
    for name, spec in header.per_view.items():
        arrays[name][~valid] = spec.fill
    arrays |= {"valid": valid, "labels": samples.labels}
    return PartResult(
        arrays={name: values for name, values in arrays.items() if name in header.arrays_of(part)},
        seconds={"wall": ended - started, **pixels.seconds, **seconds},
        skipped=skipped,
    )


@dataclass(frozen=True)
class Batch:
    """Some samples of a part with some views of its pass, as positions within both."""

    samples: range
    views: range

    @property
    def slots(self) -> slice:
        """Its samples as an index into arrays of the part."""
        return slice(self.samples.start, self.samples.stop)


def cut_batches(samples: int, views: int, batch_size: int) -> list[Batch]:
    """`batch_size` samples with `VIEWS_AT_ONCE` of their views; all views of some samples before others."""
    return [
        Batch(range(sample, min(sample + batch_size, samples)), range(view, min(view + VIEWS_AT_ONCE, views)))
        for sample in range(0, samples, batch_size)
        for view in range(0, views, VIEWS_AT_ONCE)
    ]


@dataclass
class PartPixels:
    """Pixels of a part's views, decoded on threads ahead of who takes them.

    Attributes:
        crops: [N of the part, V, 5] uint16, filled in while decoding.
        wanted: which samples are decoded, [N of the part] bool.
        pinned: decode into page-locked memory, from which CUDA copies while it computes.
        seconds: `read` and `decode` so far.
    """

    header: CacheHeader
    part: int
    samples: SampleTable
    renderer: ViewRenderer
    crops: NDArray[np.uint16]
    wanted: NDArray[np.bool_]
    pinned: bool
    seconds: dict[str, float] = field(default_factory=lambda: {"read": 0.0, "decode": 0.0})

    def __post_init__(self) -> None:
        self.first_row = self.header.rows(self.part).start
        self.pass_views = self.header.views_of(self.part)
        self.policy = ViewPolicy(**self.header.view_policy)
        self.locations, self.keys = self.samples.locations(slice(None)), self.samples.keys(slice(None))
        self.reader = ImageReader()

    def name(self, position: int) -> str:
        """A sample as a user finds it: its key and its file."""
        return f"{self.keys[position]} ({self.locations[position][0]})"

    def decoded(
        self, pool: ThreadPoolExecutor, batches: list[Batch]
    ) -> Iterator[tuple[Batch, Tensor, dict[int, str]]]:
        """Yield each batch with its pixels [V, B, 3, H, W] uint8, a view in one block of memory, and the
        reasons why some of its samples could not be read, by position; the pixels of those are zero.

        A batch is begun when the one `BATCHES_AHEAD` before it is taken: memory is bounded.
        """
        todo = iter(batches)
        ahead = deque(self._begin(pool, batch) for batch in islice(todo, BATCHES_AHEAD))
        while ahead:
            batch, pixels, futures = ahead.popleft()
            unreadable: dict[int, str] = {}
            for position, future in futures:
                reason, read, decode = future.result()
                self.seconds["read"] += read
                self.seconds["decode"] += decode
                if reason is not None:
                    unreadable[position] = reason
            ahead.extend(self._begin(pool, following) for following in islice(todo, 1))
            yield batch, pixels.permute(0, 1, 4, 2, 3), unreadable

    def _begin(
        self, pool: ThreadPoolExecutor, batch: Batch
    ) -> tuple[Batch, Tensor, list[tuple[int, "Future[tuple[str | None, float, float]]"]]]:
        shape = (len(batch.views), len(batch.samples), *self.renderer.size, 3)
        pixels = torch.zeros(shape, dtype=torch.uint8, pin_memory=self.pinned)
        into = pixels.numpy()
        futures = [
            (position, pool.submit(self._decode, position, batch.views, into[:, number]))
            for number, position in enumerate(batch.samples)
            if self.wanted[position]
        ]
        return batch, pixels, futures

    def _decode(
        self, position: int, views: range, into: NDArray[np.uint8]
    ) -> tuple[str | None, float, float]:
        """Fill [views, H, W, 3]; why that was not possible, seconds of reading, seconds of decoding."""
        started = time.perf_counter()
        try:
            content = self.reader.read(self.locations[position])
            read, begun = time.perf_counter() - started, time.thread_time()
            image = decode_image(content, max_pixels=self.header.max_pixels)
            height, width = image.shape[:2]
            for number, of_pass in enumerate(views):
                view = self.pass_views[of_pass]
                crop = (
                    evaluation_crop(self.renderer.preprocess, width, height)
                    if view == 0
                    else draw_crop(self.policy, self.first_row + position, view, width, height)
                )
                self.crops[position, of_pass] = crop
                into[number] = self.renderer.render_last(image, view, crop)
        except UnreadableImageError as error:
            return str(error), time.perf_counter() - started, 0.0
        return None, read, time.thread_time() - begun


def _yield_to_the_teacher() -> None:
    """On Linux a thread has a priority of its own: decoding then takes the processor time that the forward
    pass leaves, and all of it when that waits for pixels."""
    if sys.platform == "linux":
        os.nice(10)
