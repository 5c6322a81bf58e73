"""Accuracy against plain loops over open_clip's own functions."""

import json
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from pipeline.cli import main
from student_train import load_student
from student_train.evaluation.evaluate import evaluate
from student_train.evaluation.image_features import encode_images
from student_train.evaluation.models import FeatureModels
from student_train.evaluation.settings import EvalSettings
from student_train.model.settings import PromptSettings
from student_train.training.loop import train
from student_train.training.settings import TrainSettings
from teacher_cache import open_cache
from teacher_cache.classes.vocabulary import Vocabulary, load_vocabulary
from teacher_cache.errors import UsageError
from teacher_cache.images.decode import decode_image
from teacher_cache.images.index import index_images
from teacher_cache.images.reader import ImageReader
from teacher_cache.teacher.teacher import Teacher
from tests.models import write_model
from tests.student_train.conftest import PICTURES
from tests.teacher_cache.inputs import write_shard

IMAGES, CLASSES = str(PICTURES / "fluent-flat.tar"), str(PICTURES / "classes.txt")


def plain_hits(model: Any, classifier_DC: torch.Tensor, images: str, cache_path: Path) -> tuple[float, float]:
    """Return top-1 and top-5 from a plain loop with open_clip's own preprocessing."""
    _, _, preprocess = open_clip.create_model_and_transforms(open_cache(cache_path).teacher["model"])
    samples, _ = index_images(images, load_vocabulary(CLASSES))
    reader, top = ImageReader(), []
    for start in range(0, len(samples), 100):
        rows = np.arange(start, min(start + 100, len(samples)))
        images = [Image.fromarray(decode_image(reader.read(at))) for at in samples.locations(rows)]
        pixels = [preprocess(image) for image in images]
        top.append((model.encode_image(torch.stack(pixels)) @ classifier_DC).topk(5).indices)
    hits = torch.cat(top) == torch.from_numpy(samples.labels.astype(np.int64))[:, None]
    return hits[:, 0].double().mean().item(), hits.any(1).double().mean().item()


@torch.no_grad()
def test_zero_shot_is_open_clips(demo_cache_path: Path, pictures: Path) -> None:
    images = str(pictures / "fluent-flat.tar")
    name = open_cache(demo_cache_path).teacher["model"]
    model, tokenizer = open_clip.create_model(name).eval(), open_clip.get_tokenizer(name)
    templates = [lambda name: f"a photo of a {name}."]
    names = load_vocabulary(CLASSES).names
    classifier_DC = open_clip.build_zero_shot_classifier(model, tokenizer, names, templates, device="cpu")
    found = evaluate(
        EvalSettings(
            student="zero-shot",
            cache=demo_cache_path,
            images=images,
            classes=CLASSES,
            metrics=("accuracy", "by-class"),
        )
    )
    assert found["samples"] == 100
    assert [name for name, _, _ in found["by_class"]] == list(names[::3])
    assert sum(right for _, _, right in found["by_class"]) == round(found["top1"] * 100)
    plain = plain_hits(model, classifier_DC, images, demo_cache_path)
    assert (found["top1"], found["top5"]) == plain
    assert found["top5"] > found["top1"] > 0.1


@pytest.mark.parametrize("towers", ["text", "vision", "both"])
def test_a_run_is_evaluated_with_its_own_features(
    demo_cache_path: Path, run_of: Callable[[str], Path], pictures: Path, towers: str
) -> None:
    images, trained = str(pictures / "noto.tar"), run_of(towers)
    run = EvalSettings(student=str(trained), images=images, classes=CLASSES)
    found = evaluate(run)
    student = load_student(trained)
    names = load_vocabulary(CLASSES).names
    with torch.no_grad():
        plain = plain_hits(student, student.class_features(names).T, images, demo_cache_path)
    assert (found["top1"], found["top5"]) == plain
    frozen = evaluate(run.model_copy(update={"student": "zero-shot", "cache": str(demo_cache_path)}))
    assert found["top1"] > 0.1
    assert (found["top1"], found["top5"]) != (frozen["top1"], frozen["top5"])
    base = evaluate(run.model_copy(update={"class_subset": "base"}))
    assert (base["samples"], base["classes"]) == (50, 150)


def test_unreadable_and_unlabelled_images_are_left_out_with_their_labels_and_counted(
    demo_cache_path: Path,
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    images = str(pictures / "fluent-flat.tar")
    with tarfile.open(images) as tar:
        members = [(member.name, tar.extractfile(member).read()) for member in tar]
    jpegs = [number for number, (name, _) in enumerate(members) if name.endswith(".jpg")]
    stem = members[jpegs[7]][0].removesuffix(".jpg")
    damaged = [
        (name, b"no picture" if number == jpegs[3] else content)
        for number, (name, content) in enumerate(members)
    ]
    damaged = [(name, content) for name, content in damaged if name not in (f"{stem}.cls", f"{stem}.json")]
    shard = write_shard(tmp_path / "damaged.tar", damaged)
    asked = EvalSettings(student="zero-shot", cache=demo_cache_path, images=images, classes=CLASSES)
    model = FeatureModels().load(asked).model
    vocabulary = load_vocabulary(CLASSES)
    whole = encode_images([model], index_images(images, vocabulary)[0])
    found = encode_images([model], index_images(str(shard), vocabulary)[0])
    kept = [row for row in range(100) if row not in (3, 7)]
    features = (encoded.features[model.image_tower] for encoded in (found, whole))
    torch.testing.assert_close(next(features), next(features)[kept], atol=1e-5, rtol=0)
    assert found.labels.tolist() == whole.labels[kept].tolist()
    arguments = ["--cache", str(demo_cache_path), "--images", str(shard), "--classes", CLASSES, "--json"]
    assert run_rpp(monkeypatch, "eval", "--student", "zero-shot", *arguments) == 0
    printed = capsys.readouterr()
    result = json.loads(printed.out)
    assert (result["samples"], result["skipped"], result["without_label"]) == (98, 1, 1)
    assert [f"note: {line}" in printed.err for line in result["notes"]] == [True, True, True]
    assert result["notes"][0].startswith("1 of 100 samples have no label")
    key = members[jpegs[3]][0].removesuffix(".jpg")
    assert result["notes"][2].startswith(f"1 images cannot be read; the first is {key}: ")


def test_a_student_without_text_prompts_reads_names_through_its_caches_templates(
    demo_cache_path: Path, tmp_path: Path
) -> None:
    prompts = PromptSettings(towers="vision")
    train(TrainSettings(cache=demo_cache_path, out=tmp_path / "run", prompts=prompts, max_steps=1))
    record = json.loads((tmp_path / "run" / "settings.json").read_text())
    (tmp_path / "run" / "settings.json").write_text(json.dumps(record | {"templates": ["{} in the rain"]}))
    run = EvalSettings(student=str(tmp_path / "run"), images=IMAGES, classes=CLASSES)
    loaded = FeatureModels().load(run)
    assert loaded.templates == ("{} in the rain",)
    names = load_vocabulary(CLASSES)
    found = loaded.model.class_features(Vocabulary(names.names, names.ids, loaded.templates))
    teacher = Teacher(load_student(tmp_path / "run").base, torch.device("cpu"))
    expected = teacher.class_features(Vocabulary(names.names, names.ids, ("{} in the rain",)))
    torch.testing.assert_close(found, expected)
    assert (found - teacher.class_features(names)).abs().max() > 0.01


def run_rpp(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["rpp", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--student", "zero-shot"], "--student zero-shot needs --cache"),
        (["--student", "nowhere"], "no student at nowhere"),
        (["--student", "garbage.safetensors"], "garbage.safetensors is damaged or not a student"),
        (["--student", "null.safetensors"], "null.safetensors is damaged or not a student"),
    ],
)
def test_wrong_use_is_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("garbage.safetensors").write_bytes(b"\xff" * 100)
    save_file({"x": torch.zeros(1)}, "null.safetensors", metadata={"student": "null"})
    assert run_rpp(monkeypatch, "eval", "--images", IMAGES, "--classes", CLASSES, *arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len([line for line in error.splitlines() if line]) == 1


def test_a_moved_model_is_named(cache_path: Path, pictures: Path, tmp_path: Path) -> None:
    images = str(pictures / "fluent-flat.tar")
    moved, other = write_model(tmp_path / "moved", "gelu"), write_model(tmp_path / "other", "gelu", seed=4)
    asked = EvalSettings(student="zero-shot", cache=cache_path, images=images, classes=CLASSES)
    assert evaluate(asked.model_copy(update={"model": str(moved)})) == evaluate(asked)
    with pytest.raises(UsageError, match=r"other has weights .* the cache .* was made with"):
        evaluate(asked.model_copy(update={"model": str(other)}))


def test_model_does_not_replace_another_teacher(cache_path: Path, pictures: Path, tmp_path: Path) -> None:
    """The student has another frozen model than the cache's teacher, and that model has moved."""
    own = write_model(tmp_path / "own", "gelu", seed=4)
    prompts = PromptSettings(towers="text")
    train(
        TrainSettings(cache=cache_path, out=tmp_path / "run", student=str(own), prompts=prompts, max_steps=1)
    )
    moved = own.rename(tmp_path / "moved")
    asked = EvalSettings(
        student=str(tmp_path / "run"),
        model=str(moved),
        images=str(pictures / "fluent-flat.tar"),
        classes=CLASSES,
        metrics=("agreement",),
    )
    found = evaluate(asked)
    assert found["kl"] > 0
    assert evaluate(asked.model_copy(update={"cache": str(cache_path)}))["kl"] == pytest.approx(found["kl"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cache": {}}, "'teacher' is missing or of another type"),
        (
            {"cache": {"teacher": {"model": "x"}}},
            "the 'weights_digest' of the teacher is missing or not a string",
        ),
        ({"templates": [1, 2]}, "'templates' are not strings"),
        ({"settings": {}, "cache": {}, "student": {}, "templates": [1, 2]}, "'templates' are not strings"),
        ({"format_version": "1"}, "invalid run format '1'"),
        ({"format_version": 0}, "invalid run format 0"),
    ],
)
def test_a_damaged_record_of_a_run_is_one_line(
    change: dict[str, Any],
    message: str,
    cache_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "run"
    train(TrainSettings(cache=cache_path, out=out, prompts=PromptSettings(towers="text"), max_steps=1))
    record = json.loads((out / "settings.json").read_text())
    (out / "settings.json").write_text(json.dumps(record | change))
    arguments = ["--student", str(out), "--images", IMAGES, "--classes", CLASSES]
    capsys.readouterr()
    assert run_rpp(monkeypatch, "eval", *arguments, "--metrics", "agreement") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"error: {out / 'settings.json'} is damaged: {message}"


def test_labels_beyond_the_vocabulary_are_refused(cache_path: Path, tmp_path: Path) -> None:
    (tmp_path / "few.txt").write_text("cat\ndog\n")
    with pytest.raises(UsageError, match="2 classes"):
        evaluate(
            EvalSettings(
                student="zero-shot", cache=cache_path, images=IMAGES, classes=str(tmp_path / "few.txt")
            )
        )


def test_json_has_the_promised_keys(
    cache_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["eval", "--student", "zero-shot", "--cache", str(cache_path), "--images", IMAGES, "--json"]
    assert run_rpp(monkeypatch, *arguments, "--classes", CLASSES) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert {"top1", "top5", "samples"} <= found.keys()
