"""Predict the classes of picture files with a student or the frozen model.

Shapes: B pictures, C classes, D embedding.
"""

import os
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from student_train.evaluation.models import load_with_classes
from student_train.evaluation.preflight import picture_folder
from student_train.evaluation.settings import PredictSettings
from teacher_cache.encodings import ClassHead
from teacher_cache.errors import UsageError
from teacher_cache.files.places import local_path
from teacher_cache.images.decode import UnreadableImageError, decode_image

BATCH = 64


@dataclass(frozen=True)
class Prediction:
    """The likely classes of one picture, best first.

    Attributes:
        image: its file.
        classes, ids, probabilities: names, ids in the vocabulary, softmax over all its classes at T = 1.
        indices: class indices. Classes may share a name, but not an id or an index.
    """

    image: str
    classes: list[str]
    ids: list[str]
    probabilities: list[float]
    indices: list[int] = field(default_factory=list)


def predict(
    settings: PredictSettings, images: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]
) -> list[Prediction]:
    """Predict the likely classes of pictures, in their order.

    Args:
        images: a picture file, or several.

    Raises:
        UsageError: no pictures, a file that is not a picture, no such run, or no such vocabulary.
    """
    paths = [local_path(path) for path in ([images] if isinstance(images, str | os.PathLike) else images)]
    if not paths:
        raise UsageError("no pictures; give one or more files")
    contents = [_content(path) for path in paths]
    _check_readable(paths, contents, settings.max_pixels)  # before loading the model, which takes seconds
    model, vocabulary = load_with_classes(settings)
    head = ClassHead(model.class_features(vocabulary), model.logit_scale)
    top, predictions = min(settings.top, len(vocabulary)), []
    for begin in range(0, len(paths), BATCH):
        pixels = []
        for content in contents[begin : begin + BATCH]:
            picture = decode_image(content, max_pixels=settings.max_pixels)
            pixels.append(model.renderer.render_evaluation(picture))
        features_BD = model.image_features(torch.from_numpy(np.stack(pixels))).cpu()
        found = head.logits(features_BD).softmax(-1).topk(top)
        for path, shares, classes in zip(
            paths[begin : begin + BATCH], found.values.tolist(), found.indices.tolist(), strict=True
        ):
            predictions.append(
                Prediction(
                    str(path),
                    [vocabulary.names[c] for c in classes],
                    [vocabulary.ids[c] for c in classes],
                    shares,
                    classes,
                )
            )
    return predictions


def _check_readable(images: Sequence[Path], contents: Sequence[bytes], max_pixels: int) -> None:
    """Check all pictures. They are decoded again later: pixels of all need more memory than their files."""
    broken = []
    for path, content in zip(images, contents, strict=True):
        try:
            decode_image(content, max_pixels=max_pixels)
        except UnreadableImageError as error:
            broken.append(f"{path} cannot be read as a picture: {error}")
    if broken:
        raise UsageError("; ".join(broken))


def _content(path: Path) -> bytes:
    if os.path.isdir(path):
        raise picture_folder(path)
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # a device or a pipe may have no end
            raise UsageError(f"{path} is not a regular file; give picture files")
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
