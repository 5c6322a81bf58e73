"""Load a frozen model that settings name, in place of the teacher's."""

import logging
from typing import Any

import torch

from student_train.model.student import Load
from teacher_cache.conventions import ConventionOptions, recorded_conventions
from teacher_cache.model_names import is_weights_file
from teacher_cache.teacher.openclip import LoadedModel, load_model

log = logging.getLogger(__name__)


def load_named_model(
    model: str,
    pretrained: str | None,
    weights_like: str | None = None,
    teacher: dict[str, Any] | None = None,
    device: torch.device | str = "cpu",
    load: Load = load_model,
) -> LoadedModel:
    """Load a frozen model with the conventions of its tag, folder or file.

    Args:
        model, pretrained: as for `load_model`.
        weights_like: pretrained tag whose conventions a weights file has.
        teacher: the record of a cache's teacher. If the weights file has its weights, which may have moved,
            the model keeps the recorded conventions.
        load: loads the model; see `load_student`.

    Raises:
        UsageError: as `load_model`.
    """
    recorded = recorded_conventions(teacher) if teacher else None
    if teacher and recorded and weights_like is None and is_weights_file(pretrained):
        base = load(model, pretrained, device, recorded)
        if base.digest == teacher["weights_digest"]:
            return base
    base = load(model, pretrained, device, ConventionOptions(weights_like=weights_like))
    for note in base.notes:
        log.warning(note)
    return base
