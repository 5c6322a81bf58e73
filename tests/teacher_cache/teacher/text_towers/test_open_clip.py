"""The parts of open_clip's towers, and the towers that cannot carry prompts."""

import open_clip
import pytest
import torch

from teacher_cache.errors import UnsupportedTowerError
from teacher_cache.teacher import text_towers
from teacher_cache.teacher.openclip import vision_transformer
from teacher_cache.teacher.text_towers import text_parts
from tests.models import loaded


@pytest.mark.parametrize("config", ["gelu", "quickgelu", "custom", "attn-pool"])
def test_parts_of_towers_that_can_carry_prompts(config: str) -> None:
    model = loaded(config).model
    parts = text_parts(model)
    assert len(parts.blocks) == len(vision_transformer(model).transformer.resblocks) == 3
    tokens = open_clip.tokenize(["a photo of a cat.", "dog"])
    assert parts.pool_positions(tokens).tolist() == [7, 2]  # the full stop is a token


def test_towers_that_cannot_carry_prompts_are_named_with_those_that_can() -> None:
    with pytest.raises(UnsupportedTowerError, match=r"bidirectional text tower.*what works: .*ViT-B-16"):
        text_parts(loaded("siglip-text").model)
    with pytest.raises(UnsupportedTowerError, match=r"ModifiedResNet cannot carry prompts.*what works"):
        vision_transformer(loaded("resnet").model)
    coca = open_clip.create_model("coca_base", load_weights=False, device="meta")
    with pytest.raises(UnsupportedTowerError, match=r"model class CoCa cannot carry text prompts"):
        text_parts(coca)


def test_a_mistake_in_another_layout_is_not_blamed_on_open_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_towers, "LAYOUTS", (lambda model: model.no_such_name,))
    with pytest.raises(AttributeError, match="no_such_name"):
        text_towers.text_parts(torch.nn.Linear(1, 1))
