"""Estimate the size of a cache and the time of its build, without writing anything.

Sizes follow from the layout. Times are measured on some images of the source with the real teacher.
"""

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from teacher_cache.build import header_of, load_inputs, load_requested
from teacher_cache.classes.vocabulary import Vocabulary
from teacher_cache.command_settings import BuildSettings
from teacher_cache.compute.decoding import part_decoders
from teacher_cache.compute.part import PartTask, part_arrays
from teacher_cache.compute.workers import number_of_workers, on_this_machine
from teacher_cache.encodings import ClassHead
from teacher_cache.files.places import absolute_place
from teacher_cache.images.table import SampleTable
from teacher_cache.stopping import stoppable
from teacher_cache.store.cache_store import CacheStore
from teacher_cache.store.header import SAMPLE_ARRAYS, CacheHeader
from teacher_cache.store.samples import SAMPLES
from teacher_cache.teacher.teacher import Teacher, choose_device

SLICE_SECONDS = 10.0  # how long the timed images may take, about
SLICE_BATCHES = 8  # how many batches they are, at most
SLICE_TEXTS = 512
OFFERED = "jpeg95"  # codec that the estimate of a build without stored views reports


@dataclass(frozen=True)
class Estimate:
    """Result of `rpp-cache build --dry-run`.

    Attributes:
        labelled: samples with a hard label.
        parts_missing: parts still to compute; all if there is no cache yet.
        bytes: size of each array and table.
        bytes_free: free space at the cache's place; None in an object store.
        seconds: `class_features` and `images`, estimated.
        views_per_second: of all workers.
        slice_images: how many images were timed.
        pixels: codec of the stored views, or none.
        other_pixels: the same build without stored views, or with views as `OFFERED`: `pixels`,
            `bytes_total` and `seconds_total`.
    """

    path: str
    samples: int
    labelled: int
    classes: int
    views: int
    parts_total: int
    parts_missing: int
    bytes: dict[str, int]
    bytes_total: int
    bytes_free: int | None
    seconds: dict[str, float]
    seconds_total: float
    views_per_second: float
    workers: int
    slice_images: int
    pixels: str
    other_pixels: dict[str, Any]


def estimate_build(settings: BuildSettings, on_note: Callable[[str], None] = lambda note: None) -> Estimate:
    """Read the source's headers and time a slice of it; write nothing.

    Raises:
        UsageError: as `build_cache`.
    """
    with stoppable("stopped"):
        vocabulary, samples, _ = load_inputs(settings, on_note)
        loaded = load_requested(settings, on_note)
        teacher = Teacher(loaded, choose_device(settings.device), settings.precision)
        header = header_of(settings, teacher, vocabulary, samples)
        existing = CacheStore.open(settings.out) if CacheStore.exists(settings.out) else None
        if existing:
            existing.header.require_equal(header, settings.out)
            header = existing.header
        missing = existing.parts.missing() if existing else range(header.parts)
        workers = number_of_workers(settings)
        rows = sum(
            (header.rows(part).stop - header.rows(part).start) * len(header.views_of(part))
            for part in missing
        )
        per_second, timed, view_bytes = _timed_slice(settings, header, samples, teacher, on_note)
        class_features = 0.0 if existing else _class_feature_seconds(teacher, vocabulary)
        seconds = {"class_features": class_features, "images": rows / (per_second * workers)}
        other = replace(header, pixels=OFFERED if header.pixels == "none" else "none")
        other_per_second, _, other_bytes = _timed_slice(settings, other, samples, teacher, on_note, timed)
    sizes = array_bytes(header) | {SAMPLES: _table_bytes(samples)}
    views, without = header.samples * header.views, sum(sizes.values())
    if header.pixels != "none":
        sizes["pixels"] = round(view_bytes * views)
    return Estimate(
        path=settings.out,
        samples=len(samples),
        labelled=int((samples.labels >= 0).sum()),
        classes=len(vocabulary),
        views=header.views,
        parts_total=header.parts,
        parts_missing=len(missing),
        bytes=sizes,
        bytes_total=sum(sizes.values()),
        bytes_free=_free_bytes(settings.out),
        seconds={name: round(value, 1) for name, value in seconds.items()},
        seconds_total=round(sum(seconds.values()), 1),
        views_per_second=round(per_second * workers, 1),
        workers=workers,
        slice_images=timed,
        pixels=header.pixels,
        other_pixels={
            "pixels": other.pixels,
            "bytes_total": without + round(other_bytes * views),
            "seconds_total": round(class_features + rows / (other_per_second * workers), 1),
        },
    )


def array_bytes(header: CacheHeader) -> dict[str, int]:
    """Return the bytes of every array of such a cache, without the few that Zarr adds to each chunk."""
    counts = dict.fromkeys(header.per_view, header.samples * header.views)
    counts |= dict.fromkeys(SAMPLE_ARRAYS, header.samples)
    sizes = {name: counts[name] * spec.bytes for name, spec in (header.per_view | SAMPLE_ARRAYS).items()}
    return sizes | {f"vocabularies/{header.vocabulary}/class_features": header.classes * header.embedding * 4}


def _table_bytes(samples: SampleTable) -> int:
    rows = min(len(samples), 1 << 17)
    sink = pa.BufferOutputStream()
    pq.write_table(samples.table.slice(0, rows), sink, compression="zstd")
    return int(sink.tell() / rows * len(samples))


def _free_bytes(out: str) -> int | None:
    if "://" in out:
        return None
    path = Path(absolute_place(out))
    while not os.path.exists(path):
        path = path.parent
    return shutil.disk_usage(path).free


def _timed_slice(
    settings: BuildSettings,
    header: CacheHeader,
    samples: SampleTable,
    teacher: Teacher,
    on_note: Callable[[str], None],
    count: int | None = None,
) -> tuple[float, int, float]:
    """Return the views per second of one worker, the number of images that were timed, and the bytes of a
    stored view.

    Args:
        count: how many images to time, if the model has run before.
    """
    here = on_this_machine(settings)
    # the values of the class features do not change the time of encoding
    head = ClassHead(torch.zeros(header.classes, header.embedding), 1.0).to(teacher.device)
    views, batch = len(header.views_of(0)), settings.batch_size
    decoders = part_decoders(here, header, samples, teacher, on_note)
    view_bytes = 0.0

    def seconds(count: int) -> float:
        rows = np.linspace(0, len(samples) - 1, count).astype(np.int64)
        slice_of = SampleTable(samples.table.take(pa.array(rows)))
        small = replace(header, samples=count, part_size=count)
        started = time.perf_counter()
        task = PartTask(small, 0, slice_of, settings.strict)
        done = part_arrays(task, teacher, head, batch_size=settings.batch_size, decoders=decoders)
        taken = time.perf_counter() - started
        if done.encoded:
            nonlocal view_bytes
            view_bytes = done.encoded.tar_bytes / max(1, int((done.encoded.lengths > 0).sum()))
        return taken

    with decoders:
        first = min(batch, len(samples))
        seconds(first)  # the first pass of a model is slower, and decoders start
        if count is None:
            batches = max(1, min(SLICE_BATCHES, round(SLICE_SECONDS / max(seconds(first), 1e-3))))
            count = min(len(samples), batch * batches)
        return count * views / seconds(count), count, view_bytes


def _class_feature_seconds(teacher: Teacher, vocabulary: Vocabulary) -> float:
    count = min(len(vocabulary), max(1, SLICE_TEXTS // len(vocabulary.templates)))
    some = np.linspace(0, len(vocabulary) - 1, count).astype(int)
    names = tuple(vocabulary.names[c] for c in some)
    slice_of = Vocabulary(names, tuple(vocabulary.ids[c] for c in some), vocabulary.templates)
    started = time.perf_counter()
    teacher.class_features(slice_of)
    return (time.perf_counter() - started) / count * len(vocabulary)
