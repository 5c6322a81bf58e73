"""Counts of right images by class."""

from typing import Any

import torch

from student_train.evaluation.evaluators.evaluator import Evaluator, Scores, Task, top_places


class ByClass(Evaluator):
    """`by_class`: for each class that has images `[name, images, right]`, the number of its images and of
    those whose class comes first. `by_class_ids`: the ids of these classes in the same order, since classes
    may share a name. Only in JSON; tables leave them out."""

    def __init__(self, task: Task) -> None:
        self._names = task.names or tuple(str(number) for number in range(task.classes))
        self._ids = task.ids or self._names
        self._images_C, self._right_C = (torch.zeros(task.classes, dtype=torch.int64) for _ in range(2))

    def update(self, scores: Scores) -> None:
        """Add a batch of images."""
        right_B = scores.labels_B[top_places(scores.logits_BC, scores.labels_B) == 0]
        self._images_C += torch.bincount(scores.labels_B, minlength=len(self._names))
        self._right_C += torch.bincount(right_B, minlength=len(self._names))

    def figures(self) -> dict[str, Any]:
        """Return figures over all images so far by name."""
        counts = zip(self._names, self._images_C.tolist(), self._right_C.tolist(), strict=True)
        seen = self._images_C.tolist()
        return {
            "by_class": [[name, images, right] for name, images, right in counts if images],
            "by_class_ids": [identity for identity, images in zip(self._ids, seen, strict=True) if images],
        }
