"""timm's blocks of `VisionTransformer`: `Block`, and `ResPostBlock` with the norms behind."""

from typing import Any

from torch import nn

from student_train.compat.timm import is_timm
from student_train.model.vision_towers.vision_parts import Attention, Block, unsupported


def vit_block(block: Any) -> Block | None:
    """Return a block of timm's VisionTransformer with open_clip's names; None for other classes.

    Raises:
        UnsupportedTowerError: its attention computes more than open_clip's.
    """
    behind = is_timm(block, "ResPostBlock")
    if not behind and not is_timm(block, "Block"):
        return None
    attn = block.attn
    if not is_timm(attn, "Attention"):
        raise unsupported(f"a vision tower with timm's {type(attn).__name__}")
    if getattr(attn, "gate", None) is not None:
        raise unsupported("a vision tower with gated attention")
    return Block(
        module=block,
        attn=Attention(
            num_heads=attn.num_heads,
            in_proj_weight=attn.qkv.weight,
            in_proj_bias=attn.qkv.bias,
            ln_q=attn.q_norm,
            ln_k=attn.k_norm,
            ln_inner=attn.norm,
            out_proj=attn.proj,
        ),
        ln_1=nn.Identity() if behind else block.norm1,
        ls_1=block.norm1 if behind else block.ls1,
        ln_2=nn.Identity() if behind else block.norm2,
        mlp=block.mlp,
        ls_2=block.norm2 if behind else block.ls2,
    )
