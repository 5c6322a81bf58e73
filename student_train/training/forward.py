"""The forward pass of a step: the student's logits and the teacher's, over the step's classes.

Shapes: B samples of the step in this process, C classes of the step, D embedding.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from student_train.data.join import Batch
from student_train.model.full_texts import FullTexts
from student_train.model.packing import PackedTexts
from student_train.model.student import PromptedCLIP
from student_train.model.text_plan import GIB, TextPlan, free_memory, image_bytes
from student_train.training.distributed import Processes
from student_train.training.losses.term import StepLogits
from student_train.training.settings import TrainSettings
from student_train.training.step_classes import StepClasses, StepText, label_positions
from teacher_cache.device_copies import DeviceCopies, pinned
from teacher_cache.encodings import ClassHead
from teacher_cache.errors import RppError
from teacher_cache.softlabels import TeacherCache
from teacher_cache.teacher.teacher import AUTOCAST
from teacher_cache.views import normalise

LOGIT_COPIES = 8  # of all logits, float32, that a step has at a time: the student's, the teacher's, losses


@dataclass(frozen=True)
class StepInputs:
    """What a step needs beside its batch, prepared while the step before runs.

    Attributes:
        classes: of the step, ascending [C] int64, on the run's device if every step has the same ones,
            otherwise on the CPU.
        targets: positions of the labels among them, [B] int64, on the CPU.
        correction: of sampled negatives' logits.
        texts: of the classes that this process encodes, where `classes` are; None if features are fixed.
    """

    classes: Tensor
    targets: Tensor
    correction: float
    texts: PackedTexts | FullTexts | None


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
        self._all_classes: Tensor | None = None  # on the device
        self._copies = DeviceCopies(device)
        self._head = cache.head.to(device)
        self._scale = float(student.logit_scale.exp())
        self._amp = AUTOCAST.get(settings.precision)

    def prepare(self, batch: Batch, step: int) -> StepInputs:
        """Choose the classes of step `step`, the first of which is 0, and pack their texts.

        Called from the thread that makes batches.
        """
        classes_C, correction = self._classes.choose(batch.step_labels, step)
        texts = self._text.texts(classes_C, self._classes.same)
        targets_B = pinned(label_positions(batch.labels, classes_C), self._device)
        if self._classes.same:
            if self._all_classes is None:
                self._all_classes = classes_C.to(self._device)
            return StepInputs(self._all_classes, targets_B, correction, texts)
        return StepInputs(pinned(classes_C, self._device), targets_B, correction, texts)

    def plan(self) -> TextPlan | None:
        """Return the text tower's plan of the first step; None if class features are fixed.

        The plans of other steps differ only by their classes.
        """
        classes_C, _ = self._classes.choose(torch.empty(0, dtype=torch.int64), 0)
        texts = self._text.texts(classes_C, self._classes.same)
        with self._autocast():
            return None if texts is None else self._student.plan_texts(texts)

    def smaller_plan(self) -> TextPlan | None:
        """Halve the memory of the text tower until its plan changes; None if all are as large."""
        before, memory = self.plan(), self._student.text_memory
        while before is not None and memory is not None and memory > 2**20:
            self._student.text_memory = memory = memory // 2
            plan = self.plan()
            if plan is not None and plan.peak_bytes < before.peak_bytes:
                return plan
        return None

    def free_memory(self, samples: int) -> int:
        """Return the bytes that are left for the text tower beside a step's images and logits.

        Args:
            samples: of a step in this process.
        """
        free = free_memory(self._device)
        if self._device.type == "cpu":
            return free
        logits = LOGIT_COPIES * 4 * samples * len(self._head.class_features_CD)
        with self._autocast():
            images = image_bytes(self._student.clip.visual, self._student.tower_prompts("vision"), samples)
        return max(GIB // 4, free - images - logits)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self._device.type, dtype=self._amp, enabled=self._amp is not None)

    def __call__(self, batch: Batch, inputs: StepInputs) -> StepLogits:
        """Return the logits of a step on the run's device. The caller does not wait for them."""
        texts = inputs.texts
        if texts is not None:
            texts = texts.with_tensors(self._copies(texts.tensors()))
        copied = self._copies({"classes": inputs.classes, "targets": inputs.targets})
        batch, classes_C = batch.with_tensors(self._copies(batch.tensors())), copied["classes"]
        with self._autocast():
            image_features_BD = encode_batch(self._student, batch)
            class_features_CD = self._text.class_features(classes_C, texts)
        # logits in float32 on both sides: at scale 100, bfloat16 would round them by tenths
        student_BC = ClassHead(class_features_CD, self._scale).logits(image_features_BD)
        return StepLogits(
            student_BC,
            self._teacher_logits(batch, classes_C) if batch.teacher else student_BC,
            copied["targets"],
            inputs.correction,
            batch.share,
            batch.labelled_share,
        )

    def _teacher_logits(self, batch: Batch, classes_C: Tensor) -> Tensor:
        """[B, C] float32."""
        all_classes = len(classes_C) == len(self._head.class_features_CD)
        chosen = None if all_classes else classes_C
        return self._cache.encoding.logits(batch.teacher, self._head, self._settings.temperature, chosen)


def encode_batch(student: PromptedCLIP, batch: Batch) -> Tensor:
    """The student's unit image features, [B, D]: those of the cache, or computed from pixels.

    Args:
        batch: with its tensors on the student's device.

    Raises:
        RppError: the batch has neither.
    """
    if batch.student_features is not None:
        return F.normalize(batch.student_features.float(), dim=-1)
    if batch.pixels is None:
        raise RppError("a batch has neither pixels nor features")
    preprocess = student.base.preprocess
    features: Tensor = student.encode_image(
        normalise(batch.pixels, preprocess.mean, preprocess.std), normalize=True
    )
    return features
