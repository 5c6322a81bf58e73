"""Small forms of the timm models that open_clip's configurations name: three blocks of width 64."""

from functools import partial
from typing import Any

import timm
from timm.layers import HybridEmbed, SwiGLUPacked
from timm.models import register_model
from timm.models.vision_transformer import ResPostBlock
from timm.models.vision_transformer_hybrid import ConvStem
from timm.models.vitamin import VitCfg, VitConvCfg
from torch import nn

# Vision towers of timm, as open_clip's configurations use them: name, pooling, projection, image size.
TIMM_TOWERS = {
    "timm-siglip": ("small_siglip", "map", "none", 32),
    "timm-clip-vit": ("small_clip_vit", "token", None, 32),
    "registers": ("small_registers", "avg", "linear", 32),
    "norms-behind": ("small_norms_behind", "token", "mlp", 32),
    "eva01": ("small_eva01", "token", None, 32),
    "eva02": ("small_eva02", "token", None, 32),
    "eva02-enormous": ("small_eva02_enormous", "token", None, 32),
    "pe-core": ("small_pe_core", "map", None, 32),
    "rope-mixed": ("small_rope_mixed", "", "linear", 32),
    "rope-registers": ("small_rope_registers", "", "linear", 32),
    "vitamin": ("small_vitamin", "", "linear", 64),
    "mobileclip-b": ("small_mobileclip", "token", None, 64),
}

SMALL = {"img_size": 32, "embed_dim": 64, "depth": 3, "num_heads": 2}


def small(name: str, options: dict[str, Any], **more: Any) -> nn.Module:
    return timm.create_model(name, **{**SMALL, **options, **more})


@register_model
def small_siglip(pretrained: bool = False, **options: Any) -> nn.Module:
    return small("vit_base_patch16_siglip_224", options, patch_size=8)


@register_model
def small_clip_vit(pretrained: bool = False, **options: Any) -> nn.Module:
    return small("vit_large_patch14_clip_224", options, patch_size=8)


@register_model
def small_registers(pretrained: bool = False, **options: Any) -> nn.Module:
    every = {"qk_norm": True, "scale_attn_norm": True, "scale_mlp_norm": True, "init_values": 0.5}
    return small("vit_base_patch16_224", options, patch_size=8, reg_tokens=2, qkv_bias=False, **every)


@register_model
def small_norms_behind(pretrained: bool = False, **options: Any) -> nn.Module:
    behind = {"block_fn": ResPostBlock, "mlp_layer": SwiGLUPacked, "init_values": 0.7}
    return small("vit_base_patch16_224", options, patch_size=8, **behind)


@register_model
def small_eva01(pretrained: bool = False, **options: Any) -> nn.Module:
    return small("eva_giant_patch14_224", options, patch_size=8)


@register_model
def small_eva02(pretrained: bool = False, **options: Any) -> nn.Module:
    return small("eva02_base_patch16_clip_224", options, patch_size=8, init_values=0.5)


@register_model
def small_eva02_enormous(pretrained: bool = False, **options: Any) -> nn.Module:
    return small("eva02_enormous_patch14_clip_224", options, patch_size=8)


@register_model
def small_pe_core(pretrained: bool = False, **options: Any) -> nn.Module:
    return small(
        "vit_pe_core_base_patch16_224", options, patch_size=8, attn_pool_num_heads=2, init_values=0.5
    )


@register_model
def small_rope_mixed(pretrained: bool = False, **options: Any) -> nn.Module:
    return small("vit_small_patch16_rope_mixed_224", options, patch_size=8, init_values=0.5)


@register_model
def small_rope_registers(pretrained: bool = False, **options: Any) -> nn.Module:
    return small(
        "vit_medium_patch16_rope_reg1_gap_256", options, patch_size=8, num_reg_tokens=2, init_values=0.5
    )


@register_model
def small_vitamin(pretrained: bool = False, **options: Any) -> nn.Module:
    conv = VitConvCfg(norm_layer="layernorm2d", norm_eps=1e-6)
    stages = VitCfg(embed_dim=(16, 32, 64), depths=(1, 1, 1), stem_width=16, conv_cfg=conv, head_type="1d")
    return small("vitamin_small_224", options, img_size=64, embed_cfg=stages)


@register_model
def small_mobileclip(pretrained: bool = False, **options: Any) -> nn.Module:
    stem = ConvStem(channels=(16, 16, 64), stride=(4, 2, 2), kernel_size=(4, 2, 2), act_layer=nn.GELU)
    embed = partial(HybridEmbed, backbone=stem, proj=False)
    return small("vit_base_mci_224", options, img_size=64, embed_layer=embed)
