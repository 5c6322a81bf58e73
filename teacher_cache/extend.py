"""Add views to a finished cache by another pass of the same teacher over the same images.

A view's crop is a function of (seed, row, view), so the result equals one build with that many views.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from teacher_cache.build import compute_missing, pace_of
from teacher_cache.command_settings import ExtendSettings
from teacher_cache.errors import UsageError, printable
from teacher_cache.images.index import index_images
from teacher_cache.images.sources import absolute_source
from teacher_cache.images.table import SampleTable
from teacher_cache.preflight import require_bokeh
from teacher_cache.stopping import stoppable
from teacher_cache.store.cache_store import CacheStore
from teacher_cache.store.local_folder import disk_errors
from teacher_cache.teacher.teacher import recorded_teacher


@dataclass(frozen=True)
class ExtendResult:
    """Result of an extension; `pace` as in `BuildResult`."""

    path: str
    views: int
    parts_total: int
    parts_computed: int
    seconds: float
    pace: list[dict[str, Any]] = field(default_factory=list)


def extend_cache(
    path: str | os.PathLike[str],
    settings: ExtendSettings,
    on_note: Callable[[str], None] = lambda note: None,
) -> ExtendResult:
    """Add views to a finished cache, or continue an extension that was stopped.

    Args:
        on_note: called with each remark for the user.

    Raises:
        UsageError: the cache already has that many views, is not finished, or has another teacher or other
            images.
        RppError: the extension stopped; what was committed stays and the next call continues.
    """
    started, path = time.monotonic(), os.fspath(path)
    require_bokeh(settings)
    store = CacheStore.open(path, writable=True)
    _require_extensible(store, settings.views)
    teacher = recorded_teacher(store.header.teacher, settings.teacher, settings.pretrained, settings.device)
    with stoppable(), disk_errors(path), store.locked(settings.lock):
        _require_extensible(store, settings.views)
        store.repair_metadata()
        if settings.images is not None:
            locate_images(store, settings.images)
        if settings.views > store.header.views:
            store.add_views(settings.views)
        computed = compute_missing(store, settings, teacher, on_note)
    return ExtendResult(
        path=path,
        views=store.header.views,
        parts_total=store.header.parts,
        parts_computed=len(computed),
        seconds=time.monotonic() - started,
        pace=pace_of(store, computed),
    )


def _require_extensible(store: CacheStore, views: int) -> None:
    header, missing = store.header, store.parts.missing()
    if views < header.views or (views == header.views and not missing):
        raise UsageError(f"the cache {store.path} already has {header.views} views per sample")
    first_pass = missing and missing[0] < header.parts_per_pass
    if first_pass or (missing and views > header.views):
        raise UsageError(
            f"the cache {store.path} is not complete: {len(missing)} of {header.parts} parts are missing; "
            + (
                "run rpp-cache build again first"
                if first_pass
                else f"run rpp-cache extend --views {header.views} again first"
            )
        )


def locate_images(store: CacheStore, images: str) -> None:
    """Record where the images of a cache are now.

    Raises:
        UsageError: there are other samples.
    """
    samples, _ = index_images(images, store.vocabulary(), labels=store.samples.label_choice)
    if samples.digest != store.header.sample_table_digest:
        raise UsageError(
            f"'{images}' does not contain the samples of the cache {store.path}: "
            f"{_difference(store.samples, samples)} (keys, sizes, labels and their order must be equal)"
        )
    store.locate_images(samples, absolute_source(images))


def _difference(expected: SampleTable, found: SampleTable) -> str:
    """Return in words how two tables differ."""
    if len(expected) != len(found):
        return f"expected {len(expected)} samples, found {len(found)}"
    for name, what in (("key", "key"), ("length", "bytes"), ("label", "label")):
        old, new = expected.table[name], found.table[name]
        if name == "key":
            old, new = old.cast(pa.large_string()), new.cast(pa.large_string())
        differ = pc.not_equal(old, new)
        row = pc.index(differ, True).as_py()
        if row >= 0:
            return (
                f"{pc.sum(differ).as_py()} of {len(found)} samples differ, the first in row {row}: "
                f"expected {what} {printable(str(old[row]))}, found {printable(str(new[row]))}"
            )
    return "the digests of their tables differ"
