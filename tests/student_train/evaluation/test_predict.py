"""Single pictures: the classes that an evaluation would choose, with their probabilities."""

import json
import os
import sys
import tarfile
from pathlib import Path

import pytest
import torch

from pipeline.cli import main
from student_train.evaluation.image_features import encode_images
from student_train.evaluation.models import StudentFeatures
from student_train.evaluation.predict import predict
from student_train.evaluation.settings import PredictSettings
from student_train.model.student import load_student
from student_train.training.loop import train
from teacher_cache import open_cache
from teacher_cache.errors import UsageError
from tests.hostile.contract import bounded
from tests.student_train.conftest import PICTURES
from tests.student_train.training.test_loop import settings

CLASSES = str(PICTURES / "classes.txt")


@pytest.fixture(scope="module")
def run(demo_cache_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("predict") / "run"
    train(settings(demo_cache_path, out, towers="both", max_steps=2))
    return out


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The first pictures of the cache, as files."""
    folder = tmp_path_factory.mktemp("pictures")
    with tarfile.open(PICTURES / "noto.tar") as tar:
        members = [member for member in tar if member.name.endswith(".jpg")][:70]
        for member in members:
            file = tar.extractfile(member)
            assert file is not None
            (folder / Path(member.name).name).write_bytes(file.read())
    return [folder / Path(member.name).name for member in members]


def test_pictures_get_the_classes_that_an_evaluation_gives_them(
    run: Path, pictures: list[Path], demo_cache_path: Path
) -> None:
    """More pictures than a batch; the order is that of the command line."""
    predictions = predict(PredictSettings(student=str(run), classes=CLASSES, device="cpu"), pictures)
    assert [prediction.image for prediction in predictions] == [str(path) for path in pictures]
    cache = open_cache(demo_cache_path)
    model = StudentFeatures(load_student(run), torch.device("cpu"))
    weights = model.class_features(cache.vocabulary)
    features = encode_images([model], cache.samples).features[model.image_tower][: len(pictures)]
    first = (features @ weights.T).topk(5).indices.tolist()
    names = [[cache.vocabulary.names[c] for c in row] for row in first]
    assert [prediction.classes for prediction in predictions] == names
    expected = (float(model.student.logit_scale.exp()) * features @ weights.T).softmax(-1).topk(5).values
    found = torch.tensor([prediction.probabilities for prediction in predictions])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_the_frozen_model_predicts_too(demo_cache_path: Path, pictures: list[Path]) -> None:
    zero_shot = PredictSettings(
        student="zero-shot", cache=demo_cache_path, classes=CLASSES, device="cpu", top=1000
    )
    (prediction,) = predict(zero_shot, pictures[:1])
    assert len(prediction.classes) == len(set(prediction.ids)) == 300
    assert sum(prediction.probabilities) == pytest.approx(1, abs=1e-5)
    assert prediction.probabilities == sorted(prediction.probabilities, reverse=True)


def test_the_command(
    run: Path, pictures: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["rpp", "predict", *map(str, pictures[:2]), "--student", str(run), "--classes", CLASSES]

    def printed(*more: str) -> str:
        monkeypatch.setattr(sys, "argv", [*arguments, "--top", "3", "--device", "cpu", *more])
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code
        return capsys.readouterr().out

    asked = json.loads(printed("--json"))
    assert [len(prediction["classes"]) for prediction in asked] == [3, 3]
    lines = printed().splitlines()
    assert lines[0] == str(pictures[0])
    assert len(lines) == 8
    for line, name in zip(lines[1:4], asked[0]["classes"], strict=True):
        assert line.endswith(f" %  {name}")


def test_files_that_are_not_pictures_are_named(run: Path, pictures: list[Path], tmp_path: Path) -> None:
    asked = PredictSettings(student=str(run), classes=CLASSES, device="cpu")
    (tmp_path / "text.jpg").write_text("not a picture")
    (tmp_path / "cut.jpg").write_bytes(pictures[1].read_bytes()[:400])
    for paths, line in (
        ([tmp_path / "text.jpg", pictures[0], tmp_path / "cut.jpg"], r"text.jpg cannot .*; .*cut.jpg cannot"),
        ([pictures[0], tmp_path / "text.jpg"], r"text.jpg cannot be read as a picture"),
        ([tmp_path / "gone.png"], r"gone.png cannot be read: No such file"),
        ([tmp_path / ("x" * 300)], r"xx cannot be read: File name too long"),
        ([tmp_path], r"is a folder; give the pictures in it, or use rpp eval"),
        ([], r"no pictures; give one"),
    ):
        # and before a model is looked for
        for chosen in (asked, asked.model_copy(update={"student": str(tmp_path / "no-run")})):
            with pytest.raises(UsageError, match=line):
                predict(chosen, paths)


def test_special_files_are_not_read(tmp_path: Path) -> None:
    """Reading a device may never end; a pipe may have no writer."""
    os.mkfifo(tmp_path / "pipe.jpg")
    asked = PredictSettings(student="zero-shot", classes=CLASSES)
    for place in (Path("/dev/zero"), tmp_path / "pipe.jpg"):
        with bounded(), pytest.raises(UsageError, match=rf"^{place} is not a regular file; give picture"):
            predict(asked, [place])
