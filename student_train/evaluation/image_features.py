"""Unit image features of a data set for each model: computed, or read from a cache.

Shapes: N images, B batch, D embedding.
"""

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from student_train.evaluation.feature_store import FeatureStore, StoredFeatures, image_key
from student_train.evaluation.models import StudentFeatures
from teacher_cache.conventions import recorded_conventions
from teacher_cache.errors import UsageError
from teacher_cache.images.decode import MAX_PIXELS, UnreadableImageError, decode_image
from teacher_cache.images.location import Location
from teacher_cache.images.reader import ImageReader
from teacher_cache.images.table import SampleTable
from teacher_cache.progress import counting
from teacher_cache.softlabels import TeacherCache
from teacher_cache.teacher.teacher import Teacher, image_tower


@dataclass(frozen=True)
class EncodedImages:
    """Images that have a label and can be read, in the order of the source.

    Attributes:
        features: unit features [N, D] float32 by image tower.
        labels: [N] int64.
        skipped: images that cannot be read, with row, key and reason.
    """

    features: dict[str, Tensor]
    labels: Tensor
    skipped: list[dict[str, Any]]


def encode_images(
    models: Iterable[Teacher],
    samples: SampleTable,
    batch_size: int = 64,
    threads: int = 4,
    max_pixels: int = MAX_PIXELS,
    store: FeatureStore | None = None,
) -> EncodedImages:
    """Compute features of the evaluation view of every labelled image.

    An image is decoded once for all models, and passed once through a tower that several models share.

    Args:
        store: has features of frozen towers from earlier calls, and gets those of this one.

    Raises:
        UsageError: no labelled image, or none that can be read.
    """
    towers = {model.image_tower: model for model in models}
    keys = {tower: image_key(model, samples, max_pixels) for tower, model in towers.items()} if store else {}
    stored = {tower: found for tower, key in keys.items() if store and key and (found := store.find(key))}
    missing = {tower: model for tower, model in towers.items() if tower not in stored}
    if not missing:
        skipped = next(iter(stored.values())).skipped
        features = {tower: found.features for tower, found in stored.items()}
        return EncodedImages(features, _read_labels(samples, skipped), skipped)
    encoded = _encode_images(missing, samples, batch_size, threads, max_pixels)
    if any(found.skipped != encoded.skipped for found in stored.values()):  # an image can be read again
        encoded = _encode_images(towers, samples, batch_size, threads, max_pixels)
        stored = {}
    for tower, key in keys.items():
        if store and key and tower not in stored:
            store.keep(key, StoredFeatures(encoded.features[tower], encoded.skipped))
    features = encoded.features | {tower: found.features for tower, found in stored.items()}
    return EncodedImages(features, encoded.labels, encoded.skipped)


def _read_labels(samples: SampleTable, skipped: list[dict[str, Any]]) -> Tensor:
    rows = np.setdiff1d(np.flatnonzero(samples.labels >= 0), [image["row"] for image in skipped])
    return torch.from_numpy(samples.labels[rows].astype(np.int64))


def _encode_images(
    towers: Mapping[str, Teacher], samples: SampleTable, batch_size: int, threads: int, max_pixels: int
) -> EncodedImages:
    labelled = np.flatnonzero(samples.labels >= 0)
    reader = ImageReader()

    def views(location: Location) -> list[NDArray[np.uint8]] | UnreadableImageError:
        try:
            image = decode_image(reader.read(location), max_pixels=max_pixels)
            return _rendered(image, towers.values())
        except UnreadableImageError as error:
            return error

    features: dict[str, list[Tensor]] = {tower: [] for tower in towers}
    skipped = []
    with ThreadPoolExecutor(threads) as pool, counting("images", len(labelled)) as counter:
        for start in range(0, len(labelled), batch_size):
            batch = labelled[start : start + batch_size]
            decoded = list(pool.map(views, samples.locations(batch)))
            good = [found for found in decoded if isinstance(found, list)]
            for row, found in zip(batch.tolist(), decoded, strict=True):
                if isinstance(found, UnreadableImageError):
                    key = samples.keys(batch[batch == row])[0]
                    skipped.append({"row": row, "key": key, "reason": str(found)})
            if good:
                for (tower, model), pixels in zip(towers.items(), zip(*good, strict=True), strict=True):
                    features[tower].append(model.image_features(torch.from_numpy(np.stack(pixels))).cpu())
            counter(len(batch))
    if len(skipped) == len(labelled):
        raise UsageError("no labelled image can be read" if len(labelled) else "no image has a label")
    return EncodedImages(
        {tower: torch.cat(parts) for tower, parts in features.items()},
        _read_labels(samples, skipped),
        skipped,
    )


def _rendered(image: NDArray[np.uint8], models: Iterable[Teacher]) -> list[NDArray[np.uint8]]:
    """Return pixels for each model, [3, H, W]; models with equal preprocessing share them."""
    rendered: dict[str, NDArray[np.uint8]] = {}  # by preprocessing, which has no hash
    pixels = []
    for model in models:
        preprocess = repr(model.renderer.preprocess)
        if preprocess not in rendered:
            rendered[preprocess] = model.renderer.render_evaluation(image)
        pixels.append(rendered[preprocess])
    return pixels


def cached_images(models: Iterable[Teacher], cache: TeacherCache) -> EncodedImages:
    """Read the features of the evaluation views from a cache, without reading images.

    Raises:
        UsageError: the cache has no image features, or not those of a model, or no sample has a label.
    """
    tower = check_cached(models, cache)
    rows = np.flatnonzero(cache.valid & (cache.labels >= 0))
    if len(rows) == 0:
        raise UsageError(f"no readable sample of {cache.path} has a label")
    features_ND = F.normalize(cache.image_features(rows).float(), dim=-1)
    unread = np.flatnonzero(~cache.valid & (cache.labels >= 0))
    skipped = [
        {"row": row, "key": key, "reason": "could not be read when the cache was built"}
        for row, key in zip(unread.tolist(), cache.samples.keys(unread), strict=True)
    ]
    labels = torch.from_numpy(cache.labels[rows].astype(np.int64))
    return EncodedImages({tower: features_ND}, labels, skipped)


def check_cached(models: Iterable[Teacher], cache: TeacherCache) -> str:
    """Check that a cache has the image features of models; return the name of their image tower.

    Raises:
        UsageError: a model has another image tower.
    """
    teacher = cache.teacher
    tower = image_tower(teacher["weights_digest"], teacher["precision"], recorded_conventions(teacher))
    for model in models:
        if model.image_tower != tower:
            if isinstance(model, StudentFeatures) and model.has_image_prompts:
                reason = "and the student has image prompts"
            else:
                reason = f"not of {model.image_tower}"
            raise UsageError(
                f"the image features in {cache.path} are of weights {tower}, {reason}: "
                "evaluate this model on images"
            )
    return tower
