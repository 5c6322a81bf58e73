"""Prompts in timm's vision towers against hooks on the untouched model, and against timm's own forward."""

from typing import Any

import open_clip
import pytest
import timm
import torch
from timm.layers import Attention
from timm.models.vision_transformer import ParallelScalingBlock
from torch import Tensor

from student_train.model import towers
from student_train.model.settings import PromptSettings
from student_train.model.student import PromptedCLIP
from student_train.model.text_plan import image_bytes
from student_train.model.vision_towers import vision_parts
from teacher_cache.errors import UnsupportedTowerError
from tests.models import CONFIGS, TIMM_CONFIGS, loaded
from tests.pairwise import pairwise_cases
from tests.student_train import vision_reference
from tests.student_train.model.test_towers import (
    BLOCKS,
    CARRIES,
    STRUCTURES,
    assert_equal,
    own_and_start,
    student_of,
)


def images_of(config: str, number: int = 4) -> Tensor:
    size = CONFIGS[config]["vision_cfg"]["image_size"]
    return 2 * torch.randn(number, 3, size, size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("config", TIMM_CONFIGS)
def test_depth_0_is_timm(config: str) -> None:
    own, images = loaded(config).model, images_of(config)
    theirs = own.encode_image(images)
    assert theirs.std(dim=0).mean() > 0.1
    for ours in (
        towers.encode_image(own.visual, None, images),
        PromptedCLIP(loaded(config), PromptSettings(prompt_depth=0)).encode_image(images),
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-5 * theirs.abs().max().item(), rtol=0)


@pytest.mark.parametrize(
    ("config", "structure", "carry", "depth"),
    [
        (config, *case)
        for config in TIMM_CONFIGS
        for case in pairwise_cases(STRUCTURES, CARRIES, (1, 2, BLOCKS))
    ],
)
def test_vision_equals_plain(config: str, structure: str, carry: str, depth: int) -> None:
    student = student_of(
        config, "vision", prompt_structure=structure, carry=carry, prompt_depth=depth, prompt_length=3
    )
    prompts = student.tower_prompts("vision")
    assert prompts is not None
    images = images_of(config)
    plain = vision_reference.image_features(student.clip, *own_and_start(prompts), images)
    assert (plain - student.clip.encode_image(images)).abs().max() > 1e-2, "prompts have no effect"
    assert_equal(prompts, student.encode_image(images), plain)


POOLED = [("eva02", 1), ("timm-siglip", 16), ("pe-core", 17), ("vitamin", 16)]


@pytest.mark.parametrize(("config", "pooled"), POOLED)
@pytest.mark.parametrize("carry", CARRIES)
def test_the_last_block_computes_what_pooling_reads(config: str, pooled: int, carry: str) -> None:
    student = student_of(config, "vision", carry=carry, prompt_depth=1, prompt_length=3)
    trunk, rows = student.clip.visual.trunk, []
    watched = [*(block.mlp for block in trunk.blocks), trunk.norm]
    hooks = [part.register_forward_hook(lambda _, x, __: rows.append(x[0].shape[1])) for part in watched]
    student.encode_image(images_of(config))
    for hook in hooks:
        hook.remove()
    behind = trunk.num_prefix_tokens + trunk.patch_embed.num_patches + 3
    assert rows == [behind, behind, pooled, pooled]


SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 1, "num_heads": 2}


def tower_of(name: str, attn: torch.nn.Module | None = None, more: Any = None, **options: Any) -> Any:
    """open_clip's `TimmModel` of a trunk that its configurations cannot name.

    Args:
        attn: in place of the first attention.
        more: attributes of the first attention, which some releases of timm have.
    """
    tower = open_clip.timm_model.TimmModel.__new__(open_clip.timm_model.TimmModel)
    torch.nn.Module.__init__(tower)
    tower.trunk, tower.head = timm.create_model(name, **options).eval(), torch.nn.Identity()
    if attn is not None:
        tower.trunk.blocks[0].attn = attn
    for key, value in (more or {}).items():
        setattr(tower.trunk.blocks[0].attn, key, value)
    return tower


def narrow_heads() -> torch.nn.Module:
    attn = Attention(64, 2)
    attn.qkv = torch.nn.Linear(64, 3 * 32)
    return attn


EVA, VIT = "eva02_base_patch16_clip_224", "vit_base_patch16_224"
GATED = {"gate": torch.nn.Linear(64, 64)}


@pytest.mark.parametrize(
    ("name", "options", "what"),
    [
        ("test_convnext", {}, "the vision tower ConvNeXt of timm"),
        ("vit_relpos_small_patch16_224", {}, "the vision tower VisionTransformerRelPos of timm"),
        (VIT, {**SMALL, "block_fn": ParallelScalingBlock}, "timm's ParallelScalingBlock"),
        (VIT, {**SMALL, "more": GATED}, "gated attention"),
        (VIT, {**SMALL, "attn": narrow_heads()}, "not as wide as its rows"),
        (VIT, {**SMALL, "global_pool": ""}, "without pooling"),
        (EVA, {**SMALL, "more": GATED}, "gated attention"),
        (
            EVA,
            {**SMALL, "more": {"num_kv_groups": 2}},
            "fewer heads",
        ),
        (EVA, {**SMALL, "attn": Attention(64, 2)}, "timm's Attention"),
        (VIT, {**SMALL, "attn": torch.nn.Identity()}, "timm's Identity"),
    ],
)
def test_other_towers_are_named(name: str, options: dict[str, Any], what: str) -> None:
    with pytest.raises(
        UnsupportedTowerError, match=rf"{what}.* cannot carry prompts.*; what works: .*SigLIP"
    ):
        vision_parts(tower_of(name, **options))


def test_a_release_of_timm_that_computes_otherwise_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = PromptSettings(towers="vision")
    block = loaded("timm-siglip").model.visual.trunk.blocks[1]
    own = type(block).forward
    with monkeypatch.context() as patch:
        patch.setattr(type(block), "forward", lambda *given, **more: 1.01 * own(*given, **more))
        with pytest.raises(UnsupportedTowerError, match=r"timm 1\..*differ by .*expected at most 1e-03"):
            PromptedCLIP(loaded("timm-siglip"), settings)
        PromptedCLIP(loaded("timm-siglip"), PromptSettings(towers="text"))
    PromptedCLIP(loaded("timm-siglip"), settings)
    monkeypatch.delattr(block.attn, "num_heads")
    with pytest.raises(UnsupportedTowerError, match=r"release of timm .*'num_heads'.*tested with timm"):
        PromptedCLIP(loaded("timm-siglip"), settings)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("config", ["timm-siglip", "registers", "eva02", "norms-behind", "pe-core"])
def test_the_predicted_peak_of_images_is_the_measured_one(config: str, half: bool, memory_of: Any) -> None:
    """Gates and norms in the MLP count too."""
    student = student_of(config, "vision")
    prompts, images = student.tower_prompts("vision"), images_of(config, 64)
    assert prompts is not None
    with memory_of([*student.clip.parameters(), *prompts.parameters(), images]) as measured:
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            predicted = image_bytes(student.clip.visual, prompts, len(images))
            features = towers.encode_image(student.clip.visual, prompts, images)
        features.sum().backward()
    assert predicted == pytest.approx(measured.peak, rel=0.2)
