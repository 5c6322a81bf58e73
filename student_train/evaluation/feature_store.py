"""Features of frozen models that several evaluations share, in memory or on disk.

Runs of a sweep that prompt the text tower alone have the frozen model's image features, and those that
prompt the image tower alone its class features. They are computed by the first evaluation that needs them.

Shapes: N images, C classes, D embedding.
"""

import hashlib
import json
import os
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from student_train.evaluation.models import StudentFeatures
from teacher_cache.classes.vocabulary import Vocabulary
from teacher_cache.errors import UsageError
from teacher_cache.files.atomic_write import atomic_write
from teacher_cache.images.table import SampleTable
from teacher_cache.store.checksums import checksum
from teacher_cache.store.vocabularies import vocabulary_digest
from teacher_cache.teacher.teacher import Teacher


@dataclass(frozen=True)
class StoredFeatures:
    """Features of images or classes.

    Attributes:
        features: unit features [N, D] or [C, D] float32, on the CPU.
        skipped: of images those that cannot be read, with row, key and reason.
    """

    features: Tensor
    skipped: list[dict[str, Any]] = field(default_factory=list)


class FeatureStore:
    """Features by a key of plain values: each in a file of `folder`, or in memory without a folder.

    A file that is damaged counts as missing. Where nothing can be written, or the disk is full, nothing is
    kept, and features are computed again.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._kept: dict[str, StoredFeatures] = {}

    def find(self, key: dict[str, Any]) -> StoredFeatures | None:
        """Return the features of a key; None if they are not stored."""
        text = _text(key)
        if text not in self._kept and self._folder is not None:
            with (
                suppress(OSError, SafetensorError, ValueError, KeyError, TypeError),
                safe_open(_path(self._folder, text), "pt") as file,
            ):
                record = json.loads(file.metadata()["record"])
                features = file.get_tensor("features")
                if record["key"] == key and record["checksum"] == checksum(features.numpy()):
                    self._kept[text] = StoredFeatures(features, record["skipped"])
        return self._kept.get(text)

    def keep(self, key: dict[str, Any], found: StoredFeatures) -> None:
        """Store the features of a key."""
        text = _text(key)
        self._kept[text] = found
        if self._folder is not None:
            features = found.features.contiguous()
            fields = {"key": key, "skipped": found.skipped, "checksum": checksum(features.numpy())}
            # safetensors raises an error of its own on a full disk; a folder of that name is a UsageError
            with suppress(OSError, SafetensorError, UsageError):
                self._folder.mkdir(parents=True, exist_ok=True)
                # two runs of a sweep may compute the same features at the same time
                with atomic_write(_path(self._folder, text), shared=True) as temporary:
                    save_file({"features": features}, temporary, {"record": json.dumps(fields)})


def _text(key: dict[str, Any]) -> str:
    return json.dumps(key, sort_keys=True)


def _path(folder: Path, text: str) -> Path:
    return folder / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.safetensors"


def image_key(model: Teacher, samples: SampleTable, max_pixels: int) -> dict[str, Any] | None:
    """Return the key of a model's features of images; None if they are of this student alone."""
    if samples.origin is None or (isinstance(model, StudentFeatures) and model.has_image_prompts):
        return None
    return {
        "features": "images",
        "tower": model.image_tower,
        "images": [samples.digest, samples.origin.fingerprint, _changed(samples)],
        "max_pixels": max_pixels,
        **_computed_on(model),
    }


def class_features(store: FeatureStore, model: Teacher, vocabulary: Vocabulary) -> Tensor:
    """Return `model.class_features(vocabulary)`, [C, D] float32; those of a frozen text tower are stored."""
    if isinstance(model, StudentFeatures) and "text" in model.student.prompts:
        return model.class_features(vocabulary)
    key = {
        "features": "classes",
        "tower": f"{model.loaded.digest} in {model.precision}",
        "vocabulary": vocabulary_digest(vocabulary),
        **_computed_on(model),
    }
    found = store.find(key)
    if found is None:
        found = StoredFeatures(model.class_features(vocabulary))
        store.keep(key, found)
    return found.features


def _changed(samples: SampleTable) -> str:
    """Return a digest of when the images' files were changed; those of object stores are in the origin."""
    digest = hashlib.sha256()
    for path in dict.fromkeys(location.path for location in samples.locations(slice(None))):
        with suppress(OSError):
            digest.update(f"{path}\0{os.stat(path).st_mtime_ns}\0".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _computed_on(model: Teacher) -> dict[str, str]:
    return {"device": model.device.type, "torch": torch.__version__, "open_clip": open_clip.__version__}
