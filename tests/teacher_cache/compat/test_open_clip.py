"""With open_clip's private names and without them, the same bits."""

import pickle
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import Compose, InterpolationMode, Resize

from student_train.model.settings import PromptSettings
from student_train.model.student import PromptedCLIP
from teacher_cache.compat import open_clip as fence
from teacher_cache.errors import UnsupportedTowerError
from teacher_cache.teacher.openclip import vision_transformer
from teacher_cache.teacher.teacher import Teacher
from teacher_cache.teacher.text_towers import text_parts
from teacher_cache.views import PillowRenderer, ViewRenderer
from tests.models import loaded
from tests.teacher_cache.inputs import picture

# Both names are missing; one of them; or something else is behind them.
MISSING = [("gone", "gone"), ("gone", "_pool"), ("_embeds", "gone"), ("output_tokens", "training")]
CONFIGS = ("gelu", "custom", "attn-pool")


def prompted(config: str) -> PromptedCLIP:
    student = PromptedCLIP(loaded(config), PromptSettings(towers="vision", prompt_depth=2), seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in student.prompts.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return student


def features_and_gradients(student: PromptedCLIP) -> list[Tensor]:
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    student.prompts.zero_grad(set_to_none=True)
    found = []
    for autocast in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            features = student.encode_image(images)
        assert features.dtype == torch.float32
        features.square().sum().backward()
        found.append(features.detach())
    return found + [p.grad.clone() for p in student.prompts.parameters() if p.grad is not None]


@pytest.mark.parametrize(("embeds", "pool"), MISSING)
@pytest.mark.parametrize("config", CONFIGS)
def test_features_and_gradients_are_the_same_with_hooks(
    config: str, embeds: str, pool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    student = prompted(config)
    expected = features_and_gradients(student)
    visual, passes = vision_transformer(student.clip), []
    counting = visual.register_forward_hook(lambda *_: passes.append(1))
    assert len(expected) > 2
    assert features_and_gradients(student)[0].equal(expected[0])
    assert not passes
    monkeypatch.setattr(fence, "EMBEDS", embeds)
    monkeypatch.setattr(fence, "POOL", pool)
    found = features_and_gradients(student)
    counting.remove()
    if pool != "_pool":  # a forward pass that is ended early calls no hook of its own
        assert len(passes) == 2
    assert len(found) == len(expected)
    assert all(a.equal(b) for a, b in zip(found, expected, strict=True))
    assert not visual.transformer._forward_hooks
    assert not visual.transformer._forward_pre_hooks


def test_a_tower_that_returns_its_tokens_too(monkeypatch: pytest.MonkeyPatch) -> None:
    student = prompted("gelu")
    expected = features_and_gradients(student)
    monkeypatch.setattr(vision_transformer(student.clip), "output_tokens", True)
    monkeypatch.setattr(fence, "POOL", "gone")
    assert all(a.equal(b) for a, b in zip(features_and_gradients(student), expected, strict=True))


class Whole:
    """An evaluation transform that does not show its steps."""

    def __init__(self, transform: Any) -> None:
        self.transform = transform

    def __call__(self, image: Image.Image) -> Tensor:
        return self.transform(image)


@pytest.mark.parametrize("size", [32, (24, 40)])
@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
def test_pixels_are_the_same_if_the_transform_is_inverted(
    mode: str, size: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    preprocess = fence.PreprocessCfg(size=size, resize_mode=mode, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    every = Image.fromarray(np.arange(256 * 3, dtype=np.uint8).reshape(16, 16, 3))  # every value
    images = [np.asarray(image) for image in (picture(1), picture(2, 33, 90), every)]
    expected = [ViewRenderer(preprocess).render_evaluation(image) for image in images]
    own = open_clip.image_transform
    shown = []
    for hidden in (Whole, lambda transform: Compose([*transform.transforms, torch.nn.Identity()])):
        monkeypatch.setattr(open_clip, "image_transform", lambda *a, h=hidden, **more: h(own(*a, **more)))
        renderer = ViewRenderer(preprocess)
        shown.append([renderer.render_evaluation(image) for image in images])
    monkeypatch.undo()
    for found in shown:
        for a, b in zip(found, expected, strict=True):
            assert (a.dtype, a.shape) == (np.uint8, b.shape)
            assert np.array_equal(a, b)


def test_every_pixel_value_survives_the_inversion(monkeypatch: pytest.MonkeyPatch) -> None:
    preprocess = fence.PreprocessCfg(size=16, mean=(0.48, 0.46, 0.41), std=(0.27, 0.26, 0.28))
    values = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    own = open_clip.image_transform
    monkeypatch.setattr(open_clip, "image_transform", lambda *a, **more: Whole(own(*a, **more)))
    found = fence.evaluation_picture(preprocess)(Image.fromarray(values))
    assert np.array_equal(np.asarray(found), values)


def test_open_clips_transform_is_used_in_processes_if_it_has_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without that, a renderer of the same pixels that does not import torch is."""
    preprocess, own = fence.PreprocessCfg(size=16), open_clip.image_transform
    assert isinstance(ViewRenderer(preprocess).plain, PillowRenderer)

    def nearest(*given: Any, **more: Any) -> Compose:
        return Compose([Resize((16, 16), InterpolationMode.NEAREST), *own(*given, **more).transforms])

    monkeypatch.setattr(open_clip, "image_transform", nearest)
    renderer = ViewRenderer(preprocess)
    assert renderer.plain is renderer
    same = pickle.loads(pickle.dumps(renderer.plain))
    image = picture(1)
    assert np.array_equal(same.draw(image, 0, None), renderer.draw(image, 0, None))


def test_renderers_go_to_worker_processes_either_way(monkeypatch: pytest.MonkeyPatch) -> None:
    own, sizes = open_clip.image_transform, []
    for hidden in (False, True):
        if hidden:
            monkeypatch.setattr(open_clip, "image_transform", lambda *a, **more: Whole(own(*a, **more)))
        renderer = pickle.loads(pickle.dumps(ViewRenderer(fence.PreprocessCfg(size=16))))
        sizes.append(renderer.render_evaluation(np.asarray(picture(1))).shape)
    assert sizes == [(3, 16, 16)] * 2


def test_preprocessing_is_that_of_open_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    model = loaded("gelu").model
    said = open_clip.get_model_preprocess_cfg(model)
    monkeypatch.setattr(open_clip, "get_model_preprocess_cfg", lambda _: said | {"of a later release": 1})
    found = fence.preprocessing_of(model)
    assert {name: getattr(found, name) for name in said} == said
    image = picture(3)
    expected = open_clip.image_transform(found.size, is_train=False, mean=found.mean, std=found.std)
    assert fence.evaluation_transform(found)(image).equal(expected(image))


def test_only_classes_of_open_clip_are_recognised() -> None:
    visual = loaded("gelu").model.visual
    assert fence.is_own(visual, "VisionTransformer")
    other = type("VisionTransformer", (torch.nn.Module,), {})()
    assert not fence.is_own(other, "VisionTransformer")


def test_a_teacher_with_other_attribute_names_uses_its_own_encode_text(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base = loaded("gelu")
    tokens = base.tokenizer(["a cat", "a photo of a great horned owl"])
    expected = Teacher(base, torch.device("cpu")).encode_text(tokens)
    monkeypatch.delattr(base.model, "text_pool_type")
    monkeypatch.setattr(base.model, "encode_text", lambda _: expected * 1)
    with pytest.raises(UnsupportedTowerError, match=r"of this release of open_clip .*text_pool_type"):
        text_parts(base.model)
    assert Teacher(base, torch.device("cpu")).encode_text(tokens).equal(expected)
