"""Copies of frozen models: weights in half precision change no bit of what autocast computes."""

from collections.abc import Iterator

import open_clip
import pytest
import timm
import torch
from torch import Tensor

from teacher_cache.teacher.frozen_copy import frozen_copy, weights_of_products
from teacher_cache.teacher.teacher import Teacher
from tests.models import loaded

CPU = torch.device("cpu")
PIXELS = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
CONFIGS = ("gelu", "quickgelu", "custom", "attn-pool", "resnet")
TIMM = ("test_vit", "test_efficientnet", "test_resnet", "test_nfnet", "test_byobnet", "test_convnext")


@pytest.fixture(params=[True, False], ids=["fast-attention", "as-on-cuda"])
def fast_path(request: pytest.FixtureRequest) -> Iterator[bool]:
    """With and without the fast path of torch's attention, which under autocast only a CPU takes."""
    torch.backends.mha.set_fastpath_enabled(request.param)
    yield request.param
    torch.backends.mha.set_fastpath_enabled(True)


def autocast_features(model: torch.nn.Module, images: Tensor, dtype: torch.dtype) -> Tensor:
    with torch.inference_mode(), torch.autocast("cpu", dtype=dtype):
        features: Tensor = model(images)
    return features


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("config", CONFIGS)
def test_open_clip_encoders_compute_the_same_bits(config: str, dtype: torch.dtype, fast_path: bool) -> None:
    visual = loaded(config).model.visual
    half = frozen_copy(visual, CPU, dtype, [visual])
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    expected = autocast_features(visual, images, dtype)
    assert torch.equal(autocast_features(half, images, dtype), expected)
    assert expected.float().std() > 0
    assert {x.dtype for x in visual.parameters()} == {torch.float32}, "the model itself is unchanged"


@pytest.mark.parametrize("name", TIMM)
def test_encoders_of_timm_compute_the_same_bits(name: str) -> None:
    """Convolutions that standardise their weights, among others."""
    torch.manual_seed(0)
    encoder = timm.create_model(name).eval().requires_grad_(False)
    half = frozen_copy(encoder, CPU, torch.bfloat16, [encoder])
    images = torch.randn(2, 3, 160, 160, generator=torch.Generator().manual_seed(1))
    expected = autocast_features(encoder, images, torch.bfloat16)
    assert torch.equal(autocast_features(half, images, torch.bfloat16), expected)
    assert len(list(weights_of_products(encoder, CPU))) > 0


def test_a_block_has_no_float32_weight_but_those_of_its_norms(fast_path: bool) -> None:
    blocks = loaded("gelu").model.visual.transformer.resblocks
    half = frozen_copy(blocks, CPU, torch.bfloat16, [blocks])
    left = {name.partition(".")[2] for name, x in half.named_parameters() if x.dtype == torch.float32}
    norms = {f"ln_{number}.{name}" for number in (1, 2) for name in ("weight", "bias")}
    attention = {"in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias"}
    assert left == norms | ({f"attn.{name}" for name in attention} if fast_path else set())


def test_tensors_are_shared_unless_they_change() -> None:
    model = loaded("gelu").model
    same = frozen_copy(model, CPU)
    assert same is not model
    for (name, ours), theirs in zip(same.named_parameters(), model.parameters(), strict=True):
        assert ours.data_ptr() == theirs.data_ptr(), name
    assert isinstance(same, open_clip.CLIP)
    half = frozen_copy(model, CPU, torch.bfloat16, [model.visual])
    assert half.transformer.resblocks[0].mlp.c_fc.weight.data_ptr() == (
        model.transformer.resblocks[0].mlp.c_fc.weight.data_ptr()
    )


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("config", CONFIGS)
def test_a_teacher_computes_the_same_bits(config: str, precision: str, fast_path: bool) -> None:
    model, dtype = loaded(config), {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    teacher = Teacher(model, CPU, precision)
    plain = Teacher(model, CPU, precision)
    plain.model = model.model  # float32 weights, which autocast casts
    assert torch.equal(teacher.image_features(PIXELS), plain.image_features(PIXELS))
    tokens = model.tokenizer(["a cat", "a grand piano"])
    assert torch.equal(teacher.encode_text(tokens), plain.encode_text(tokens))
    assert teacher.model.visual is not model.model.visual
    assert list(weights_of_products(model.model.visual, CPU)), "those of the model are float32"
    assert not list(weights_of_products(teacher.model.visual, CPU))
    assert dtype in {weight.dtype for weight in teacher.model.visual.parameters()}
