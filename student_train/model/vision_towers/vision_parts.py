"""The parts of a vision tower that prompts need, named the same for every model.

Shapes: B images, S rows before the prompts, G of them patches, T rows, N heads, H head width, W tower width,
D embedding.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from teacher_cache.errors import UnsupportedTowerError

WORKING_TOWERS = (
    "open_clip's own VisionTransformer (ViT-B-16 and similar models), and timm's VisionTransformer and Eva "
    "(SigLIP, EVA02, PE-Core, ViTamin, MobileCLIP-B); `rpp models` lists all"
)


@dataclass(frozen=True)
class VisionParts:
    """The parts of a vision tower.

    Attributes:
        blocks: with the names of open_clip's residual attention blocks: `ln_1`, `attn`, `ln_attn`, `ls_1`,
            `ln_2`, `mlp`, `ls_2`, `modules()` and `parameters()`.
        width: W.
        rows: class token, registers and patches, S.
        pooled_rows: how many of them, the first ones, pooling reads.
        embed: images [B, 3, height, width] to the input of the blocks [B, S, W], and the blocks to run, which
            may depend on the image size.
        pool: images and the output of the last block, [B, S or pooled_rows, W], to features [B, D].
    """

    blocks: Sequence[Any]
    width: int
    rows: int
    pooled_rows: int
    embed: Callable[[Tensor], tuple[Tensor, Sequence[Any]]]
    pool: Callable[[Tensor, Tensor], Tensor]


Layout = Callable[[Any], VisionParts | None]


CONVOLUTIONAL = "it is convolutional, and prompts are rows that attention reads"
# Classes that open_clip's configurations name.
REASONS = {
    "ModifiedResNet": CONVOLUTIONAL,
    "ConvNeXt": CONVOLUTIONAL,
    "FastVit": CONVOLUTIONAL,
    "SwinTransformer": "it attends within windows of patches",
    "VisionTransformerRelPos": "its attention has a bias for each pair of patches",
}


def unsupported(what: str, kind: str = "") -> UnsupportedTowerError:
    """Return the error for a vision tower that prompts cannot join.

    Args:
        what: the tower, or what it has.
        kind: its class, of which the reason is known.
    """
    reason = f": {REASONS[kind]}" if kind in REASONS else ""
    return UnsupportedTowerError(f"{what} cannot carry prompts{reason}; what works: {WORKING_TOWERS}")


@dataclass(frozen=True)
class Attention:
    """An attention with the names of open_clip's own.

    Attributes:
        in_proj_weight: projections of query, key and value, [3 W, W].
        in_proj_bias: [3 W], or None.
        ln_q, ln_k: norms of queries and keys, over H.
        ln_inner: norm before the output projection.
        rotate: rotary position embeddings of queries or keys [B, T, N, H]; None without.
    """

    num_heads: int
    in_proj_weight: Tensor
    in_proj_bias: Tensor | None
    ln_q: torch.nn.Module
    ln_k: torch.nn.Module
    ln_inner: torch.nn.Module
    out_proj: torch.nn.Module
    rotate: Callable[[Tensor], Tensor] | None = None


@dataclass(frozen=True)
class Block:
    """A block with the names of open_clip's own: y = x + ls_1(attn(ln_1(x))), y + ls_2(mlp(ln_2(y))).

    Attributes:
        module: the block itself.
    """

    module: torch.nn.Module
    attn: Attention
    ln_1: Callable[[Tensor], Tensor]
    ls_1: Callable[[Tensor], Tensor]
    ln_2: Callable[[Tensor], Tensor]
    mlp: torch.nn.Module
    ls_2: Callable[[Tensor], Tensor]
    ln_attn: Callable[[Tensor], Tensor] = field(default_factory=torch.nn.Identity)

    def modules(self) -> Iterator[torch.nn.Module]:
        """Yield the block's modules."""
        return self.module.modules()

    def parameters(self) -> Iterator[torch.nn.Parameter]:
        """Yield the block's parameters."""
        return self.module.parameters()
