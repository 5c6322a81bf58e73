"""Encoding `factored-int8`: unit image features in 8 bits a component.

Each row is divided by its largest component / 127 and rounded. This scale is not stored: features are unit
vectors, so f ≈ q / |q|.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from teacher_cache.encodings.encoding import ArraySpec, ClassHead, StoredArrays
from teacher_cache.encodings.factored import Factored

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor


class FactoredInt8(Factored):
    """Rounded features, D bytes a view: half of `factored`, at any temperature, for any classes.

    The rounding moves a logit by a standard deviation of about s · max|f| / 440.
    """

    name = "factored-int8"

    def arrays(self, embedding: int, classes: int) -> dict[str, ArraySpec]:
        """`image_features` [D] int8, not yet divided by their norm."""
        return {"image_features": ArraySpec((("feature", embedding),), "int8")}

    def encode(self, features_BD: Tensor, head: ClassHead) -> dict[str, NDArray[Any]]:
        """Scale each row to ±127 and round; a row of zeros stays zero (0 / 0 has no int8)."""
        import torch

        largest_B1 = features_BD.abs().amax(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
        return {"image_features": (features_BD / largest_B1 * 127).round().char().cpu().numpy()}

    def features(self, stored: StoredArrays) -> Tensor:
        """Return q / |q|, [B, D] float32. Rounding it to float16 loses far less than the rounding to q."""
        import torch.nn.functional as F

        return F.normalize(stored["image_features"].float(), dim=1)
