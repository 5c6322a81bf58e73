"""Render the views of a cache to image files, beside its arrays.

The crops are stored, so the views are those that the teacher saw; a lossy codec changes their pixels, and by
how much is recorded.
"""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from teacher_cache.command_settings import RenderSettings
from teacher_cache.compat.open_clip import PreprocessCfg
from teacher_cache.cores import usable_cores
from teacher_cache.errors import RppError, UsageError
from teacher_cache.extend import locate_images
from teacher_cache.images.decode import UnreadableImageError, decode_image, decode_picture
from teacher_cache.images.reader import ImageReader
from teacher_cache.images.view_codecs import pixel_difference, stored_view
from teacher_cache.progress import Counter, counting
from teacher_cache.stopping import stoppable
from teacher_cache.store.cache_store import CacheStore
from teacher_cache.store.local_folder import disk_errors
from teacher_cache.store.pixels import COMPARED, EncodedViews, one_codec
from teacher_cache.teacher.teacher import recorded_teacher
from teacher_cache.views import ViewRenderer

CHECKED_AT_A_TIME = 32  # images


@dataclass(frozen=True)
class RenderResult:
    """Result of `rpp-cache render`.

    Attributes:
        parts_rendered: parts whose views were rendered now.
        parts_left: parts whose views cannot be rendered yet: their arrays are missing.
        bytes_per_view: of the tars, per stored view.
        difference: mean absolute difference of stored from exact pixels, in 1/255; None if none was compared.
        cosine: smallest and mean cosine of the teacher's features of stored and of exact pixels over `check`
            images; None without `--check`.
    """

    path: str
    codec: str
    parts_rendered: int
    parts_total: int
    parts_left: int
    bytes_per_view: float
    difference: float | None
    cosine: tuple[float, float] | None
    seconds: float


def render_cache(path: str | os.PathLike[str], settings: RenderSettings) -> RenderResult:
    """Render the views of all complete parts of a cache that have none yet.

    Raises:
        UsageError: the cache was built with stored views, has views of another codec, or other images.
        RppError: an image cannot be read now, or the work stopped; what was committed stays and the next call
            continues.
    """
    started, path = time.monotonic(), os.fspath(path)
    store = CacheStore.open(path, writable=True)
    _require_renderable(store, settings)
    with stoppable(), disk_errors(path), store.locked(settings.lock):
        _require_renderable(store, settings)
        if settings.images is not None:
            locate_images(store, settings.images)
        todo = sorted(set(store.parts.committed()) - set(store.pixels.committed()))
        _render_parts(store, todo, settings)
    records = store.pixels.records()
    compared = [record.difference for record in records if record.difference is not None]
    return RenderResult(
        path=path,
        codec=settings.pixels,
        parts_rendered=len(todo),
        parts_total=store.header.parts,
        parts_left=len(store.parts.missing()),
        bytes_per_view=round(
            sum(record.tar_bytes for record in records)
            / max(1, sum(record.stored_views for record in records)),
            1,
        ),
        difference=float(np.mean(compared)) if compared else None,
        cosine=_feature_cosine(store, settings) if settings.check else None,
        seconds=time.monotonic() - started,
    )


def recorded_renderer(store: CacheStore) -> ViewRenderer:
    """Return the renderer with the preprocessing that a cache records."""
    teacher = store.header.teacher
    height, width = teacher["image_size"]
    return ViewRenderer(
        PreprocessCfg(
            size=(height, width),
            mean=tuple(teacher["mean"]),
            std=tuple(teacher["std"]),
            interpolation=teacher["interpolation"],
            resize_mode=teacher["resize_mode"],
        )
    )


def _require_renderable(store: CacheStore, settings: RenderSettings) -> None:
    if store.header.pixels != "none":
        raise UsageError(
            f"the cache {store.path} was created with --pixels {store.header.pixels}: rpp-cache build and "
            "extend store its views"
        )
    found = one_codec(store.pixels.records(), store.path)
    if found not in (None, settings.pixels):
        raise UsageError(
            f"the cache {store.path} has rendered views of --pixels {found}, requested {settings.pixels}; "
            f"use {found}, or remove its folder pixels/ first"
        )


def _render_parts(store: CacheStore, parts: list[int], settings: RenderSettings) -> None:
    header, renderer = store.header, recorded_renderer(store)
    total = sum((header.rows(p).stop - header.rows(p).start) * len(header.views_of(p)) for p in parts)
    with counting("views", total) as counter, ThreadPoolExecutor(settings.threads or usable_cores()) as pool:
        for part in parts:
            encoded = _rendered(store, part, renderer, settings.pixels, pool, counter)
            store.pixels.write(part, encoded, seen_by_teacher=False)


def _rendered(
    store: CacheStore,
    part: int,
    renderer: ViewRenderer,
    codec: str,
    pool: ThreadPoolExecutor,
    counter: Counter,
) -> EncodedViews:
    """Return the encoded views of a part whose arrays are stored."""
    header = store.header
    rows, views = header.rows(part), header.views_of(part)
    samples = store.samples.part(rows)
    crops = store.parts.read("crops", (rows, slice(views.start, views.stop)))
    first = part % header.parts_per_pass
    valid = store.parts.sample_arrays(range(first, first + 1))["valid"]
    encoded = EncodedViews(len(samples), len(views), codec, renderer.size)
    locations, keys, reader = samples.locations(slice(None)), samples.keys(slice(None)), ImageReader()

    def render(position: int) -> None:
        try:
            picture = decode_picture(reader.read(locations[position]), max_pixels=header.max_pixels)
            for place, view in enumerate(views):
                exact = renderer.draw(picture, view, crops[position, place])
                content, found = stored_view(exact, codec)
                compared = pixel_difference(found, exact) if position < COMPARED else None
                encoded.store(position, place, content, compared)
        except UnreadableImageError as error:
            raise RppError(
                f"{keys[position]} ({locations[position][0]}) cannot be read now, although the teacher could "
                f"read it: {error}; if the images moved, give their new place with --images"
            ) from error

    wanted = np.flatnonzero(valid).tolist()
    try:
        for _ in pool.map(render, wanted):
            counter(len(views))
    except BaseException:  # queued images of this part are not read any more
        pool.shutdown(cancel_futures=True)
        raise
    return encoded


def _feature_cosine(store: CacheStore, settings: RenderSettings) -> tuple[float, float] | None:
    """Return the smallest and the mean cosine of features of view 0 of some images, stored against exact."""
    teacher = recorded_teacher(store.header.teacher, settings.teacher, settings.pretrained, settings.device)
    rows = _checked_rows(store, settings.check)
    reader, renderer = ImageReader(), recorded_renderer(store)
    cosines = []
    for begin in range(0, len(rows), CHECKED_AT_A_TIME):
        some = rows[begin : begin + CHECKED_AT_A_TIME]
        stored = store.pixels.locations(some, np.zeros(len(some), dtype=np.int64))
        pixels = [
            np.stack([decode_image(reader.read(place)).transpose(2, 0, 1) for place in stored]),
            np.stack(
                [
                    renderer.render_evaluation(decode_image(reader.read(place), store.header.max_pixels))
                    for place in store.samples.locations(some)
                ]
            ),
        ]
        features = [teacher.image_features(torch.from_numpy(np.ascontiguousarray(of))) for of in pixels]
        cosines.append((features[0] * features[1]).sum(dim=-1).cpu())
    if not cosines:
        return None
    found = torch.cat(cosines)
    return float(found.min()), float(found.mean())


def _checked_rows(store: CacheStore, count: int) -> NDArray[np.int64]:
    """Return rows with a stored view 0, spread evenly, at most `count`."""
    header = store.header
    rows = []
    for part in set(store.pixels.committed()) & set(range(header.parts_per_pass)):
        stored = np.flatnonzero(store.pixels.index(part)[:, 0, 1])
        rows.append(header.rows(part).start + stored)
    found = np.sort(np.concatenate(rows)) if rows else np.zeros(0, dtype=np.int64)
    if not len(found):
        return found
    return found[np.unique(np.linspace(0, len(found) - 1, min(count, len(found))).astype(np.int64))]
