"""Base-to-new generalisation: prompts trained on half of the classes, tested on either half (CoCoOp, arXiv
2203.05557)."""

from student_train.data.order import subset_classes
from student_train.evaluation.evaluators.evaluator import Evaluator, Scores, Task, top_places
from teacher_cache.errors import UsageError


class BaseToNew(Evaluator):
    """`base`, `new`: top-1 among the first half of the classes (rounded up) over its images, and among the
    rest over theirs; `harmonic`: the harmonic mean of both. A half without images has no figure."""

    def __init__(self, task: Task) -> None:
        if task.classes < 2:
            raise UsageError("base-to-new needs at least two classes")
        self._bounds = {
            name: (int(half[0]), int(half[-1]) + 1)
            for name in ("base", "new")
            for half in [subset_classes(task.classes, name)]
        }
        self._right, self._images = (dict.fromkeys(self._bounds, 0) for _ in range(2))

    def update(self, scores: Scores) -> None:
        """Add a batch of images."""
        for name, (first, end) in self._bounds.items():
            inside_B = (scores.labels_B >= first) & (scores.labels_B < end)
            places_B = top_places(scores.logits_BC[inside_B, first:end], scores.labels_B[inside_B] - first)
            self._right[name] += int((places_B == 0).sum())
            self._images[name] += int(inside_B.sum())

    def figures(self) -> dict[str, float]:
        """Return figures over all images so far by name."""
        found = {name: self._right[name] / count for name, count in self._images.items() if count}
        if len(found) == 2:
            found["harmonic"] = harmonic_mean(found["base"], found["new"])
        return found


def harmonic_mean(a: float, b: float) -> float:
    """Return the harmonic mean of base and new accuracy; 0 if both are 0."""
    return 2 * a * b / (a + b) if a + b else 0.0
