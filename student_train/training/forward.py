"""The forward pass of a step: the student's logits and the teacher's, over the step's classes.

Shapes: B samples of the step in this process, C classes of the step, D embedding.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from student_train.data.join import Batch
from student_train.model.student import PromptedCLIP
from student_train.training.distributed import Processes
from student_train.training.losses.term import StepLogits
from student_train.training.settings import TrainSettings
from student_train.training.step_classes import StepClasses, StepText, label_positions
from teacher_cache.encodings import ClassHead
from teacher_cache.errors import RppError
from teacher_cache.softlabels import TeacherCache
from teacher_cache.teacher.teacher import AUTOCAST
from teacher_cache.views import normalise


class Forward:
    """Turns a batch into logits."""

    def __init__(
        self,
        settings: TrainSettings,
        cache: TeacherCache,
        student: PromptedCLIP,
        processes: Processes,
        device: torch.device,
    ) -> None:
        self._settings, self._cache, self._student, self._device = settings, cache, student, device
        self._classes = StepClasses(settings, len(cache.vocabulary))
        self._text = StepText(student, cache, processes, device)
        self._head = cache.head.to(device)
        self._scale = float(student.logit_scale.exp())
        self._amp = AUTOCAST.get(settings.precision)

    def __call__(self, batch: Batch, step: int) -> StepLogits:
        """Return the logits of step `step`, the first of which is 0, on the run's device."""
        classes_C, correction = self._classes.choose(batch.step_labels, step)
        with torch.autocast(self._device.type, dtype=self._amp, enabled=self._amp is not None):
            image_features_BD = encode_batch(self._student, batch, self._device)
            class_features_CD = self._text.class_features(classes_C)
        # logits in float32 on both sides: at scale 100, bfloat16 would round them by tenths
        student_BC = ClassHead(class_features_CD, self._scale).logits(image_features_BD)
        return StepLogits(
            student_BC,
            self._teacher_logits(batch, classes_C) if batch.teacher else student_BC,
            label_positions(batch.labels, classes_C).to(self._device),
            correction,
            batch.share,
            batch.labelled_share,
        )

    def _teacher_logits(self, batch: Batch, classes_C: Tensor) -> Tensor:
        """[B, C] float32."""
        stored = {name: values.to(self._device) for name, values in batch.teacher.items()}
        all_classes = len(classes_C) == len(self._head.class_features_CD)
        chosen = None if all_classes else classes_C.to(self._device)
        return self._cache.encoding.logits(stored, self._head, self._settings.temperature, chosen)


def encode_batch(student: PromptedCLIP, batch: Batch, device: torch.device) -> Tensor:
    """The student's unit image features, [B, D]: those of the cache, or computed from pixels.

    Raises:
        RppError: the batch has neither.
    """
    if batch.student_features is not None:
        return F.normalize(batch.student_features.to(device).float(), dim=-1)
    if batch.pixels is None:
        raise RppError("a batch has neither pixels nor features")
    preprocess = student.base.preprocess
    pixels = batch.pixels.to(device, non_blocking=True)
    features: Tensor = student.encode_image(
        normalise(pixels, preprocess.mean, preprocess.std), normalize=True
    )
    return features
