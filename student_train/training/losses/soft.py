"""The soft loss: distillation of the teacher's soft labels."""

import torch.nn.functional as F
from torch import Tensor

from student_train.training.losses.term import LossTerm, StepLogits


class SoftLoss(LossTerm):
    """T² · KL(softmax(z_t / T) ‖ softmax(z_s / T)), the mean over the samples.

    RPP, arXiv 2409.06166; T² keeps the size of the gradient equal over temperatures (Hinton et al., arXiv
    1503.02531). Over sampled classes both distributions are renormalised among these.
    """

    reads_teacher = True

    @property
    def weight(self) -> float:
        """λ."""
        return self.settings.soft_weight

    def __call__(self, logits: StepLogits) -> Tensor:
        """See `LossTerm`."""
        temperature = self.settings.temperature
        divergence = F.kl_div(
            F.log_softmax(logits.student_BC.float() / temperature, dim=-1),
            F.log_softmax(logits.teacher_BC.float() / temperature, dim=-1),
            reduction="batchmean",
            log_target=True,
        )
        return logits.share * (temperature**2 * divergence)
