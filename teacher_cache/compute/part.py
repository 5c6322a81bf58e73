"""Compute one part of a cache: read -> decode -> forward -> encode -> arrays.

Batches are cut within a part, and the teacher sees one view of them at a time: the arrays depend neither on
which worker computes which part when, nor on the number of views of a pass. `cluster.py` hands the parts to
workers and commits the arrays.

Shapes: B images of a batch, V views, H and W pixels, D embedding.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from teacher_cache.command_settings import ViewPolicy
from teacher_cache.compute.device_time import DeviceTimer
from teacher_cache.encodings import ClassHead, encoding_of
from teacher_cache.errors import RppError
from teacher_cache.images.table import SampleTable
from teacher_cache.pixels.decoders import BatchRequest, Decoders
from teacher_cache.pixels.drawn_views import DrawRequest, DrawViews
from teacher_cache.store.header import CacheHeader
from teacher_cache.store.pixels import COMPARED, EncodedViews
from teacher_cache.teacher.teacher import Teacher
from teacher_cache.views import RandomCrops, ViewRenderer

VIEWS_AT_A_TIME = 8  # views that are rendered when an image is decoded; more views decode it again
BATCHES_ON_DEVICE = 32  # batches whose features stay on the device before they are fetched and encoded


@dataclass(frozen=True)
class PartTask:
    """A part to compute.

    Attributes:
        samples: the part's own rows only.
        strict: stop at the first unreadable image.
        readable: in a later pass, which of the rows the first pass could read, [N of the part] bool. The
            others stay zero.
    """

    header: CacheHeader
    part: int
    samples: SampleTable
    strict: bool = False
    readable: NDArray[np.bool_] | None = None

    @property
    def first_row(self) -> int:
        """Row of its first sample in the cache."""
        return int(self.header.rows(self.part).start)

    @property
    def views(self) -> range:
        """Views of its pass."""
        return self.header.views_of(self.part)


@dataclass(frozen=True)
class PartResult:
    """A computed part, not yet committed.

    Attributes:
        arrays: what the part writes, by name.
        seconds: `wall`, from the start to the last array; `wait`, without pixels for the teacher, and
            `forward`, with pixels; `device`, in which the teacher's device computed; `read`, summed over the
            threads or processes that decode; `decode`, their processor time, resizing included;
            `decode_elapsed`, that with what they waited for a core or for Python's lock.
        skipped: row, key and reason of each image that could not be read.
        encoded: the views that the teacher saw, if the cache stores them.
    """

    arrays: dict[str, NDArray[Any]]
    seconds: dict[str, float]
    skipped: list[dict[str, Any]]
    encoded: EncodedViews | None = None


def part_arrays(
    task: PartTask,
    teacher: Teacher,
    head: ClassHead,
    *,
    batch_size: int,
    decoders: Decoders,
    on_batch: Callable[[int], None] = lambda samples: None,
) -> PartResult:
    """Compute one part.

    Args:
        head: on the teacher's device.
        batch_size: images per forward pass, one view of each.
        decoders: what decodes images, with the job of `part_job`.
        on_batch: called with the number of samples that are done so far.

    Raises:
        RppError: `strict` and an image cannot be read; no image can be read; in a later pass, an image
            cannot be read that the first pass could read.
    """
    started = time.perf_counter()
    output = PartOutput(task, head)
    # which rows are decoded does not change while batches are ahead
    pixels = PartPixels(task, output.arrays["crops"], output.valid.copy(), teacher.renderer.size)
    forward, stages, device = ForwardPass(teacher), StageTimer(), DeviceTimer(teacher.device)
    batches = cut_batches(len(task.samples), len(task.views), batch_size)
    for batch, pixels_VBCHW, unreadable in pixels.decoded(decoders, batches):
        stages.end("wait")
        output.skip(unreadable)
        with device.timing():
            if output.valid[batch.slots].any():
                forward.launch(batch, pixels_VBCHW)
            if len(forward.features) >= BATCHES_ON_DEVICE:
                output.encode(forward.take())
        if batch.views.stop == len(task.views):
            on_batch(batch.samples.stop)
        stages.end("forward")
    with device.timing():
        output.encode(forward.take())
    stages.end("forward")
    seconds = {
        "wall": stages.last - started,
        **pixels.seconds,
        **stages.seconds,
        "device": device.seconds(),
    }
    arrays = output.finished()
    if pixels.encoded:
        pixels.encoded.keep(output.valid)
    return PartResult(arrays, seconds, output.skipped, pixels.encoded)


class StageTimer:
    """Divides time between waiting for pixels and the forward pass."""

    def __init__(self) -> None:
        self.seconds = {"wait": 0.0, "forward": 0.0}
        self.last = time.perf_counter()

    def end(self, stage: str) -> None:
        """Add the time since the last call to a stage."""
        now = time.perf_counter()
        self.seconds[stage] += now - self.last
        self.last = now


class PartOutput:
    """The arrays of a part, filled batch by batch.

    Attributes:
        arrays: [N of the part, V, ...] by name, of all views of the pass.
        valid: which samples can be read as far as is known, [N of the part] bool.
        skipped: as in `PartResult`.
    """

    def __init__(self, task: PartTask, head: ClassHead) -> None:
        header, count, views = task.header, len(task.samples), len(task.views)
        self._task, self._head = task, head
        self._encoding = encoding_of(header.encoding)
        self.arrays: dict[str, NDArray[Any]] = {
            name: np.full((count, views, *(size for _, size in spec.axes)), spec.fill, dtype=spec.dtype)
            for name, spec in header.per_view.items()
        }
        self.valid = np.ones(count, dtype=np.bool_) if task.readable is None else task.readable.copy()
        self.skipped: list[dict[str, Any]] = []

    def skip(self, unreadable: dict[int, str]) -> None:
        """Mark samples that cannot be read.

        Args:
            unreadable: reasons by position in the part.

        Raises:
            RppError: the build is strict, or the first pass could read the sample.
        """
        task = self._task
        for position, reason in unreadable.items():
            key = task.samples.keys(slice(position, position + 1))[0]
            if task.strict or task.readable is not None:
                path = task.samples.locations(slice(position, position + 1))[0].path
                more = "" if task.strict else "; the cache has views of this image, so it was readable before"
                raise RppError(f"{key} ({path}): {reason}{more}")
            if self.valid[position]:
                self.skipped.append({"row": task.first_row + position, "key": key, "reason": reason})
            self.valid[position] = False

    def encode(self, features: "Iterable[tuple[Batch, int, Tensor]]") -> None:
        """Encode image features of batches: the batch, the view's position in the pass, and [B, D].

        Raises:
            RppError: features are not finite.
        """
        for batch, view, features_BD in features:
            if not features_BD.isfinite().all():
                first = self._task.first_row
                raise RppError(
                    f"the teacher's features of samples {first + batch.samples.start} to "
                    f"{first + batch.samples.stop - 1} are not finite: its weights are damaged, or overflow "
                    "at this --precision"
                )
            for name, values in self._encoding.encode(features_BD, self._head).items():
                self.arrays[name][batch.slots, view] = values

    def finished(self) -> dict[str, NDArray[Any]]:
        """Return the arrays that the part writes.

        Raises:
            RppError: no image could be read.
        """
        task, count = self._task, len(self._task.samples)
        if len(self.skipped) == count and count > 1:
            raise RppError(
                f"none of the {count} images of part {task.part} could be read (first: "
                f"{self.skipped[0]['key']}: {self.skipped[0]['reason']}): check the image source; the part "
                "was not committed"
            )
        for name, spec in task.header.per_view.items():
            self.arrays[name][~self.valid] = spec.fill
        arrays = self.arrays | {"valid": self.valid, "labels": task.samples.labels}
        return {name: values for name, values in arrays.items() if name in task.header.arrays_of(task.part)}


class ForwardPass:
    """Runs the teacher and keeps its features on the device until they are taken.

    Attributes:
        features: the batch, the view's position in the pass, and image features [B, D], in order.
    """

    def __init__(self, teacher: Teacher) -> None:
        self._teacher = teacher
        self._launched: deque[tuple[torch.cuda.Event, Tensor]] = deque()
        self.features: list[tuple[Batch, int, Tensor]] = []

    def launch(self, batch: "Batch", pixels_VBCHW: Tensor) -> None:
        """Start the forward pass of each view of a batch."""
        for view, pixels_BCHW in zip(batch.views, pixels_VBCHW, strict=True):
            self.features.append((batch, view, self._teacher.image_features(pixels_BCHW)))
        if self._teacher.device.type == "cuda":
            event = torch.cuda.Event()
            event.record(torch.cuda.current_stream(self._teacher.device))
            self._launched.append((event, pixels_VBCHW))  # pixels that exist are not overwritten
            if len(self._launched) > 1:  # stay at most one batch ahead of the device, which bounds memory
                self._launched.popleft()[0].synchronize()

    def take(self) -> "list[tuple[Batch, int, Tensor]]":
        """Return the features so far, and forget them."""
        features, self.features = self.features, []
        return features


@dataclass(frozen=True)
class Batch:
    """Some samples of a part and some views of its pass, as positions in both."""

    samples: range
    views: range

    @property
    def slots(self) -> slice:
        """Its samples, as an index into arrays of the part."""
        return slice(self.samples.start, self.samples.stop)


def cut_batches(samples: int, views: int, batch_size: int) -> list[Batch]:
    """Cut into batches of `batch_size` samples and `VIEWS_AT_A_TIME` views. All views of a sample come before
    the next samples."""
    return [
        Batch(
            range(sample, min(sample + batch_size, samples)), range(view, min(view + VIEWS_AT_A_TIME, views))
        )
        for sample in range(0, samples, batch_size)
        for view in range(0, views, VIEWS_AT_A_TIME)
    ]


def part_job(header: CacheHeader, renderer: ViewRenderer) -> DrawViews:
    """Return what decodes the images of a cache."""
    policy = ViewPolicy(**header.view_policy)
    crops = RandomCrops(policy.view_seed, policy.view_scale_min, policy.view_flip)
    codec = None if header.pixels == "none" else header.pixels
    return DrawViews(renderer.plain, crops, header.max_pixels, codec)


@dataclass
class PartPixels:
    """Pixels of a part's views, decoded ahead of their use.

    Attributes:
        crops: [N of the part, V, 5] uint16, filled in batch by batch.
        wanted: which samples are decoded, [N of the part] bool.
        size: height and width of a view.
        seconds: `read`, `decode` and `decode_elapsed` so far.
        encoded: the views, if the cache stores them.
    """

    task: PartTask
    crops: NDArray[np.uint16]
    wanted: NDArray[np.bool_]
    size: tuple[int, int]
    seconds: dict[str, float] = field(
        default_factory=lambda: {"read": 0.0, "decode": 0.0, "decode_elapsed": 0.0}
    )

    def __post_init__(self) -> None:
        self._locations = self.task.samples.locations(slice(None))
        self.encoded: EncodedViews | None = None
        if (codec := self.task.header.pixels) != "none":
            self.encoded = EncodedViews(len(self.crops), len(self.task.views), codec, self.size)

    def decoded(
        self, decoders: Decoders, batches: list[Batch]
    ) -> Iterator[tuple[Batch, Tensor, dict[int, str]]]:
        """Yield each batch with its pixels [V, B, 3, H, W] uint8, each view in one block of memory, and the
        reasons why samples could not be read, by position. The pixels of those are zero.

        Raises:
            RppError: as `Decoders.decode`, or a shard cannot be read.
        """
        for batch, (pixels, replies) in zip(
            batches, decoders.decode(map(self._request, batches)), strict=True
        ):
            unreadable: dict[int, str] = {}
            for position, drawn in zip(self._positions(batch), replies, strict=True):
                self.seconds["read"] += drawn.read
                self.seconds["decode"] += drawn.decode
                self.seconds["decode_elapsed"] += drawn.elapsed
                if drawn.error is not None:
                    raise drawn.error
                if drawn.reason is not None:
                    unreadable[position] = drawn.reason
                else:
                    self.crops[position, batch.views.start : batch.views.stop] = drawn.crops
                    if self.encoded:
                        for place, (content, difference) in zip(batch.views, drawn.encoded, strict=True):
                            self.encoded.store(position, place, content, difference)
            yield batch, pixels.permute(0, 1, 4, 2, 3), unreadable

    def _positions(self, batch: Batch) -> list[int]:
        return [position for position in batch.samples if self.wanted[position]]

    def _request(self, batch: Batch) -> BatchRequest:
        views = tuple(self.task.views[place] for place in batch.views)
        requests = [
            (
                position - batch.samples.start,
                DrawRequest(
                    self.task.first_row + position, self._locations[position], views, position < COMPARED
                ),
            )
            for position in self._positions(batch)
        ]
        return BatchRequest(len(batch.views), len(batch.samples), requests)
