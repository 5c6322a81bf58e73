"""How well a student, or the frozen model as it is, tells classes apart on images it was not trained on.

Knows image sources and metrics; how images and names become features is the models' business.

Shapes: N images, B batch, C classes, D embedding.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from student_train.join import ClassSubset, subset_classes
from student_train.stored import read_provenance
from student_train.student import PromptedCLIP, load_student
from teacher_cache.errors import UsageError
from teacher_cache.images import ImageReader, SampleTable, UnreadableImageError, decode_image, index_images
from teacher_cache.openclip import load_model
from teacher_cache.options import Place
from teacher_cache.progress import counting
from teacher_cache.store import CacheStore
from teacher_cache.teacher import AUTOCAST, Precision, Teacher, choose_device
from teacher_cache.views import ViewRenderer, normalise
from teacher_cache.vocabulary import DEFAULT_TEMPLATE, Duplicates, Lemma, Vocabulary, load_vocabulary

ZERO_SHOT = "zero-shot"


class ModelSettings(BaseModel):
    """Which model looks at images, and which classes it knows."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    student: str = Field(description="a run's folder, or zero-shot for the cache's frozen model")
    classes: str = Field(description="vocabulary: a known name or a file")
    cache: Place | None = Field(
        default=None, description="the cache whose model and templates zero-shot means"
    )
    model: str | None = Field(
        default=None, description="where the frozen model is now [default: where it was at training]"
    )
    pretrained: str | None = Field(default=None, description="its pretrained tag or weights file now")
    lemma: Lemma = Field(default="first", description="which of a synset's names to use")
    duplicates: Duplicates = Field(default="lemma", description="what to do with names that occur twice")
    precision: Precision = Field(default="fp32", description="autocast precision")
    device: str = Field(default="auto", description="auto, cpu, cuda or cuda:N")


class EvalSettings(ModelSettings):
    """Settings of an evaluation."""

    images: str = Field(description="tar shards, Parquet or an image folder")
    class_subset: ClassSubset = Field(default="all", description="all, base (first half) or new classes")
    batch_size: int = Field(default=64, ge=1, description="images a forward pass")
    threads: int = Field(default=min(16, os.cpu_count() or 1), ge=1, description="threads that decode images")


class FeatureModel(Protocol):
    """What evaluation needs of a model. `Teacher` is one."""

    renderer: ViewRenderer

    @property
    def logit_scale(self) -> float:
        """The factor s of its logits."""
        ...

    def image_features(self, pixels_BCHW: Tensor) -> Tensor:
        """Unit features [B, D] float32 of uint8 pixels."""
        ...

    def class_features(self, vocabulary: Vocabulary) -> Tensor:
        """Unit class features [C, D] float32 on the CPU."""
        ...


class StudentFeatures:
    """A student as a `FeatureModel`; without text prompts, names are read through the templates."""

    def __init__(self, student: PromptedCLIP, device: torch.device, precision: Precision = "fp32") -> None:
        self.student, self.device, self.precision = student.to(device).eval(), device, precision
        self.renderer = ViewRenderer(student.base.preprocess)

    @property
    def logit_scale(self) -> float:
        """The factor s of its logits."""
        return float(self.student.logit_scale.exp())

    @torch.inference_mode()
    def image_features(self, pixels_BCHW: Tensor) -> Tensor:
        """Unit features [B, D] float32 of uint8 pixels."""
        preprocess = self.student.base.preprocess
        pixels = normalise(pixels_BCHW.to(self.device), preprocess.mean, preprocess.std)
        dtype = AUTOCAST.get(self.precision)
        with torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None):
            features = self.student.encode_image(pixels)
        return F.normalize(features.float(), dim=-1)

    @torch.inference_mode()
    def class_features(self, vocabulary: Vocabulary) -> Tensor:
        """Unit class features [C, D] float32 on the CPU."""
        if "text" not in self.student.prompts:
            return Teacher(self.student.base, self.device, self.precision).class_features(vocabulary)
        return self.student.class_features(vocabulary.names).float().cpu()


@dataclass(frozen=True)
class EncodedImages:
    """Unit features [N, D] and labels [N] of the images that could be read, in source order."""

    features: Tensor
    labels: Tensor
    skipped: list[dict[str, Any]]


def encode_images(
    model: FeatureModel, samples: SampleTable, batch_size: int = 64, threads: int = 4
) -> EncodedImages:
    """Unit features of the evaluation view of every labelled image, [N, D] float32.

    Images that cannot be read are left out and listed.
    """
    labelled = np.flatnonzero(samples.labels >= 0)
    reader = ImageReader()

    def pixels(location: tuple[str, int, int]) -> NDArray[np.uint8] | UnreadableImageError:
        try:
            image = decode_image(reader.read(*location))
        except UnreadableImageError as error:
            return error
        return model.renderer.render(image, 0, np.zeros(5, dtype=np.uint16))

    features, rows, skipped = [], [], []
    with ThreadPoolExecutor(threads) as pool, counting("images", len(labelled)) as counter:
        for start in range(0, len(labelled), batch_size):
            batch = labelled[start : start + batch_size]
            decoded = list(pool.map(pixels, samples.locations(batch)))
            good = [found for found in decoded if isinstance(found, np.ndarray)]
            for row, found in zip(batch.tolist(), decoded, strict=True):
                if isinstance(found, UnreadableImageError):
                    skipped.append(
                        {"row": row, "key": samples.keys(batch[batch == row])[0], "reason": str(found)}
                    )
                else:
                    rows.append(row)
            if good:
                features.append(model.image_features(torch.from_numpy(np.stack(good))).cpu())
            counter(len(batch))
    if not features:
        raise UsageError("no labelled image could be read")
    labels = torch.from_numpy(samples.labels[rows].astype(np.int64))
    return EncodedImages(torch.cat(features), labels, skipped)


def top_classes(features_ND: Tensor, class_features_CD: Tensor, k: int = 5, chunk: int = 4096) -> Tensor:
    """The k most likely classes of each image, best first, [N, min(k, C)] int64."""
    k = min(k, len(class_features_CD))
    parts = [(part @ class_features_CD.T).topk(k).indices for part in features_ND.split(chunk)]
    return torch.cat(parts)


def accuracy(encoded: EncodedImages, class_features_CD: Tensor, classes: NDArray[np.int64]) -> dict[str, Any]:
    """Top-1 and top-5 accuracy among `classes`, over the images of these classes.

    Args:
        class_features_CD: features of the whole vocabulary.
        classes: ascending class indices to choose among.

    Returns:
        top1, top5 (shares of 1), samples, classes, and `predictions`: [samples] the first choices.
    """
    chosen = torch.from_numpy(classes)
    inside = torch.isin(encoded.labels, chosen)
    if not inside.any():
        raise UsageError("no image of the asked classes")
    labels = encoded.labels[inside]
    top = chosen[top_classes(encoded.features[inside], class_features_CD[chosen])]
    hits = top == labels[:, None]
    return {
        "top1": float(hits[:, 0].double().mean()),
        "top5": float(hits.any(1).double().mean()),
        "samples": len(labels),
        "classes": len(chosen),
        "predictions": top[:, 0],
    }


def harmonic_mean(a: float, b: float) -> float:
    """Of base and new accuracy, as the base-to-new protocol reports it."""
    return 2 * a * b / (a + b) if a + b else 0.0


def run_templates(student: str) -> tuple[str, ...]:
    """Templates of the cache that a student was trained on; they matter to students without text prompts.

    Raises:
        UsageError: its run's settings, or the `config.json` beside it, cannot be read.
    """
    recorded = read_provenance(Path(student))
    return tuple(recorded["templates"]) if recorded else (DEFAULT_TEMPLATE,)


def load_feature_model(settings: ModelSettings) -> tuple[FeatureModel, tuple[str, ...]]:
    """The model to evaluate and the templates it reads names through."""
    device = choose_device(settings.device)
    if settings.student != ZERO_SHOT:
        student = load_student(settings.student, settings.model, settings.pretrained)
        return StudentFeatures(student, device, settings.precision), run_templates(settings.student)
    if settings.cache is None:
        raise UsageError("--student zero-shot needs --cache: its model and templates are meant")
    store = CacheStore.open(settings.cache)
    teacher = store.header.teacher
    if settings.model is None:
        loaded = load_model(teacher["model"], settings.pretrained or teacher["pretrained"])
    else:
        loaded = load_model(settings.model, settings.pretrained)
    if loaded.digest != teacher["weights_digest"]:
        raise UsageError(
            f"{loaded.name} has weights {loaded.digest} now, the cache {settings.cache} was made with "
            f"{teacher['weights_digest']}"
        )
    return Teacher(loaded, device, settings.precision), store.vocabulary().templates


def load_with_classes(settings: ModelSettings) -> tuple[FeatureModel, Vocabulary]:
    """The model, and the classes with the templates that it reads their names through."""
    model, templates = load_feature_model(settings)
    names = load_vocabulary(settings.classes, lemma=settings.lemma, duplicates=settings.duplicates)
    return model, Vocabulary(names.names, names.ids, templates)


def evaluate(settings: EvalSettings) -> dict[str, Any]:
    """Accuracy of a student, or of the frozen model, on an image source.

    Returns:
        top1, top5, samples, classes, skipped (images that could not be read), without_label (samples that
        were left out for having no class of the vocabulary), notes (remarks on the images), student, images.

    Raises:
        UsageError: no such run, images without labels, or labels that do not fit the vocabulary.
    """
    model, vocabulary = load_with_classes(settings)
    samples, notes = index_images(settings.images, vocabulary)
    encoded = encode_images(model, samples, settings.batch_size, settings.threads)
    classes = subset_classes(len(vocabulary), settings.class_subset)
    result = accuracy(encoded, model.class_features(vocabulary), classes)
    result.pop("predictions")
    return {
        **result,
        "skipped": len(encoded.skipped),
        "without_label": int((samples.labels < 0).sum()),
        "notes": notes,
        "student": settings.student,
        "images": settings.images,
    }
