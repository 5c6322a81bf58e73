"""What the teacher's soft labels look like: how sure they are by temperature, and those of a few pictures,
beside what a student says of these.

Shapes: B rows, C classes, D embedding.
"""

import base64
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from student_train.evaluation.models import FeatureModels, LoadedFeatureModel
from student_train.evaluation.settings import ModelSettings
from teacher_cache.classes.vocabulary import Vocabulary
from teacher_cache.encodings import ClassHead
from teacher_cache.errors import RppError, UsageError
from teacher_cache.images import ImageReader, UnreadableImageError, decode_image
from teacher_cache.softlabels import TeacherCache, open_cache
from teacher_cache.stats import entropy, sample_rows, teacher_statistics

TEMPERATURES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
SHOWN_TEMPERATURES = (0.5, 1.0, 4.0)  # of pictures, unless a sweep has others
SAMPLE = 512  # rows
OF_EACH_KIND = 2
TOP = 5
THUMBNAIL = 144  # pixels


@dataclass(frozen=True)
class Picture:
    """A picture and what is said of it.

    Attributes:
        kind: why it is shown.
        key: of the sample.
        data: a `data:` URI of a small JPEG; empty if it could not be read, as `why` says.
        label: its hard label, None without one.
        teacher: the first classes, each with its probability at each temperature.
        student: likewise, at temperature 1; empty if there is no student to ask.
    """

    kind: str
    key: str
    data: str
    why: str
    label: str | None
    teacher: list[tuple[str, list[float]]]
    student: list[tuple[str, float]]


def open_recorded_cache(record: dict[str, Any]) -> TeacherCache:
    """The cache that a run was trained on.

    Raises:
        RppError: it is not there any more, cannot be read, or is another one now.
    """
    settings, recorded = record["settings"], record["cache"]
    cache = open_cache(str(settings.get("cache")), settings.get("vocabulary"))
    for name in ("sample_table_digest", "vocabulary_digest"):
        if recorded.get(name) != getattr(cache.header, name):
            raise UsageError(f"{cache.path} is another cache now than the run was trained on (its {name})")
    return cache


def served(cache: TeacherCache, temperatures: Iterable[float]) -> list[float]:
    """Those temperatures, ascending, at which the cache's encoding has soft labels."""
    kept = []
    for temperature in sorted(set(temperatures)):
        try:
            cache.encoding.require_temperature(temperature)
        except UsageError:
            continue
        kept.append(temperature)
    return kept


def entropies(cache: TeacherCache, temperatures: Sequence[float]) -> tuple[int, list[tuple[float, float]]]:
    """Rows that were looked at, and (temperature, mean entropy in nats) of their soft labels."""
    found = teacher_statistics(cache, temperatures, sample=SAMPLE)
    return found["rows"], [(one["temperature"], one["entropy"]) for one in found["temperatures"]]


def telling_rows(cache: TeacherCache) -> list[tuple[int, str]]:
    """Rows to show, each with the reason: of a sample, those on which the teacher is surest and right, least
    sure, and surest and wrong. The same rows at every call."""
    rows = sample_rows(cache, SAMPLE, seed=0)
    labels = cache.labels[rows]
    surest, first, unsure = np.empty(len(rows)), np.empty(len(rows), np.int64), np.empty(len(rows))
    for at, stored in cache.stored_pieces(rows):
        logits_BC = cache.finite(cache.encoding.logits(stored, cache.head, 1.0))
        best = logits_BC.softmax(-1).max(-1)
        surest[at], first[at] = best.values.numpy(), best.indices.numpy()
        unsure[at] = entropy(logits_BC).numpy()
    right, wrong = (labels >= 0) & (first == labels), (labels >= 0) & (first != labels)
    kinds = (
        ("sure and right", surest, right),
        ("unsure", unsure, np.ones_like(right)),
        ("sure and wrong", surest, wrong),
    )
    shown: dict[int, str] = {}
    for kind, order, among in kinds:
        places = [place for place in np.argsort(-order, kind="stable") if among[place]]
        new = [int(rows[place]) for place in places if int(rows[place]) not in shown]
        shown |= dict.fromkeys(new[:OF_EACH_KIND], kind)
    return list(shown.items())


def load_student_of(run: Path) -> LoadedFeatureModel:
    """The student of a run.

    Raises:
        RppError: it is not there, or its frozen model is not.
    """
    return FeatureModels().load(ModelSettings(student=str(run)))


def look_at(
    cache: TeacherCache,
    rows: Sequence[tuple[int, str]],
    temperatures: Sequence[float],
    student: LoadedFeatureModel | None,
) -> list[Picture]:
    """The pictures of the given rows, from where the cache found them."""
    numbers = np.array([row for row, _ in rows], dtype=np.int64)
    pictures = read_pictures(cache, numbers)
    said = student_says(student, cache.vocabulary, pictures) if student else {}
    names = cache.vocabulary.names
    kept = min(TOP, len(names))
    shown = []
    for place, ((row, kind), picture, key) in enumerate(
        zip(rows, pictures, cache.samples.keys(numbers), strict=True)
    ):
        by_temperature = [cache.soft_labels([row], temperature)[0] for temperature in temperatures]
        first = by_temperature[0].topk(kept).indices.tolist()
        label = int(cache.labels[row])
        read = isinstance(picture, Image.Image)
        shown.append(
            Picture(
                kind=kind,
                key=key,
                data=thumbnail(picture) if isinstance(picture, Image.Image) else "",
                why="" if read else str(picture),
                label=names[label] if label >= 0 else None,
                teacher=[(names[c], [float(shares[c]) for shares in by_temperature]) for c in first],
                student=said.get(place, []),
            )
        )
    return shown


def read_pictures(cache: TeacherCache, rows: NDArray[np.int64]) -> list[Image.Image | Exception]:
    """The pictures of rows; in place of one that cannot be read, why."""
    reader = ImageReader()
    pictures: list[Image.Image | Exception] = []
    for location in cache.samples.locations(rows):
        try:
            content = reader.read(*location)
            pictures.append(decode_image(content, max_pixels=cache.header.max_pixels))
        except (UnreadableImageError, RppError) as error:
            pictures.append(error)
    return pictures


@torch.inference_mode()
def student_says(
    student: LoadedFeatureModel, vocabulary: Vocabulary, pictures: Sequence[Image.Image | Exception]
) -> dict[int, list[tuple[str, float]]]:
    """By the picture's place, the classes that a student puts first, with their probabilities at T = 1."""
    readable = {place: one for place, one in enumerate(pictures) if isinstance(one, Image.Image)}
    if not readable:
        return {}
    model = student.model
    view = np.zeros(5, dtype=np.uint16)  # the evaluation view does not read it
    pixels = np.stack([model.renderer.render(one, 0, view) for one in readable.values()])
    classes = Vocabulary(vocabulary.names, vocabulary.ids, student.templates)
    head = ClassHead(model.class_features(classes), model.logit_scale)
    logits_BC = head.logits(model.image_features(torch.from_numpy(pixels)).cpu())
    best = logits_BC.softmax(-1).topk(min(TOP, len(vocabulary)))
    return {
        place: [(vocabulary.names[c], share) for c, share in zip(classes_B, shares, strict=True)]
        for place, classes_B, shares in zip(
            readable, best.indices.tolist(), best.values.tolist(), strict=True
        )
    }


def thumbnail(picture: Image.Image) -> str:
    """A small JPEG as a `data:` URI."""
    small = picture.copy()
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
