"""Entropy of the teacher's soft labels by temperature, and soft labels and predictions of a few pictures.

Shapes: B rows, C classes, D embedding.
"""

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from student_train.evaluation.models import FeatureModels, LoadedFeatureModel
from student_train.evaluation.settings import ModelSettings
from student_train.runs.record import places_of_cache
from teacher_cache.classes.vocabulary import Vocabulary
from teacher_cache.encodings import ClassHead
from teacher_cache.errors import RppError, UsageError
from teacher_cache.files.remote import is_remote
from teacher_cache.images.decode import UnreadableImageError, decode_image
from teacher_cache.images.reader import ImageReader
from teacher_cache.softlabels import TeacherCache, open_cache
from teacher_cache.stats import entropy, sample_rows, teacher_statistics
from teacher_cache.store.cache_store import CacheStore

TEMPERATURES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
PICTURE_TEMPERATURES = (0.5, 1.0, 4.0)  # unless a sweep has others
SAMPLE = 512  # rows
OF_EACH_KIND = 2
TOP = 5
THUMBNAIL = 144  # pixels


@dataclass(frozen=True)
class Picture:
    """A picture with the likely classes of teacher and student.

    Attributes:
        kind: why it was selected.
        key: key of the sample.
        data: a `data:` URI of a small JPEG; empty if it cannot be read, for the reason `why`.
        label: its hard label, or None.
        teacher: the likeliest classes, each with its probability at each temperature.
        student: likewise, at temperature 1; empty without a student.
    """

    kind: str
    key: str
    data: str
    why: str
    label: str | None
    teacher: list[tuple[str, list[float]]]
    student: list[tuple[str, float]]


def open_recorded_cache(run: Path, record: dict[str, Any], place: str | None = None) -> TeacherCache:
    """Open the cache that a run was trained on.

    Args:
        run: the run's folder.
        record: its `settings.json`.
        place: where the cache is now; None looks where it was, and at the same place relative to the run.

    Raises:
        RppError: it does not exist, cannot be read, or is another one.
    """
    places = places_of_cache(run, record) if place is None else [place]
    wrong = None
    for found in places:
        if not is_remote(found) and not CacheStore.exists(found):
            continue
        cache = open_cache(found, record["settings"].get("vocabulary"))
        differs = _difference(cache, record["cache"])
        if differs is None:
            return cache
        wrong = wrong or UsageError(
            f"{cache.path} is not the cache that the run was trained on ({differs} differs); give that one "
            "with --cache"
        )
    raise wrong or UsageError(f"no cache at {' nor at '.join(places)}; give its place with --cache")


def _difference(cache: TeacherCache, recorded: dict[str, Any]) -> str | None:
    """Return the name of a field in which a cache differs from the recorded one; None if it is the same."""
    if recorded["teacher"]["weights_digest"] != cache.teacher["weights_digest"]:
        return "weights_digest"
    digests = ("sample_table_digest", "vocabulary_digest")
    return next((name for name in digests if recorded.get(name) != getattr(cache.header, name)), None)


def served_temperatures(cache: TeacherCache, temperatures: Iterable[float]) -> list[float]:
    """Return the temperatures, ascending, at which the cache's encoding has soft labels."""
    kept = []
    for temperature in sorted(set(temperatures)):
        try:
            cache.encoding.require_temperature(temperature)
        except UsageError:
            continue
        kept.append(temperature)
    return kept


def entropies(cache: TeacherCache, temperatures: Sequence[float]) -> tuple[int, list[tuple[float, float]]]:
    """Return the number of sampled rows, and (temperature, mean entropy in nats) of their soft labels."""
    found = teacher_statistics(cache, temperatures, sample=SAMPLE)
    return found["rows"], [(one["temperature"], one["entropy"]) for one in found["temperatures"]]


def typical_rows(cache: TeacherCache) -> list[tuple[int, str]]:
    """Select rows of a random sample, each with the reason; the same rows in every call.

    They are those on which the teacher is most certain and right, least certain, and most certain and wrong.
    """
    rows = sample_rows(cache, SAMPLE, seed=0)
    labels = cache.labels[rows]
    certainty, first, uncertainty = np.empty(len(rows)), np.empty(len(rows), np.int64), np.empty(len(rows))
    for at, stored in cache.stored_pieces(rows):
        logits_BC = cache.finite(cache.encoding.logits(stored, cache.head, 1.0))
        best = logits_BC.softmax(-1).max(-1)
        certainty[at], first[at] = best.values.numpy(), best.indices.numpy()
        uncertainty[at] = entropy(logits_BC).numpy()
    right, wrong = (labels >= 0) & (first == labels), (labels >= 0) & (first != labels)
    kinds = (
        ("certain and right", certainty, right),
        ("uncertain", uncertainty, np.ones_like(right)),
        ("certain and wrong", certainty, wrong),
    )
    selected: dict[int, str] = {}
    for kind, order, among in kinds:
        places = [place for place in np.argsort(-order, kind="stable") if among[place]]
        new = [int(rows[place]) for place in places if int(rows[place]) not in selected]
        selected |= dict.fromkeys(new[:OF_EACH_KIND], kind)
    return list(selected.items())


def load_student(run: Path) -> LoadedFeatureModel:
    """Load the student of a run.

    Raises:
        RppError: it or its frozen model does not exist.
    """
    return FeatureModels().load(ModelSettings(student=str(run)))


def describe_pictures(
    cache: TeacherCache,
    rows: Sequence[tuple[int, str]],
    temperatures: Sequence[float],
    student: LoadedFeatureModel | None,
) -> list[Picture]:
    """Return the pictures of rows with the likely classes of teacher and student."""
    numbers = np.array([row for row, _ in rows], dtype=np.int64)
    pictures, unreadable = read_pictures(cache, numbers)
    predictions = predict_classes(student, cache.vocabulary, pictures) if student and pictures else {}
    names = cache.vocabulary.names
    described = []
    for (row, kind), key in zip(rows, cache.samples.keys(numbers), strict=True):
        by_temperature = [cache.soft_labels([row], temperature)[0] for temperature in temperatures]
        first = by_temperature[0].topk(min(TOP, len(names))).indices.tolist()
        label = int(cache.labels[row])
        described.append(
            Picture(
                kind=kind,
                key=key,
                data=thumbnail(pictures[row]) if row in pictures else "",
                why=unreadable.get(row, ""),
                label=names[label] if label >= 0 else None,
                teacher=[(names[c], [float(shares[c]) for shares in by_temperature]) for c in first],
                student=predictions.get(row, []),
            )
        )
    return described


def read_pictures(
    cache: TeacherCache, rows: NDArray[np.int64]
) -> tuple[dict[int, NDArray[np.uint8]], dict[int, str]]:
    """Return the pictures by row, and for rows whose picture cannot be read the reason."""
    reader = ImageReader()
    pictures, unreadable = {}, {}
    for row, location in zip(rows.tolist(), cache.samples.locations(rows), strict=True):
        try:
            pictures[row] = decode_image(reader.read(location), max_pixels=cache.header.max_pixels)
        except (UnreadableImageError, RppError) as error:
            unreadable[row] = str(error)
    return pictures, unreadable


@torch.inference_mode()
def predict_classes(
    student: LoadedFeatureModel, vocabulary: Vocabulary, pictures: Mapping[int, NDArray[np.uint8]]
) -> dict[int, list[tuple[str, float]]]:
    """Return the likeliest classes of a student at T = 1, with probabilities, by the row of the picture."""
    model = student.model
    pixels = np.stack([model.renderer.render_evaluation(one) for one in pictures.values()])
    classes = Vocabulary(vocabulary.names, vocabulary.ids, student.templates)
    head = ClassHead(model.class_features(classes), model.logit_scale)
    logits_BC = head.logits(model.image_features(torch.from_numpy(pixels)).cpu())
    best = logits_BC.softmax(-1).topk(min(TOP, len(vocabulary)))
    return {
        row: [(vocabulary.names[c], share) for c, share in zip(found, shares, strict=True)]
        for row, found, shares in zip(pictures, best.indices.tolist(), best.values.tolist(), strict=True)
    }


def thumbnail(picture: NDArray[np.uint8]) -> str:
    """Return a small JPEG as a `data:` URI."""
    small = Image.fromarray(picture)
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
