"""Evaluate students and the frozen model on a data set.

Computes logits and passes them to the evaluators, which are in `evaluators/`.

Shapes: N images, B batch, C classes, D embedding.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from student_train.evaluation.datasets import Dataset, open_dataset
from student_train.evaluation.evaluators import EVALUATORS, Scores, Task
from student_train.evaluation.feature_store import FeatureStore, class_features
from student_train.evaluation.frozen_names import student_name
from student_train.evaluation.image_features import EncodedImages, cached_images, check_cached, encode_images
from student_train.evaluation.models import FeatureModels, LoadedFeatureModel
from student_train.evaluation.preflight import check_weights_like
from student_train.evaluation.settings import EvalOptions, EvalSettings, ModelOptions, ModelSettings
from teacher_cache.classes.vocabulary import Vocabulary
from teacher_cache.cores import usable_cores
from teacher_cache.errors import RppError, UsageError
from teacher_cache.images.table import SampleTable
from teacher_cache.softlabels import TeacherCache
from teacher_cache.teacher.teacher import Teacher

MOST_DECODING_THREADS = 16
BATCH_LOGITS = 1 << 24  # of a batch of scores: 64 MB
ComparedModel = tuple[LoadedFeatureModel, LoadedFeatureModel | None]


def evaluate(settings: EvalSettings, store: FeatureStore | None = None) -> dict[str, Any]:
    """Evaluate a student, or the frozen model, on a data set.

    Args:
        store: features of frozen models, shared with other evaluations.

    Returns:
        student, images, classes (number to choose among), samples, skipped (images that cannot be read),
        without_label (samples without a class of the vocabulary, which are left out), notes (remarks on the
        images), and the figures by name.

    Raises:
        UsageError: no such run or data set, no labels, or labels that do not fit the vocabulary.
    """
    dataset = open_dataset(settings)
    return evaluate_models(load_models([settings.student], settings), dataset, settings, store)[0]


def load_models(students: str | Sequence[str], options: EvalOptions) -> list[ComparedModel]:
    """Load students, or frozen models, each with its teacher if a metric needs one. Repeated names are loaded
    once.

    Raises:
        UsageError: no such run, cache, model or device.
    """
    students = [students] if isinstance(students, str) else students
    check_weights_like(students, options)
    models, compared = FeatureModels(), []
    shared = options.model_dump(include=set(ModelOptions.model_fields))
    with_teacher = any(EVALUATORS[metric].needs_teacher for metric in options.metrics)
    for student in dict.fromkeys(map(student_name, students)):
        settings = ModelSettings(**shared, student=student)
        model = models.load(settings)
        compared.append((model, models.teacher_of(settings) if with_teacher else None))
    return compared


def evaluate_models(
    models: Sequence[ComparedModel],
    dataset: Dataset,
    options: EvalOptions,
    store: FeatureStore | None = None,
) -> list[dict[str, Any]]:
    """Evaluate several models on one data set; each image is read once.

    Args:
        store: as for `evaluate`.

    Returns:
        The result of `evaluate` for each model.

    Raises:
        UsageError: see `check_evaluation`, or no labelled image can be read.
        RppError: features are not finite.
    """
    check_evaluation(models, dataset, options)
    feature_models = _feature_models(models)
    if isinstance(dataset.source, SampleTable):
        threads = options.threads or min(MOST_DECODING_THREADS, usable_cores())
        encoded = encode_images(
            feature_models, dataset.source, options.batch_size, threads, options.max_pixels, store
        )
    else:
        encoded = cached_images(feature_models, dataset.source)
    notes = list(dataset.notes)
    if encoded.skipped:
        first = encoded.skipped[0]
        notes.append(
            f"{len(encoded.skipped)} images cannot be read; the first is {first['key']}: {first['reason']}"
        )
    distinct = {id(model): model for pair in models for model in pair if model is not None}
    logits = {key: Logits(model, encoded, dataset, store) for key, model in distinct.items()}
    return [
        {
            "student": model.name,
            "images": dataset.images,
            "classes": len(dataset.classes),
            "skipped": len(encoded.skipped),
            "without_label": int((dataset.labels < 0).sum()),
            "notes": notes,
            **figures(
                logits[id(model)],
                logits[id(teacher)] if teacher else None,
                options.metrics,
                options.temperature,
            ),
        }
        for model, teacher in models
    ]


def check_evaluation(models: Sequence[ComparedModel], dataset: Dataset, options: EvalOptions) -> None:
    """Check that models and metrics fit the data set, before an image is read.

    Raises:
        UsageError: a metric does not fit the classes, or a cache has no features of a model.
    """
    if "base-to-new" in options.metrics and dataset.class_subset in ("base", "new"):
        raise UsageError(
            f"base-to-new splits the classes into halves: it cannot be used with "
            f"--class-subset {dataset.class_subset}"
        )
    for metric in options.metrics:
        EVALUATORS[metric](Task(len(dataset.classes), options.temperature))
    if isinstance(dataset.source, TeacherCache):
        check_cached(_feature_models(models), dataset.source)


def _feature_models(models: Sequence[ComparedModel]) -> list[Teacher]:
    return [loaded.model for pair in models for loaded in pair if loaded is not None]


class Logits:
    """Logits of one model for the images of a data set, over the classes to choose among.

    Attributes:
        labels: index of the right class among them, int64 [N].
        classes, ids: their C names and ids.
    """

    def __init__(
        self,
        loaded: LoadedFeatureModel,
        encoded: EncodedImages,
        dataset: Dataset,
        store: FeatureStore | None = None,
    ) -> None:
        """Raises:
        UsageError: no image of these classes.
        RppError: features are not finite.
        """
        chosen_C = torch.from_numpy(dataset.classes)
        rows = torch.isin(encoded.labels, chosen_C).nonzero()[:, 0]
        if len(rows) == 0:
            raise UsageError("no image has one of the requested classes")
        self.labels = torch.searchsorted(chosen_C, encoded.labels[rows])
        vocabulary = dataset.vocabulary
        names, ids = (tuple(kept[c] for c in dataset.classes) for kept in (vocabulary.names, vocabulary.ids))
        self.classes, self.ids = names, ids
        chosen = Vocabulary(names, ids, vocabulary.templates or loaded.templates)
        self._class_features_CD = class_features(store or FeatureStore(), loaded.model, chosen)
        self._image_features_ND = encoded.features[loaded.model.image_tower][rows]
        self._scale = loaded.model.logit_scale
        for what, features in (("class", self._class_features_CD), ("image", self._image_features_ND)):
            if not features.isfinite().all():
                raise RppError(f"{what} features of {loaded.name} are not finite")

    def __getitem__(self, rows: slice) -> Tensor:
        """Return the logits of a range of images, [B, C] float32."""
        return self._scale * (self._image_features_ND[rows] @ self._class_features_CD.T)


def figures(
    own: Logits, teacher: Logits | None, metrics: Sequence[str], temperature: float = 1.0
) -> dict[str, Any]:
    """Compute the figures of metrics, and `samples`, the number of images.

    Raises:
        UsageError: a metric does not fit the classes.
    """
    task = Task(len(own.classes), temperature, own.classes, own.ids)
    evaluators = [EVALUATORS[metric](task) for metric in metrics]
    step = max(1, BATCH_LOGITS // task.classes)
    for first in range(0, len(own.labels), step):
        part = slice(first, first + step)
        scores = Scores(own[part], own.labels[part], teacher[part] if teacher else None)
        for evaluator in evaluators:
            evaluator.update(scores)
    found: dict[str, Any] = {"samples": len(own.labels)}
    for evaluator in evaluators:
        found |= evaluator.figures()
    return found
