"""Frozen models in place of a student: their names, their figures, and what a table says about them."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from PIL import Image

from pipeline.cli import main
from student_train.evaluation.evaluate import evaluate, load_models
from student_train.evaluation.frozen_names import (
    frozen_name,
    is_frozen,
    named_frozen_model,
    portable_name,
    student_name,
)
from student_train.evaluation.models import FeatureModels
from student_train.evaluation.predict import predict
from student_train.evaluation.preflight import check_students
from student_train.evaluation.settings import EvalSettings, ModelOptions, ModelSettings, PredictSettings
from student_train.interchange.huggingface import own_figures
from student_train.model.named_model import load_named_model
from teacher_cache.errors import UsageError
from tests.models import CONFIGS, loaded, write_model
from tests.student_train.conftest import PICTURES, build_with

CLASSES = str(PICTURES / "classes.txt")


@pytest.mark.parametrize(
    ("student", "named"),
    [
        ("zero-shot", None),
        ("runs/zero-shot:x", None),
        ("zero-shot:ViT-B-16:openai", ("ViT-B-16", "openai")),
        ("zero-shot:ViT-B-16", ("ViT-B-16", None)),
        ("zero-shot:ViT-B-16:/a:b/w.pt", ("ViT-B-16", "/a:b/w.pt")),
        ("zero-shot:ViT-B-16:hf://org/name/w.safetensors", ("ViT-B-16", "hf://org/name/w.safetensors")),
        ("zero-shot:/models/a:b", ("/models/a:b", None)),
        ("zero-shot:local-dir:/models/a", ("local-dir:/models/a", None)),
        ("zero-shot:hf-hub:org/name", ("hf-hub:org/name", None)),
    ],
)
def test_a_name_is_taken_apart(student: str, named: tuple[str, str | None] | None) -> None:
    assert named_frozen_model(student) == named
    assert student_name(student) == student
    if named is not None:
        assert frozen_name(*named) == student
        assert is_frozen(student)


def test_a_folder_is_a_folder_in_any_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_model(tmp_path / "a:b", "gelu")
    monkeypatch.chdir(tmp_path)
    assert named_frozen_model("zero-shot:a:b") == ("a:b", None)
    assert portable_name(f"zero-shot:{tmp_path}/a:b") == "zero-shot:local-dir:a:b"
    assert portable_name("runs/a") == "runs/a"


@pytest.mark.parametrize("student", ["zero-shot:", "zero-shot::openai", "zero-shot:ViT-B-16:"])
def test_half_a_name_is_refused(student: str) -> None:
    with pytest.raises(UsageError, match=r"expected zero-shot:MODEL or zero-shot:MODEL:PRETRAINED"):
        named_frozen_model(student)


def test_what_does_not_exist_is_refused_before_torch_is_imported(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"no model folder {tmp_path}/none"):
        check_students([f"zero-shot:{tmp_path}/none"], ModelOptions())
    with pytest.raises(UsageError, match="no such weights file"):
        check_students(["zero-shot:ViT-B-16:none.pt"], ModelOptions())
    with pytest.raises(UsageError, match="no cache at none"):
        check_students(["zero-shot:ViT-B-16:openai"], ModelOptions(cache="none"))
    check_students(["zero-shot:ViT-B-16:openai"], ModelOptions())


def test_another_model_is_evaluated_with_the_caches_templates_and_teacher(tmp_path: Path) -> None:
    small, large = write_model(tmp_path / "s:mall", "gelu"), write_model(tmp_path / "large", "two-blocks")
    caches = [build_with(model, tmp_path / f"{n}.zarr") for n, model in enumerate((small, large))]
    data = {"images": str(PICTURES / "noto-v1.tar"), "classes": CLASSES, "metrics": ("accuracy", "by-class")}
    name = f"zero-shot:{small}"
    own = evaluate(EvalSettings(student="zero-shot", cache=caches[0], **data))
    asked = EvalSettings(student=name, cache=caches[1], **data)
    assert evaluate(asked) == own | {"student": name}
    teacher = evaluate(EvalSettings(student="zero-shot", cache=caches[1], **data))
    assert teacher["by_class"] != own["by_class"]
    compared = evaluate(asked.model_copy(update={"metrics": ("agreement",)}))
    assert 0 <= compared["agreement"] < 1
    assert compared["kl"] > 0
    alone = asked.model_copy(update={"cache": None})
    assert evaluate(alone)["by_class"] == own["by_class"], "the default template is that of the cache"
    with pytest.raises(UsageError, match=f"agreement of --student {name} needs --cache"):
        evaluate(alone.model_copy(update={"metrics": ("agreement",)}))
    picture = tmp_path / "picture.png"
    Image.new("RGB", (40, 40), "red").save(picture)
    (prediction,) = predict(PredictSettings(student=name, classes=CLASSES), picture)
    assert len(prediction.classes) == 5


def test_a_table_says_that_zero_shot_is_the_teacher(
    demo_cache_path: Path,
    run_of: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    other = build_with(write_model(tmp_path / "other", "gelu"), tmp_path / "other.zarr")
    run = run_of("text")
    noted = {demo_cache_path: False, other: True}
    for cache, expected in noted.items():
        command = ["rpp", "eval", "--student", str(run), "--student", "zero-shot", "--cache", str(cache)]
        data = ["--images", str(PICTURES / "noto-v1.tar"), "--classes", CLASSES, "--json"]
        monkeypatch.setattr(sys, "argv", [*command, *data])
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code
        printed = capsys.readouterr()
        assert [row["student"] for row in json.loads(printed.out)["rows"]] == [str(run), "zero-shot"]
        assert ("zero-shot is the cache's teacher" in printed.err) == expected
    # the name in the note is one that can be given
    name = printed.err.rpartition("use --student ")[2].split()[0]
    data: dict[str, Any] = {"images": str(PICTURES / "noto-v1.tar"), "classes": CLASSES}
    frozen = evaluate(EvalSettings(student=name, cache=demo_cache_path, **data))
    assert (
        frozen["top1"] == evaluate(EvalSettings(student="zero-shot", cache=demo_cache_path, **data))["top1"]
    )


def test_a_weights_file_has_the_conventions_that_are_stated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tags: dict[str, dict[str, Any]] = {"openai": {"quick_gelu": True}, "other": {"mean": (0.5, 0.5, 0.5)}}
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny", CONFIGS["gelu"])
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "tiny", tags)
    weights = tmp_path / "weights.pt"
    torch.save({"state_dict": loaded("gelu").model.state_dict()}, weights)
    student = f"zero-shot:tiny:{weights}"
    with pytest.raises(UsageError, match="add --weights-like TAG"):
        FeatureModels().load(ModelSettings(student=student))
    for tag, quick in (("openai", True), ("other", False)):
        found = FeatureModels().load(ModelSettings(student=student, weights_like=tag)).model.loaded
        assert found.conventions.quick_gelu == quick
        assert found.digest == load_named_model("tiny", str(weights), tag).digest
    # the teacher's weights, which moved, keep what the cache records
    recorded = found.conventions.model_dump(mode="json") | {"weights_digest": found.digest}
    assert load_named_model("tiny", str(weights), teacher=recorded).digest == found.digest
    options = EvalSettings(student="runs/a", images="a.tar", weights_like="openai")
    with pytest.raises(
        UsageError, match="--weights-like openai is for the weights file of --student zero-shot"
    ):
        load_models(["zero-shot"], options)


def test_a_model_card_has_frozen_models_without_folders() -> None:
    rows: list[dict[str, object]] = [
        {"student": "zero-shot:/home/somebody/small", "top1": 0.1},
        {"student": "teacher", "top1": 0.2},
        {"student": "runs/a", "top1": 0.3},
        {"student": "runs/b", "top1": 0.4},
    ]
    kept = own_figures(rows, Path("runs/a"))
    assert [row["student"] for row in kept] == ["zero-shot:local-dir:small", "teacher", "runs/a"]
