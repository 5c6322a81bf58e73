"""Families of text towers from the build to the reloaded student: sigmoid models, full towers, CoCa."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from student_train import PromptedCLIP, load_student
from student_train.evaluation.evaluate import evaluate
from student_train.evaluation.settings import EvalSettings
from student_train.interchange.classifier import export_classifier
from student_train.interchange.huggingface import export_huggingface
from student_train.interchange.onnx_tower import export_onnx
from student_train.interchange.settings import ClassifierSettings, HuggingFaceSettings, OnnxSettings
from student_train.model.settings import PromptSettings
from student_train.training.loop import Run, train
from teacher_cache import open_cache
from teacher_cache.errors import RppError
from teacher_cache.teacher.openclip import load_model
from tests.conftest import Shared
from tests.student_train.conftest import PICTURES, build
from tests.student_train.training.test_loop import assert_same_result, metrics, settings

FAMILIES = ("siglip", "siglip2", "clipa", "mobileclip", "coca")


@pytest.fixture(scope="session")
def cache_of(shared: Shared) -> Callable[[str], Path]:
    """A finished cache of a family's small model; read-only."""
    return lambda config: shared(config, lambda folder: build(folder, config)) / f"{config}-0.zarr"


def steps_until(end: int) -> Callable[..., Any]:
    step_of = Run.train_step

    def train_step(run: Run, batch: Any, step: int, with_accuracy: bool) -> Any:
        if step == end:
            raise RppError("enough")
        return step_of(run, batch, step, with_accuracy)

    return train_step


@pytest.mark.parametrize("family", FAMILIES)
def test_a_student_trains_resumes_and_comes_back(
    cache_of: Callable[[str], Path],
    family: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cache = cache_of(family)
    options = {"batch_size": 60, "temperature": 2.0, "prompt_structure": "qkv"}
    if family in ("siglip2", "mobileclip"):
        options["classes_per_step"] = 100
    train(settings(cache, tmp_path / "whole", **options))
    shown = "without a causal mask every class runs at all positions" in capsys.readouterr().err
    assert shown == (family != "coca")
    with monkeypatch.context() as patch:
        patch.setattr(Run, "train_step", steps_until(2))
        with pytest.raises(RppError, match="enough"):
            train(settings(cache, tmp_path / "run", checkpoint_every=1, **options))
    assert len(metrics(tmp_path / "run")) == 2
    train(settings(cache, tmp_path / "run", checkpoint_every=1, resume=True, **options))
    assert_same_result(tmp_path / "whole", tmp_path / "run")
    lines = metrics(tmp_path / "run")
    assert len(lines) == 5
    assert all(0 < line["gradient_norm"] < 1e3 for line in lines)
    plan = json.loads((tmp_path / "run" / "settings.json").read_text())["text_plan"]
    assert (plan["full_rows"] > 0) == (family != "coca")

    figures = evaluate(EvalSettings(student=str(tmp_path / "run"), cache=str(cache), images=str(cache)))
    assert 0 <= figures["top1"] <= 1
    student = load_student(tmp_path / "run")
    names = open_cache(cache).vocabulary.names[:20]
    features = student.class_features(names)
    assert features.shape == (20, student.base.config["embed_dim"])
    tokens = student.tokenizer([f"a photo of a {name}." for name in names])
    torch.testing.assert_close(student.encode_text(tokens, normalize=True), features)

    export_huggingface(HuggingFaceSettings(student=tmp_path / "run", out=tmp_path / "hub"))
    again = load_student(tmp_path / "hub", model=student.base.name)
    assert torch.equal(again.class_features(names), features)
    classes = {"student": str(tmp_path / "run"), "classes": str(PICTURES / "classes.txt")}
    files = export_classifier(ClassifierSettings(**classes, out=tmp_path / "classifier"))
    stored = load_file(files["classifier.safetensors"])
    torch.testing.assert_close(stored["class_features"][:20], features, atol=1e-5, rtol=0)
    assert ("logit_bias" in stored) == family.startswith("siglip")


@pytest.mark.parametrize("family", ["siglip", "coca"])
def test_both_towers_train_and_the_image_tower_is_exported(
    cache_of: Callable[[str], Path], family: str, tmp_path: Path
) -> None:
    train(settings(cache_of(family), tmp_path / "run", towers="both", batch_size=60, max_steps=2))
    exported = export_onnx(OnnxSettings(student=tmp_path / "run", out=tmp_path / "run" / "image.onnx"))
    assert exported.max_difference < 1e-4


def test_the_soft_label_of_a_sigmoid_model_is_a_softmax_without_its_bias(
    cache_of: Callable[[str], Path],
) -> None:
    """A bias adds the same number to all logits of an image, which a softmax does not see."""
    path = cache_of("siglip")
    cache, base = open_cache(path), load_model(str(path.parent / "model-siglip-0"))
    student = PromptedCLIP(base, PromptSettings(prompt_depth=0))
    assert student.logit_bias is not None
    assert cache.teacher["logit_bias"] == pytest.approx(student.logit_bias.item())
    texts = base.tokenizer([f"a photo of a {name}." for name in cache.vocabulary.names])
    features_CD = base.model.encode_text(texts, normalize=True)
    cosines = cache.image_features([0, 5, 9]).float() @ features_CD.T
    sigmoid_logits = cosines * base.model.logit_scale.exp() + student.logit_bias
    torch.testing.assert_close(cache.soft_labels([0, 5, 9]), sigmoid_logits.softmax(-1), atol=1e-5, rtol=0)
