"""Checks before heavy imports, and inputs that they must accept."""

from pathlib import Path

import pytest

from student_train.evaluation.preflight import check_evaluation, check_students, require_picture
from student_train.evaluation.settings import EvalOptions, ModelOptions
from student_train.model.settings import PromptSettings
from student_train.training.preflight import check_train
from student_train.training.settings import TrainSettings
from teacher_cache import UsageError
from teacher_cache.command_settings import BuildSettings
from teacher_cache.preflight import check_build, require_model
from tests.student_train.conftest import PICTURES

CLASSES = str(PICTURES / "classes.txt")


def run_at(path: Path) -> str:
    path.mkdir()
    (path / "student.safetensors").touch()
    return str(path)


def test_only_zero_shot_needs_a_cache(tmp_path: Path) -> None:
    """A student that is evaluated without its teacher does not read the cache."""
    missing = ModelOptions(cache=str(tmp_path / "none"))
    check_students([run_at(tmp_path / "run")], missing)
    for name in ("zero-shot", "./zero-shot", "zero-shot/"):
        with pytest.raises(UsageError, match=r"no cache at .*none"):
            check_students([name], missing)
        with pytest.raises(UsageError, match="--student zero-shot needs --cache"):
            check_students([name], ModelOptions())


def test_a_weights_file_in_place_of_a_model_is_explained(tmp_path: Path) -> None:
    weights = tmp_path / "ViT-B-16.pt"
    weights.touch()
    with pytest.raises(UsageError, match=r"is a file; give the name of its model, .* with --pretrained"):
        require_model(str(weights), None)


def test_weights_for_a_model_with_its_own_are_left_to_open_clip(tmp_path: Path, clip: Path) -> None:
    """open_clip's message is to leave them out, not that they are missing."""
    require_model(str(clip), "x.pt")
    require_model("hf-hub:org/repo", "x.pt")
    require_model("ViT-B-32", "openai")
    (tmp_path / "x.pt").touch()
    require_model("ViT-B-32", str(tmp_path / "x.pt"))
    for pretrained in ("x.pt", "weights/x", str(tmp_path / "y.safetensors")):
        with pytest.raises(UsageError, match="no such weights file"):
            require_model("ViT-B-32", pretrained)
    with pytest.raises(UsageError, match=f"no model folder {tmp_path}/none"):
        require_model(str(tmp_path / "none"), None)
    with pytest.raises(UsageError, match=r"no open_clip_config.json in the model folder"):
        require_model(f"local-dir:{tmp_path}", None)


def test_a_training_that_reads_no_image_asks_for_none(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "zarr.json").touch()
    cache, images = str(tmp_path / "cache"), str(tmp_path / "none.tar")
    check_train(TrainSettings(cache=cache, images=images, prompts=PromptSettings(towers="text")))
    check_train(TrainSettings(cache=cache, images=images, student_features=cache))
    with pytest.raises(UsageError, match=r"none.tar does not exist"):
        check_train(TrainSettings(cache=cache, images=images))


def test_missing_paths_are_refused(tmp_path: Path, clip: Path) -> None:
    student, images = run_at(tmp_path / "run"), str(PICTURES / "noto.tar")
    check_evaluation([student], EvalOptions(classes=CLASSES), images)
    with pytest.raises(UsageError, match="has no class names; give a vocabulary with --classes"):
        check_evaluation([student], EvalOptions(), images)
    with pytest.raises(UsageError, match="is a folder; give the pictures in it"):
        require_picture(tmp_path)
    check_build(BuildSettings(images=images, classes=CLASSES, out="new", teacher=str(clip)))
    with pytest.raises(UsageError, match=r"vocabulary 'none.txt': no such file"):
        check_build(BuildSettings(images=images, classes="none.txt", out="new", teacher=str(clip)))
