"""The parts of a causal text tower, named the same for every model.

Shapes: B texts, T tokens, W text width, D embedding.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from teacher_cache.errors import UnsupportedTowerError

WORKING_TOWERS = (
    "open_clip models with their own causal text transformer (ViT-B-32, ViT-B-16, ViT-L-14, ViT-H-14, "
    "ViT-g-14, ViT-bigG-14 and their -quickgelu, -336 and similar forms)"
)


@dataclass(frozen=True)
class TextParts:
    """The parts of a causal text tower.

    Attributes:
        token_embedding: token ids to rows of width W.
        positional_embedding: one row for each position, [positions, W].
        blocks: modules that are called as open_clip's residual attention blocks. A student with text prompts
            also reads `ln_1`, `attn`, `ln_2` and `mlp` of each (`student_train/model/towers.py`).
        ln_final: the norm in front of the projection.
        projection: W to D, as a module, as a matrix [W, D], or None for none.
        pool: which position becomes the text feature: that of the largest token id, or of the first `eos_id`.
        eos_id: id of the end-of-text token.
        attn_mask: the causal mask that is added to attention, [positions, positions].
    """

    token_embedding: nn.Embedding
    positional_embedding: Tensor
    blocks: nn.ModuleList
    ln_final: nn.Module
    projection: nn.Module | Tensor | None
    pool: Literal["argmax", "eos"]
    eos_id: int
    attn_mask: Tensor

    def pool_positions(self, tokens_BT: Tensor) -> Tensor:
        """Return the position whose output is the text feature, [B] int64."""
        if self.pool == "argmax":
            return tokens_BT.argmax(dim=-1)
        return (tokens_BT == self.eos_id).int().argmax(dim=-1)

    def project(self, pooled_BW: Tensor) -> Tensor:
        """Project text features of width W to the joint embedding, [B, D]."""
        if self.projection is None:
            return pooled_BW
        if isinstance(self.projection, nn.Module):
            projected: Tensor = self.projection(pooled_BW)
            return projected
        return pooled_BW @ self.projection


Layout = Callable[[nn.Module], TextParts | None]


def unsupported(what: str) -> UnsupportedTowerError:
    """Return the error for a tower whose features prompts cannot change as they do in a causal one."""
    return UnsupportedTowerError(
        f"{what} cannot carry text prompts; what works: {WORKING_TOWERS}; `rpp models` lists all"
    )
