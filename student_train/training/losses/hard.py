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
        logits_BC, targets_B = logits.student_BC.float(), logits.targets_B
        if logits.correction:
            # which class of a sample without a label is left out does not matter
            negatives = torch.ones_like(logits_BC).scatter_(1, targets_B.clamp(min=0)[:, None], 0)
            logits_BC = logits_BC + logits.correction * negatives
        # no selection of labelled rows: their number is known on the device only, and a step must not wait
        loss = F.cross_entropy(logits_BC, targets_B, ignore_index=-1, reduction="sum")
        return logits.labelled_share * (loss / (targets_B >= 0).sum().clamp(min=1))
