"""The rendered views of a cache as the pixels of a run: they are decoded, neither cropped nor resized."""

import numpy as np
from numpy.typing import NDArray

from student_train.data.readers import MEMORY_SHARE
from teacher_cache.compat.open_clip import PreprocessCfg
from teacher_cache.images.location import Location
from teacher_cache.memory import free_memory
from teacher_cache.softlabels import TeacherCache
from teacher_cache.store.pixels import BLOCK, one_codec, view_key
from teacher_cache.views import ViewRenderer


class RenderedViews:
    """Keys and places of the rendered views of a cache. `len(views)` is the number of samples."""

    def __init__(self, cache: TeacherCache) -> None:
        """
        Raises:
            CacheDamagedError: a tar is missing or cut.
        """
        self._stored, self._samples = cache.store.pixels, len(cache)
        records = self._stored.records(_needed_parts(cache))
        self._stored.require_complete(records)
        self.codec = one_codec(records, cache.path)

    def __len__(self) -> int:
        return self._samples

    def where(self, rows: NDArray[np.int64], views: NDArray[np.int64]) -> tuple[list[str], list[Location]]:
        """Return names and places of the image files of n views.

        Raises:
            CacheDamagedError: one is not stored.
        """
        names = [view_key(row, view) for row, view in zip(rows.tolist(), views.tolist(), strict=True)]
        return names, list(self._stored.locations(rows, views))

    def read_ahead(self, rows: NDArray[np.int64], views: NDArray[np.int64]) -> None:
        """Ask the system to read the tars' bytes of these views, in their order, into its page cache.

        They are then read as a few long runs, although the samples are shuffled. Nothing is asked for if they
        take more than a share of the free memory, or are in an object store.

        Args:
            rows, views: [n], by view, then by row.
        """
        places = self._stored.places(rows, views)
        if places.lengths.sum() > MEMORY_SHARE * free_memory():
            return
        ends = places.offsets + places.lengths + -places.lengths % BLOCK
        follows = (places.parts[1:] == places.parts[:-1]) & (places.offsets[1:] == ends[:-1] + BLOCK)
        begins = np.flatnonzero(np.append(True, ~follows))
        for begin, end in zip(begins.tolist(), [*begins[1:].tolist(), len(rows)], strict=True):
            self._stored.advise(
                int(places.parts[begin]),
                int(places.offsets[begin]),
                int(ends[end - 1] - places.offsets[begin]),
            )


def why_not_rendered(cache: TeacherCache, preprocess: PreprocessCfg) -> str | None:
    """Return why a model with this preprocessing cannot read the rendered views of a cache; None if it can.

    Normalisation is not compared: it is done on the pixels.
    """
    needed = _needed_parts(cache)
    if missing := sorted(set(needed) - set(cache.store.pixels.committed())):
        return (
            f"{len(missing)} of {len(needed)} parts of the cache {cache.path} have no rendered views; "
            "rpp-cache render writes them"
        )
    height, width = ViewRenderer(preprocess).size
    ours = {
        "image_size": [height, width],
        "interpolation": preprocess.interpolation,
        "resize_mode": preprocess.resize_mode,
    }
    differ = [
        f"{name} {value}, the rendered views {cache.teacher.get(name)}"
        for name, value in ours.items()
        if cache.teacher.get(name) != value
    ]
    return f"the student has {'; '.join(differ)}" if differ else None


def _needed_parts(cache: TeacherCache) -> list[int]:
    header = cache.header
    return [part for part in range(header.parts) if header.views_of(part).stop <= cache.num_views]
