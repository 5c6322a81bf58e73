"""Export a student's class features as zero-shot weights for detectors, segmenters and scripts.

Shapes: C classes, D embedding.
"""

import json
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import save_file

from student_train.evaluation.models import load_with_classes
from student_train.interchange.settings import ClassifierSettings
from teacher_cache.errors import RppError
from teacher_cache.files.atomic_write import atomic_write, atomic_write_text, make_folder

SAFETENSORS, NPY, CLASSES = "classifier.safetensors", "classifier.npy", "classes.json"


def export_classifier(settings: ClassifierSettings) -> dict[str, Path]:
    """Write the unit class features of a student, or of the frozen model, for a vocabulary.

    Returns:
        Three files by name. `classifier.safetensors`: `class_features` [C, D] float32 and `logit_scale`, the
        factor s in logits = s · f·w; of a sigmoid model also `logit_bias`, b in sigmoid(s · f·w + b).
        `classifier.npy`: the same features as a plain array [C, D] float32, as Detic and ZSSeg load their
        zero-shot weights. `classes.json`: names and ids in the order of the rows.

    Raises:
        UsageError: no such run or vocabulary, or the folder cannot be created.
        RppError: a file cannot be written, as on a full disk.
    """
    model, vocabulary = load_with_classes(settings)
    features_CD = model.class_features(vocabulary).contiguous()
    make_folder(settings.out)
    classes = {"names": list(vocabulary.names), "ids": list(vocabulary.ids)}
    files = {name: settings.out / name for name in (SAFETENSORS, NPY, CLASSES)}
    try:
        tensors = {"class_features": features_CD, "logit_scale": features_CD.new_tensor(model.logit_scale)}
        if (bias := model.loaded.logit_bias) is not None:
            tensors["logit_bias"] = features_CD.new_tensor(bias)
        with atomic_write(files[SAFETENSORS]) as path:
            save_file(tensors, path)
        with atomic_write(files[NPY]) as path, open(path, "wb") as file:
            np.save(file, features_CD.numpy(), allow_pickle=False)
        atomic_write_text(files[CLASSES], json.dumps(classes, ensure_ascii=False, indent=1))
    except (OSError, SafetensorError) as error:
        raise RppError(f"{settings.out} cannot be written: {error}") from error
    return files
