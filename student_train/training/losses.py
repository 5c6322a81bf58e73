"""Hard, soft and sampled softmax: what a step minimises.

Logits in, scalars out; where they come from is the loop's business.

Shapes: B batch, C classes of the step (all of them, or K sampled ones).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from teacher_cache.errors import UsageError


def distillation_loss(
    student_logits_BC: Tensor,
    teacher_logits_BC: Tensor,
    targets_B: Tensor,
    soft_weight: float,
    temperature: float,
    correction: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """CE(y, softmax(z_s)) + λ · T² · KL(softmax(z_t / T) ‖ softmax(z_s / T)), in float32.

    RPP, arXiv 2409.06166; T² keeps the size of the gradient equal over temperatures (Hinton et al., arXiv
    1503.02531). Over sampled classes both soft distributions are renormalised among these.

    Args:
        targets_B: position of the hard label among the C classes, int64; -1 = none.
        soft_weight: λ; 0 leaves the soft labels out.
        temperature: T.
        correction: added, in the hard loss alone, to every logit but that of the target (see
            `sampling_correction`).

    Returns:
        (total, hard, soft), scalars. `hard` is averaged over the rows that have a label (0 if none has),
        `soft` over all rows; it includes T² but not λ.
    """
    logits_BC = student_logits_BC.float()
    labelled_B = targets_B >= 0
    hard_logits_BC = logits_BC[labelled_B]
    if correction:
        negatives = torch.ones_like(hard_logits_BC).scatter_(1, targets_B[labelled_B, None], 0)
        hard_logits_BC = hard_logits_BC + correction * negatives
    hard = F.cross_entropy(hard_logits_BC, targets_B[labelled_B], reduction="sum")
    hard = hard / max(1, len(hard_logits_BC))
    if soft_weight == 0:
        return hard, hard, torch.zeros_like(hard)
    soft = F.kl_div(
        F.log_softmax(logits_BC / temperature, dim=-1),
        F.log_softmax(teacher_logits_BC.float() / temperature, dim=-1),
        reduction="batchmean",
        log_target=True,
    )
    soft = temperature**2 * soft
    return hard + soft_weight * soft, hard, soft


def sample_classes(labels_B: Tensor, num_classes: int, k: int, generator: torch.Generator) -> Tensor:
    """Classes of a step: those of the batch and random others, shared by the batch (POMP, arXiv 2304.04704).

    Args:
        labels_B: hard labels of the batch, int64, all ≥ 0.
        k: classes a step, K.
        generator: decides the others, on the CPU.

    Returns:
        [K] int64, ascending, each once.

    Raises:
        UsageError: the batch alone has more than K classes.
    """
    present = labels_B.unique()
    if len(present) > k:
        raise UsageError(
            f"{k} classes a step are fewer than the {len(present)} classes of one batch; take more classes "
            "or a smaller batch"
        )
    drawn = torch.randperm(num_classes, generator=generator)
    others = drawn[~torch.isin(drawn, present)][: k - len(present)]
    return torch.cat([present, others]).sort().values


def sampling_correction(k: int, num_classes: int) -> float:
    """-ln((K - 1) / (C - 1)): each sampled negative stands for (C - 1) / (K - 1) of them.

    Then the expected denominator of the softmax is the full one's. Natural logarithm (POMP's code has log10).
    """
    return -math.log((k - 1) / (num_classes - 1))
