"""Prompts in timm's vision towers against hooks on the untouched model, and against timm's own forward."""

import pytest
import torch
from torch import Tensor

from student_train.model import towers
from student_train.model.settings import PromptSettings
from student_train.model.student import PromptedCLIP
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
