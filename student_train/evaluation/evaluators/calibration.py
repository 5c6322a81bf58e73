"""Expected calibration error: whether a model is right as often as its probabilities claim."""

import torch

from student_train.evaluation.evaluators.evaluator import Evaluator, Scores, Task, top_places

BINS = 15


class Calibration(Evaluator):
    """`ece`: over 15 equal bins of the highest probability p at T = 1, the mean of |share right - mean p|,
    weighted by images (Guo et al., arXiv 1706.04599, equation 3)."""

    def __init__(self, task: Task) -> None:
        self._claimed, self._right = (torch.zeros(BINS, dtype=torch.float64) for _ in range(2))
        self._images = 0

    def update(self, scores: Scores) -> None:
        """Add a batch of images."""
        p_B = scores.logits_BC.softmax(-1).amax(-1).double()
        # bins are open below and closed above, as in the paper; p is never 0
        bins_B = (p_B * BINS).ceil().long().clamp(1, BINS) - 1
        right_B = (top_places(scores.logits_BC, scores.labels_B) == 0).double()
        self._claimed.index_add_(0, bins_B, p_B)
        self._right.index_add_(0, bins_B, right_B)
        self._images += len(p_B)

    def figures(self) -> dict[str, float]:
        """Return figures over all images so far by name."""
        return {"ece": float((self._right - self._claimed).abs().sum()) / self._images}
