"""Agreement with the teacher, whether it is right or wrong."""

import torch.nn.functional as F

from student_train.evaluation.evaluators.evaluator import Evaluator, Scores, Task
from teacher_cache.errors import UsageError


class Agreement(Evaluator):
    """`agreement`: share of images with the teacher's first class; `kl`: mean over images of
    KL(softmax(z_teacher / T) ‖ softmax(z / T)) in nats."""

    needs_teacher = True

    def __init__(self, task: Task) -> None:
        self._temperature = task.temperature
        self._same, self._kl, self._images = 0, 0.0, 0

    def update(self, scores: Scores) -> None:
        """Add a batch of images."""
        teacher_BC = scores.teacher_logits_BC
        if teacher_BC is None:
            raise UsageError("agreement needs a teacher's logits")
        self._same += int((scores.logits_BC.argmax(1) == teacher_BC.argmax(1)).sum())
        own, theirs = ((z / self._temperature).log_softmax(-1) for z in (scores.logits_BC, teacher_BC))
        self._kl += float(F.kl_div(own, theirs, reduction="sum", log_target=True))
        self._images += len(teacher_BC)

    def figures(self) -> dict[str, float]:
        """Return figures over all images so far by name."""
        return {"agreement": self._same / self._images, "kl": self._kl / self._images}
