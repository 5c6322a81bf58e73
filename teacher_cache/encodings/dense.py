"""Encoding `dense`: every logit in float16, below the row's largest one.

float16 rounds a logit of 30 by up to 0.008, but a logit within 1 of the largest by at most 0.0003: likely
classes are nearly exact. The largest logit is kept in float32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from teacher_cache.encodings.encoding import ArraySpec, ClassHead, Encoding, StoredArrays

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

# Above this, a view takes more than 8 KB and `factored` is smaller at any width that CLIP models have.
MANY_CLASSES = 4096


class Dense(Encoding):
    """All logits, 2 · C + 4 bytes a view: for few classes, and for readers without CLIP."""

    name = "dense"

    def notes(self, classes: int) -> list[str]:
        """Name the size and a smaller encoding, if there are many classes."""
        if classes <= MANY_CLASSES:
            return []
        return [
            f"dense takes {self.bytes_a_view(0, classes):,} bytes a view with {classes:,} classes; "
            "--encoding factored keeps every logit in about a thousand"
        ]

    def arrays(self, embedding: int, classes: int) -> dict[str, ArraySpec]:
        """`logits` [C] float16, relative to `max_logit` [1] float32."""
        return {
            "logits": ArraySpec((("class", classes),), "float16"),
            "max_logit": ArraySpec((("max", 1),), "float32"),
        }

    def encode(self, features_BD: Tensor, head: ClassHead) -> dict[str, NDArray[Any]]:
        """Subtract the largest logit and round to float16."""
        logits_BC = head.logits(features_BD)
        max_B1 = logits_BC.amax(dim=1, keepdim=True)
        relative_BC = (logits_BC - max_B1).half()
        return {"logits": relative_BC.cpu().numpy(), "max_logit": max_B1.cpu().numpy()}

    def logits(
        self, stored: StoredArrays, head: ClassHead, temperature: float = 1.0, classes: Tensor | None = None
    ) -> Tensor:
        """Add the largest logit again."""
        relative_BC = stored["logits"] if classes is None else stored["logits"][:, classes]
        return relative_BC.float() + stored["max_logit"]
