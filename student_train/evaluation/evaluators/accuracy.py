"""Accuracy: share of images whose class comes first or among the first five, and the mean over classes."""

import torch

from student_train.evaluation.evaluators.evaluator import Evaluator, Scores, Task, top_places


class Accuracy(Evaluator):
    """`top1`, `top5`: shares of the images; `per_class`: mean over the classes that have images of the share
    that comes first, which a frequent class does not dominate."""

    def __init__(self, task: Task) -> None:
        self._images_C = torch.zeros(task.classes, dtype=torch.int64)
        self._first_C = torch.zeros(task.classes, dtype=torch.int64)
        self._among_five = 0

    def update(self, scores: Scores) -> None:
        """Add a batch of images."""
        places_B = top_places(scores.logits_BC, scores.labels_B)
        self._images_C += torch.bincount(scores.labels_B, minlength=len(self._images_C))
        self._first_C += torch.bincount(scores.labels_B[places_B == 0], minlength=len(self._images_C))
        self._among_five += int((places_B < 5).sum())

    def figures(self) -> dict[str, float]:
        """Return figures over all images so far by name."""
        images = int(self._images_C.sum())
        seen = self._images_C > 0
        return {
            "top1": int(self._first_C.sum()) / images,
            "top5": self._among_five / images,
            "per_class": float((self._first_C[seen].double() / self._images_C[seen]).mean()),
        }
