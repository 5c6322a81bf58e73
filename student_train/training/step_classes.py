"""The classes of a step: which ones are sampled, the labels' positions among them, the student's features.

Shapes: B samples, C classes of the step, D embedding.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from student_train.data.order import subset_classes
from student_train.model.full_texts import FullTexts
from student_train.model.packing import PackedTexts
from student_train.model.student import PromptedCLIP
from student_train.training.distributed import Processes
from student_train.training.settings import TrainSettings
from teacher_cache.device_copies import pinned
from teacher_cache.errors import UsageError
from teacher_cache.softlabels import TeacherCache
from teacher_cache.teacher.teacher import Teacher


class StepClasses:
    """Chooses the classes of each step's softmax: all of the run's, or sampled ones."""

    def __init__(self, settings: TrainSettings, classes_in_vocabulary: int) -> None:
        self._all = torch.from_numpy(subset_classes(classes_in_vocabulary, settings.class_subset))
        k = settings.classes_per_step
        self._k, self._seed = len(self._all) if k == "all" else k, settings.seed

    @property
    def same(self) -> bool:
        """Whether every step has the same classes."""
        return self._k >= len(self._all)

    def choose(self, step_labels: Tensor, step: int) -> tuple[Tensor, float]:
        """The classes of the step, ascending [C] int64, and the correction of sampled negatives' logits.

        Args:
            step_labels: hard labels of the whole step, -1 = none.
        """
        classes = self._all
        if self.same:
            return classes, 0.0
        generator = torch.Generator().manual_seed((self._seed * 1_000_003 + step) % 2**63)
        labelled = step_labels[step_labels >= 0] - classes[0]
        sampled = sample_classes(labelled, len(classes), self._k, generator)
        return classes[0] + sampled, sampling_correction(self._k, len(classes))


def check_classes_per_step(settings: TrainSettings, labels: NDArray[np.int32], num_classes: int) -> None:
    """Refuse fewer classes per step than a batch can have.

    Args:
        labels: of all rows of the run, -1 = none.
        num_classes: of the vocabulary.

    Raises:
        UsageError: with the number of classes that a batch can have.
    """
    k = settings.classes_per_step
    if k == "all" or k >= len(subset_classes(num_classes, settings.class_subset)):
        return
    most = min(settings.batch_size, int(np.count_nonzero(np.bincount(labels[labels >= 0]))))
    if k < most:
        raise UsageError(
            f"--classes-per-step {k}: fewer than the {most} classes that one batch can have; use at least "
            f"{most}, or a smaller --batch-size"
        )


def label_positions(labels_B: Tensor, step_classes_C: Tensor) -> Tensor:
    """Position of each label among the ascending step classes, [B] int64; -1 stays -1."""
    positions = torch.searchsorted(step_classes_C, labels_B)
    return torch.where(labels_B >= 0, positions, -1)


def sample_classes(labels_B: Tensor, num_classes: int, k: int, generator: torch.Generator) -> Tensor:
    """Sample a step's classes: those of the batch, and random others (POMP, arXiv 2304.04704).

    Args:
        labels_B: hard labels of the batch, int64, all ≥ 0, of at most K classes.
        k: classes per step, K.
        generator: of the random classes, on the CPU.

    Returns:
        [K] int64, ascending, without duplicates.

    Raises:
        ValueError: the batch has more than K classes.
    """
    present = labels_B.unique()
    if len(present) > k:
        raise ValueError(f"the batch has {len(present)} classes, more than K = {k}")
    drawn = torch.randperm(num_classes, generator=generator)
    others = drawn[~torch.isin(drawn, present)][: k - len(present)]
    return torch.cat([present, others]).sort().values


def sampling_correction(k: int, num_classes: int) -> float:
    """-ln((K - 1) / (C - 1)): each sampled negative stands for (C - 1) / (K - 1) of them.

    Then the expected denominator of the softmax is the full one's. Natural logarithm (POMP's code has log10).
    """
    return -math.log((k - 1) / (num_classes - 1))


class StepText:
    """Computes the student's class features of a step; they are fixed if no text prompt learns."""

    def __init__(
        self, student: PromptedCLIP, cache: TeacherCache, processes: Processes, device: torch.device
    ) -> None:
        self.student, self._processes, self._device = student, processes, device
        self._all: PackedTexts | FullTexts | None = None
        self.fixed_CD: Tensor | None = None
        if not student.settings.has_prompts("text"):
            same = student.base.digest == cache.teacher["weights_digest"]
            teacher = Teacher(student.base, device)
            features = cache.class_features if same else teacher.class_features(cache.vocabulary)
            self.fixed_CD = features.to(device)
        elif "text" in student.prompts and not any(
            p.requires_grad for p in student.prompts["text"].parameters()
        ):
            self.fixed_CD = student.class_features(cache.vocabulary.names)
        else:
            self.tokens = student.tokenize_names(cache.vocabulary.names)

    def texts(self, step_classes_C: Tensor, same: bool) -> PackedTexts | FullTexts | None:
        """Pack the texts of the classes that this process encodes; None if the features are fixed.

        Args:
            step_classes_C: classes of the step.
            same: whether every step has these classes; then they are packed once, on the run's device.
                Others stay on the CPU, ready to be copied.
        """
        if self.fixed_CD is not None:
            return None
        if not same:
            own = self.tokens[self._processes.own_classes(step_classes_C)]
            packed = self.student.pack_texts(own, torch.device("cpu"))
            return packed.with_tensors({n: pinned(x, self._device) for n, x in packed.tensors().items()})
        if self._all is None:
            self._all = self.student.pack_texts(self.tokens[self._processes.own_classes(step_classes_C)])
        return self._all

    def class_features(self, step_classes_C: Tensor, texts: PackedTexts | FullTexts | None) -> Tensor:
        """Unit class features of the given classes, [C, D] float32; each process computes its share.

        Args:
            step_classes_C: on the run's device.
            texts: of these classes, from `texts`.
        """
        if self.fixed_CD is not None:
            return self.fixed_CD[step_classes_C]
        assert texts is not None
        features_ND = self.student.encode_text(texts, normalize=True).float()
        return self._processes.gather_classes(features_ND, len(step_classes_C))
