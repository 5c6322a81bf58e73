"""timm's blocks of `Eva`: `EvaBlock`, and `EvaBlockPostNorm` with the norms behind.

Projections may be one matrix or three, with biases for some of them; rotary position embeddings are applied
by the tower.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from student_train.compat.timm import is_timm, joined
from student_train.model.vision_towers.vision_parts import Attention, Block, unsupported


def eva_block(block: Any) -> Block | None:
    """Return a block of timm's Eva with open_clip's names; None for other classes.

    Raises:
        UnsupportedTowerError: its attention computes more than open_clip's.
    """
    behind = is_timm(block, "EvaBlockPostNorm")
    if not behind and not is_timm(block, "EvaBlock"):
        return None
    attn = block.attn
    if not is_timm(attn, "EvaAttention") and not is_timm(attn, "AttentionRope"):
        raise unsupported(f"a vision tower with timm's {type(attn).__name__}")
    if getattr(attn, "gate", None) is not None:
        raise unsupported("a vision tower with gated attention")
    if getattr(attn, "num_kv_groups", 1) != 1:
        raise unsupported("a vision tower with fewer heads of keys than of queries")
    weight, bias = _projections(attn)
    return Block(
        module=block,
        attn=Attention(
            num_heads=attn.num_heads,
            in_proj_weight=weight,
            in_proj_bias=bias,
            ln_q=attn.q_norm,
            ln_k=attn.k_norm,
            ln_inner=attn.norm,
            out_proj=attn.proj,
        ),
        ln_1=nn.Identity() if behind else block.norm1,
        ls_1=block.norm1 if behind else _layer_scale(block.gamma_1),
        ln_2=nn.Identity() if behind else block.norm2,
        mlp=block.mlp,
        ls_2=block.norm2 if behind else _layer_scale(block.gamma_2),
    )


def _projections(attn: Any) -> tuple[Tensor, Tensor | None]:
    """Return weight [3 W, W] and bias [3 W] of the three projections."""
    if attn.qkv is None:
        each = (attn.q_proj, attn.k_proj, attn.v_proj)
        weight = joined(*(layer.weight for layer in each))
        assert weight is not None
        return weight, joined(*(layer.bias for layer in each))
    own = (getattr(attn, f"{name}_bias", None) for name in "qkv")
    return attn.qkv.weight, joined(*own) if attn.qkv.bias is None else attn.qkv.bias


def _layer_scale(gamma_W: Tensor | None) -> Callable[[Tensor], Tensor]:
    return nn.Identity() if gamma_W is None else partial(torch.mul, gamma_W)
