"""Class features for other programs."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pipeline.cli import main
from student_train.interchange.classifier import export_classifier
from student_train.interchange.settings import ClassifierSettings
from student_train.model.student import load_student
from student_train.training.loop import train
from teacher_cache import open_cache
from teacher_cache.errors import RppError, UsageError
from tests.student_train.conftest import PICTURES
from tests.student_train.training.test_loop import settings


def zero_shot(cache: Path, out: Path) -> ClassifierSettings:
    return ClassifierSettings(
        student="zero-shot", cache=cache, classes=str(PICTURES / "classes.txt"), out=out
    )


def test_the_files_hold_what_the_student_says_of_the_names(
    cache_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train(settings(cache_path, tmp_path / "run", max_steps=2))
    names = ["cat", 'a "quoted", name', "hündchen"]
    (tmp_path / "names.json").write_text(json.dumps(names), encoding="utf-8")
    arguments = ["--student", str(tmp_path / "run"), "--classes", str(tmp_path / "names.json")]
    command = ["rpp", "export", "classifier", *arguments, "--out", str(tmp_path / "out"), "--json"]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    files = json.loads(capsys.readouterr().out)
    assert sorted(files) == sorted(path.name for path in (tmp_path / "out").iterdir())
    student = load_student(tmp_path / "run")
    expected = student.class_features(names)
    array = np.load(files["classifier.npy"])
    assert (array.dtype, array.shape) == (np.float32, (3, 48))
    assert torch.equal(torch.from_numpy(array), expected)
    stored = load_file(files["classifier.safetensors"])
    assert torch.equal(stored["class_features"], expected)
    assert torch.equal(stored["logit_scale"], student.logit_scale.exp())
    assert json.loads(Path(files["classes.json"]).read_text(encoding="utf-8"))["names"] == names


def test_the_frozen_models_are_those_of_the_cache(cache_path: Path, tmp_path: Path) -> None:
    asked = zero_shot(cache_path, tmp_path / "out")
    files = export_classifier(asked)
    stored = torch.from_numpy(np.load(files["classifier.npy"]))
    torch.testing.assert_close(stored, open_cache(cache_path).class_features, atol=1e-6, rtol=0)
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be a folder"):
        export_classifier(asked.model_copy(update={"out": tmp_path / "file"}))


@pytest.mark.parametrize("name", ["classifier.npy", "classes.json"])
def test_a_full_disk_is_one_line_and_leaves_nothing_half(cache_path: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / f"{name}.tmp").symlink_to("/dev/full")
    with pytest.raises(RppError, match="cannot be written"):
        export_classifier(zero_shot(cache_path, tmp_path))
    assert not (tmp_path / name).exists()
    assert not list(tmp_path.glob("*.tmp"))


def test_what_stands_in_the_way_is_one_line(cache_path: Path, tmp_path: Path) -> None:
    (tmp_path / "classifier.safetensors.tmp").mkdir()  # safetensors has an error of its own
    with pytest.raises(RppError, match="cannot be written"):
        export_classifier(zero_shot(cache_path, tmp_path))
