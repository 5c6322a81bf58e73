"""Encoding `topk`: the K largest logits of a view, and the total weight of the others at every temperature.

The weight of the other classes, ln Σ exp((z - max) / T), is stored at knots of T and interpolated between
them. The kept probabilities are therefore right at any temperature in the range of the knots. Differences
between the other classes are lost: they share their weight evenly.
"""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from teacher_cache.encodings.encoding import ArraySpec, ClassHead, Encoding, StoredArrays
from teacher_cache.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import Tensor

# Three knots an octave and six of them for each interpolation keep the kept probabilities within 3e-4 of
# the exact ones, everywhere between the knots (benchmarks/encodings.py).
KNOTS_AN_OCTAVE, NEIGHBOURS = 3, 6
KNOTS = tuple(2.0 ** (step / KNOTS_AN_OCTAVE) for step in range(-9, 13))  # temperatures, 1/8 to 16


def interpolation_weights(temperature: float) -> NDArray[np.float64]:
    """Return weights [M] of the values at the knots: Lagrange's polynomial in ln T through the nearest."""
    import numpy as np

    knots, x = np.log(KNOTS), math.log(temperature)
    first = int(np.searchsorted(knots, x)) - NEIGHBOURS // 2
    near = np.arange(NEIGHBOURS) + min(max(first, 0), len(knots) - NEIGHBOURS)
    weights = np.zeros(len(knots))
    for m in near:
        others = knots[near[near != m]]
        weights[m] = np.prod((x - others) / (knots[m] - others))
    return weights


@cache  # each copy to a GPU would wait for it
def _weights_on(temperature: float, device: torch.device) -> Tensor:
    import torch

    with torch.inference_mode(False):
        return torch.tensor(interpolation_weights(temperature), dtype=torch.float32, device=device)


def log_partitions(logits_BC: Tensor) -> Tensor:
    """Return ln Σ exp(z / T) at every knot, [B, M]. Logits of -inf do not count.

    An octave lower in T, every term is squared: three exponentials a logit, not 22. The
    relative error of a sum grows to 1e-5 over the seven octaves.
    """
    largest_B1 = logits_BC.amax(dim=1, keepdim=True)
    log_partition_BM = logits_BC.new_empty(len(logits_BC), len(KNOTS))
    for first in range(len(KNOTS) - KNOTS_AN_OCTAVE, len(KNOTS)):
        terms_BC = ((logits_BC - largest_B1) / KNOTS[first]).exp_()
        for m in range(first, -1, -KNOTS_AN_OCTAVE):
            log_partition_BM[:, m] = terms_BC.sum(dim=1).log_() + largest_B1[:, 0] / KNOTS[m]
            terms_BC.square_()
    return log_partition_BM


class TopK(Encoding):
    """K logits and classes: 4 · K + 92 bytes a view up to 65,536 classes, 6 · K + 92 above."""

    name = "topk"
    option_names: ClassVar = {"k": "topk"}

    k: int = Field(default=100, ge=1, description="classes per view that --encoding topk keeps")

    def require_classes(self, classes: int) -> None:
        """Refuse a vocabulary without a class beside the K."""
        if classes < 2:
            raise UsageError(
                f"--encoding topk needs a vocabulary of at least 2 classes, found {classes}: use --encoding "
                "factored or dense"
            )
        if self.k >= classes:
            raise UsageError(
                f"topk of {self.k} needs a vocabulary of more than its {classes} classes: take a smaller "
                "--topk, or --encoding factored or dense"
            )

    def defaults(self, classes: int) -> dict[str, Any]:
        """Keep all classes but one, if there are fewer than K."""
        return {"k": classes - 1} if 1 < classes <= self.k else {}

    def require_temperature(self, temperature: float) -> None:
        """Refuse temperatures outside the knots, where the weight of the other classes is unknown."""
        super().require_temperature(temperature)
        if not KNOTS[0] <= temperature <= KNOTS[-1]:
            raise UsageError(
                f"temperature {temperature:g}: a cache with the encoding topk has soft labels for "
                f"temperatures from {KNOTS[0]:g} to {KNOTS[-1]:g}"
            )

    def arrays(self, embedding: int, classes: int) -> dict[str, ArraySpec]:
        """`topk_logits` [K] float16, largest first and relative to `max_logit` [1] float32; `topk_classes`
        [K]; `rest_log_partition` [M] float32."""
        return {
            "topk_logits": ArraySpec((("rank", self.k),), "float16"),
            "topk_classes": ArraySpec((("rank", self.k),), "uint16" if classes <= 2**16 else "uint32"),
            "rest_log_partition": ArraySpec((("knot", len(KNOTS)),), "float32"),
            "max_logit": ArraySpec((("max", 1),), "float32"),
        }

    def encode(self, features_BD: Tensor, head: ClassHead) -> dict[str, NDArray[Any]]:
        """Keep the K largest; weigh the others at each knot."""
        logits_BC = head.logits(features_BD)
        top_BK, classes_BK = logits_BC.topk(self.k, dim=1)
        max_B1 = top_BK[:, :1]
        rest_BC = (logits_BC - max_B1).scatter_(1, classes_BK, -math.inf)
        classes_dtype = self.arrays(0, logits_BC.shape[1])["topk_classes"].dtype
        return {
            "topk_logits": (top_BK - max_B1).half().cpu().numpy(),
            "topk_classes": classes_BK.cpu().numpy().astype(classes_dtype),
            "rest_log_partition": log_partitions(rest_BC).cpu().numpy(),
            "max_logit": max_B1.cpu().numpy(),
        }

    def logits(
        self, stored: StoredArrays, head: ClassHead, temperature: float = 1.0, classes: Tensor | None = None
    ) -> Tensor:
        """Return the kept logits; the others get equal logits that add up to their weight at T."""
        self.require_temperature(temperature)
        kept_BK, num_classes = stored["topk_logits"].float(), len(head.class_features_CD)
        weights_M = _weights_on(temperature, kept_BK.device)
        # not as a matrix product, which autocast and TF32 would round
        log_partition_B1 = (stored["rest_log_partition"] * weights_M).sum(dim=1, keepdim=True)
        rest_B1 = temperature * (log_partition_B1 - math.log(num_classes - self.k))
        # rounding or interpolation must not lift another class above a kept one
        rest_B1 = rest_B1.minimum(kept_BK[:, -1:])
        logits_BC = rest_B1.repeat(1, num_classes)
        logits_BC.scatter_(1, stored["topk_classes"].long(), kept_BK)
        if classes is not None:
            logits_BC = logits_BC[:, classes]
        return logits_BC + stored["max_logit"]
