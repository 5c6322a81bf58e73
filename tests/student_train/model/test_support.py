"""What open_clip's models can carry: counted, with a reason for the others, and decided as a student is."""

import time
from collections import Counter
from pathlib import Path

import open_clip
import pytest
import torch

from student_train.model.settings import PromptSettings
from student_train.model.student import PromptedCLIP
from student_train.model.support import (
    ModelSupport,
    model_support,
    step_costs,
    supported_models,
    without_weights,
)
from student_train.model.text_plan import row_costs
from student_train.model.vision_towers import vision_parts
from teacher_cache.errors import UnsupportedTowerError, UsageError
from teacher_cache.teacher.openclip import load_model
from tests.models import CONFIGS, write_model


@pytest.fixture(scope="module")
def models() -> dict[str, ModelSupport]:
    start = time.process_time()
    found = {model.model: model for model in supported_models()}
    assert time.process_time() - start < 20, "configurations are read, models are not made"
    return found


def test_every_model_and_tag_of_open_clip_is_listed(models: dict[str, ModelSupport]) -> None:
    assert list(models) == open_clip.list_models()
    tags = [(model.model, tag) for model in models.values() for tag in model.tags]
    assert sorted(tags) == sorted(open_clip.list_pretrained())
    assert all(list(model.preprocessing) == model.tags for model in models.values())
    assert models["ViT-B-16"].preprocessing["openai"]["quick_gelu"]
    assert models["ViT-B-16-SigLIP2"].preprocessing["webli"]["mean"] == (0.5, 0.5, 0.5)


def test_vision_prompts_work_in_all_transformers(models: dict[str, ModelSupport]) -> None:
    """162 of the 196 tags of open_clip 3.3; the others are convolutional."""
    tags = Counter({name: len(model.tags) for name, model in models.items()})
    refused = {name: model.reason or "" for name, model in models.items() if not model.vision}
    assert sum(tags.values()) - sum(tags[name] for name in refused) >= 162
    published = {name: reason for name, reason in refused.items() if tags[name]}
    assert all("it is convolutional" in reason for reason in published.values())
    assert {name.partition("-")[0].partition("x")[0].partition("_")[0] for name in published} == {
        *("RN50", "RN101", "convne", "MobileCLIP", "MobileCLIP2")
    }
    assert all((model.reason is None) == (model.text and model.vision) for model in models.values())


def test_text_prompts_work_in_all_but_towers_of_transformers(models: dict[str, ModelSupport]) -> None:
    """187 of the 196 tags; both towers can have prompts in 153, and one can in each."""
    published = [(model, tag) for model in models.values() for tag in model.tags]
    refused = {model.model: model.reason or "" for model, _ in published if not model.text}
    assert sum(model.text for model, _ in published) >= 187
    assert sum(model.text and model.vision for model, _ in published) >= 153
    assert all(model.text or model.vision for model, _ in published)
    assert all("of the transformers library" in reason for reason in refused.values())
    assert {name.partition("-")[0] for name in refused} == {"nllb", "roberta", "xlm"}
    exact = {name: model.exact_prefix for name, model in models.items()}
    assert exact["ViT-B-16"]
    assert exact["coca_ViT-B-32"]
    assert not exact["ViT-B-16-SigLIP2"]


@pytest.mark.parametrize("config", sorted(CONFIGS))
def test_a_student_agrees(config: str, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", config)
    found = model_support(str(folder))
    assert found.embedding == CONFIGS[config]["embed_dim"]
    for tower, possible in (("text", found.text), ("vision", found.vision)):
        settings = PromptSettings(towers=tower)
        if possible:
            PromptedCLIP(load_model(str(folder)), settings)
        else:
            with pytest.raises(UnsupportedTowerError) as refused:
                PromptedCLIP(load_model(str(folder)), settings)
            assert str(refused.value).partition("; what works")[0] in (found.reason or "")


def test_unknown_models_are_refused() -> None:
    with pytest.raises(
        UsageError, match=r"no model 'ViT-B-61'; near names: .*ViT-B-16.*`rpp models` lists all"
    ):
        model_support("ViT-B-61")
    with pytest.raises(UsageError, match="no model folder"):
        step_costs("./nothing")


def test_costs_are_those_of_the_method() -> None:
    """Rows as docs/method.md counts them; 17.6 GFLOP is what is published of a ViT-B/16's image."""
    costs = step_costs("ViT-B-16")
    assert list(costs) == ["256 images", "1,000 names", "21,841 names"]
    assert [costs[part].rows for part in costs] == [256 * 197, 4_224, 79_072]
    assert costs["256 images"].teraflops == pytest.approx(2 * 256 * 0.0176 * 2, rel=0.05)
    assert costs["21,841 names"].gib == pytest.approx(21, rel=0.1)
    assert list(step_costs("RN50")) == ["1,000 names", "21,841 names"]
    assert list(step_costs("roberta-ViT-B-32")) == ["256 images"]


def test_models_without_weights_have_every_part_of_those_with() -> None:
    config = {
        "embed_dim": 48,
        "vision_cfg": CONFIGS["eva02"]["vision_cfg"],
        "text_cfg": CONFIGS["gelu"]["text_cfg"],
    }
    with without_weights():
        bare = open_clip.CLIP(**config)
    full = open_clip.CLIP(**config)
    assert all(parameter.is_meta for parameter in bare.parameters())
    shapes = [{name: x.shape for name, x in model.state_dict().items()} for model in (bare, full)]
    assert shapes[0] == shapes[1]
    blocks = [vision_parts(model.eval().visual).blocks for model in (bare, full)]
    assert row_costs(blocks[0], 17, 3, 1.0, 4) == row_costs(blocks[1], 17, 3, 1.0, 4)
    assert torch.empty(1).normal_().device.type == "cpu"
