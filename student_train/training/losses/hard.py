"""The hard loss: cross-entropy with the labels of the samples."""

import torch
import torch.nn.functional as F
from torch import Tensor

from student_train.training.losses.term import LossTerm, StepLogits


class HardLoss(LossTerm):
    """CE(y, softmax(z_s)), the mean over the samples that have a label; 0 if none has one."""

    weight = 1.0

    def __call__(self, logits: StepLogits) -> Tensor:
        """See `LossTerm`."""
        labelled_B = logits.targets_B >= 0
        targets = logits.targets_B[labelled_B]
        hard_logits_BC = logits.student_BC.float()[labelled_B]
        if logits.correction:
            negatives = torch.ones_like(hard_logits_BC).scatter_(1, targets[:, None], 0)
            hard_logits_BC = hard_logits_BC + logits.correction * negatives
        loss = F.cross_entropy(hard_logits_BC, targets, reduction="sum")
        return logits.labelled_share * (loss / max(1, len(hard_logits_BC)))
