"""Encoding `factored`: unit image features in float16.

z = s · F·Wᵀ is the exact rank-D factorisation of the N × C logit tensor: every temperature and every subset
of classes is exact up to the float16 rounding of F (≤ 0.02 logits at scale 100).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from teacher_cache.encodings.encoding import ArraySpec, ClassHead, Encoding, StoredArrays

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor


class Factored(Encoding):
    """Features in float16, 2 · D bytes a view."""

    name = "factored"
    keeps_image_features = True

    def arrays(self, embedding: int, classes: int) -> dict[str, ArraySpec]:
        """`image_features` [D] float16."""
        return {"image_features": ArraySpec((("feature", embedding),), "float16")}

    def encode(self, features_BD: Tensor, head: ClassHead) -> dict[str, NDArray[Any]]:
        """Round to float16."""
        return {"image_features": features_BD.cpu().numpy().astype("float16")}

    def logits(
        self, stored: StoredArrays, head: ClassHead, temperature: float = 1.0, classes: Tensor | None = None
    ) -> Tensor:
        """Return s · f·w."""
        return head.logits(self.features(stored), classes)

    def image_features(self, stored: StoredArrays) -> Tensor:
        """Return the features in float16."""
        return self.features(stored).half()

    def features(self, stored: StoredArrays) -> Tensor:
        """Return the unit features in the precision that they have: [B, D] float16."""
        return stored["image_features"]
