"""Which of open_clip's published models can have text prompts, read from configurations and from models."""

from collections import Counter
from typing import Any

import open_clip
import pytest
import torch

from teacher_cache.errors import UnsupportedTowerError
from teacher_cache.teacher.text_towers import is_causal, text_parts, text_support
from tests.models import CONFIGS, loaded

TAGS = Counter(name for name, _ in open_clip.list_pretrained())


def test_text_prompts_work_in_all_but_towers_of_transformers() -> None:
    """187 of the 196 tags of open_clip 3.3; the others are refused in one sentence."""
    reasons = {name: text_support(open_clip.get_model_config(name)) for name in TAGS}
    refused = {name: reason for name, reason in reasons.items() if reason}
    assert sum(TAGS[name] for name in TAGS if name not in refused) >= sum(TAGS.values()) - 9
    assert all("transformers library" in reason for reason in refused.values())
    assert {name.partition("-")[0] for name in refused} <= {"nllb", "roberta", "xlm"}


def meta_model(name: str) -> Any:
    """The model without memory for its weights, and with a small image tower."""
    config = open_clip.get_model_config(name)
    config["vision_cfg"] = {
        "image_size": 32,
        "patch_size": 16,
        "layers": 1,
        "width": 64,
        "output_tokens": True,
    }
    kind = open_clip.CLIP
    if "multimodal_cfg" in config:
        kind = open_clip.CoCa
    elif config.pop("custom_text", False):
        kind = open_clip.CustomTextCLIP
    config.pop("custom_text", None)
    with torch.device("meta"):
        return kind(**config)


@pytest.mark.parametrize(
    "name",
    [
        *("ViT-B-16", "ViT-H-14-worldwide", "EVA02-B-16", "PE-Core-B-16", "coca_ViT-B-32", "MobileCLIP-B"),
        *("ViT-B-16-SigLIP", "ViT-SO400M-16-SigLIP-i18n-256", "ViT-B-16-SigLIP2", "ViT-L-14-CLIPA"),
        *("MobileCLIP2-L-14", "ViTamin-S"),
    ],
)
def test_a_model_agrees_with_its_configuration(name: str) -> None:
    config = open_clip.get_model_config(name)
    assert text_support(config) is None
    parts = text_parts(meta_model(name))
    assert parts.causal == is_causal(config)
    assert parts.context_length == config["text_cfg"]["context_length"]


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_a_loaded_model_agrees_with_its_configuration(name: str) -> None:
    reason = text_support(CONFIGS[name])
    if reason is None:
        assert text_parts(loaded(name).model).causal == is_causal(CONFIGS[name])
    else:
        with pytest.raises(UnsupportedTowerError, match=f"{reason} cannot carry text prompts"):
            text_parts(loaded(name).model)


def test_other_towers_are_refused_with_a_reason() -> None:
    assert text_support({"text_cfg": {"pool_type": "none"}}) == "a causal text tower pooled by 'none'"
    full = {"no_causal_mask": True}
    assert text_support({"text_cfg": {**full, "pool_type": "none"}}) == "a text tower pooled by 'none'"
    assert text_support({"text_cfg": {**full, "embed_cls": True}}) == (
        "a text tower with a class token and without a causal mask"
    )
    assert not is_causal({"text_cfg": {"hf_model_name": "roberta-base"}})
