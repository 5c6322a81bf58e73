"""The parts of open_clip's towers, and the towers that cannot carry prompts."""

import copy
from pathlib import Path

import open_clip
import pytest
import torch
from open_clip.hf_model import HFTextEncoder
from transformers import BertConfig

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
    pooled = r"causal text tower pooled by 'last' cannot carry text prompts; what works: .*ViT-B-16"
    with pytest.raises(UnsupportedTowerError, match=pooled):
        text_parts(loaded("causal-last").model)
    with pytest.raises(UnsupportedTowerError, match=r"ModifiedResNet cannot carry prompts.*what works"):
        vision_transformer(loaded("resnet").model)
    with pytest.raises(UnsupportedTowerError, match=r"model class Linear cannot carry text prompts"):
        text_parts(torch.nn.Linear(1, 1))
    coca = copy.deepcopy(loaded("coca").model)
    coca.text.attn_mask = None
    with pytest.raises(UnsupportedTowerError, match="a class token and without a causal mask cannot carry"):
        text_parts(coca)


def test_a_text_tower_of_transformers_is_named(tmp_path: Path) -> None:
    bert = BertConfig(vocab_size=30, hidden_size=8, num_hidden_layers=1, num_attention_heads=1)
    text = HFTextEncoder(
        str(tmp_path), output_dim=8, config=bert, pooler_type="mean_pooler", proj_type="linear"
    )
    model = copy.deepcopy(loaded("causal-last").model)
    model.text = text
    with pytest.raises(UnsupportedTowerError, match=r"of the transformers library \(bert\) cannot carry"):
        text_parts(model)


def test_a_mistake_in_another_layout_is_not_blamed_on_open_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_towers, "LAYOUTS", (lambda model: model.no_such_name,))
    with pytest.raises(AttributeError, match="no_such_name"):
        text_towers.text_parts(torch.nn.Linear(1, 1))
