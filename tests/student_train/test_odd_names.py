"""Vocabularies as people have them: other scripts, commas, quotes, one name twice, names of 60 tokens."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from student_train.evaluation.evaluate import evaluate
from student_train.evaluation.predict import predict
from student_train.evaluation.settings import EvalSettings, PredictSettings
from student_train.interchange.classifier import export_classifier
from student_train.interchange.settings import ClassifierSettings
from student_train.model.settings import PromptSettings
from student_train.model.student import load_student
from student_train.training.loop import train
from student_train.training.settings import TrainSettings
from teacher_cache.classes.vocabulary import load_vocabulary
from tests.teacher_cache.inputs import encoded, picture, webdataset_members, write_shard

SIXTY = " ".join(["owl"] * 60)  # one token each
NAMES = ("猫", 'dog, "hot"', "l'âne d'or", "crane", "crane", "дом", SIXTY, "a {} b", "🦉 <b>owl</b>")


def write_names(path: Path) -> Path:
    """The names in the form that the suffix says."""
    if path.suffix == ".txt":
        path.write_text("\n".join(NAMES), encoding="utf-8")
    elif path.suffix == ".json":
        path.write_text(json.dumps(NAMES, ensure_ascii=False), encoding="utf-8")
    else:
        with open(path, "w", encoding="utf-8", newline="") as file:
            rows = csv.writer(file)
            rows.writerows([("id", "name"), *((f"id-{c}", name) for c, name in enumerate(NAMES))])
    return path


@pytest.fixture(scope="module")
def run(demo_cache_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    train(TrainSettings(cache=demo_cache_path, out=out, prompts=PromptSettings(), max_steps=2, batch_size=30))
    return out


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    """A picture of each class, labelled by number."""
    labels = {number: number for number in range(len(NAMES))}
    return write_shard(tmp_path / "shard.tar", webdataset_members(0, len(NAMES), labels))


@pytest.mark.parametrize("suffix", [".txt", ".csv", ".json"])
def test_every_form_of_a_vocabulary_gives_the_names_as_written(tmp_path: Path, suffix: str) -> None:
    vocabulary = load_vocabulary(write_names(tmp_path / f"names{suffix}"))
    assert vocabulary.names == NAMES
    assert len(set(vocabulary.ids)) == len(NAMES)
    if suffix != ".csv":
        assert [vocabulary.index_of(f"crane#{c}") for c in (3, 4)] == [3, 4]
        assert vocabulary.index_of("crane") is None, "what two classes share is neither"


@pytest.mark.parametrize("student", ["run", "zero-shot"])
def test_odd_names_are_classes_as_any_others(
    student: str, run: Path, demo_cache_path: Path, shard: Path, tmp_path: Path
) -> None:
    names = write_names(tmp_path / "names.txt")
    who = {"student": str(run) if student == "run" else student, "cache": str(demo_cache_path)}
    found = evaluate(EvalSettings(**who, images=str(shard), classes=str(names)))
    assert (found["classes"], found["samples"], found["without_label"]) == (len(NAMES), len(NAMES), 0)
    export_classifier(ClassifierSettings(**who, classes=str(names), out=tmp_path / "out"))
    features = torch.from_numpy(np.load(tmp_path / "out" / "classifier.npy"))
    torch.testing.assert_close(features[3], features[4], atol=1e-6, rtol=0)
    gram = features @ features.T - torch.eye(len(NAMES))
    gram[3, 4] = gram[4, 3] = 0
    assert gram.max() < 0.999, "no two other names are the same to the model"
    assert json.loads((tmp_path / "out" / "classes.json").read_text(encoding="utf-8"))["names"] == list(NAMES)
    (tmp_path / "one.jpg").write_bytes(encoded(picture(0)))
    asked = PredictSettings(**who, classes=str(names), top=len(NAMES))
    likely = predict(asked, [tmp_path / "one.jpg"])[0]
    assert sorted(likely.classes) == sorted(NAMES)
    share = dict(zip(likely.ids, likely.probabilities, strict=True))
    assert share["crane#3"] == pytest.approx(share["crane#4"], rel=1e-4)


def test_sixty_tokens_fit_beside_four_prompts_and_are_cut_beside_sixteen(
    demo_cache_path: Path, run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tokens = load_student(run).tokenize_names([SIXTY])
    assert int(tokens[0].argmax()) == 62, "start, 60 tokens, full stop, end"
    assert caplog.text == ""
    prompts = PromptSettings(prompt_length=16)
    train(TrainSettings(cache=demo_cache_path, out=tmp_path / "long", prompts=prompts, max_steps=1))
    student = load_student(tmp_path / "long")
    tokens = student.tokenize_names([SIXTY, "cat"])
    assert int(tokens[0].argmax()) == 77 - 16 - 1
    assert "1 of 2 class names are too long for the text tower and are truncated" in caplog.text
    assert student.class_features([SIXTY]).isfinite().all()
