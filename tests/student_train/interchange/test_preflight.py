"""Exports without their packages, and imports of folders, are refused before torch is imported."""

from pathlib import Path

import pytest

from student_train.interchange import preflight
from student_train.interchange.preflight import require_checkpoint, require_onnx
from teacher_cache.errors import UsageError


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "ONNX_PACKAGES", ("pytest", "no_such_package"))
    with pytest.raises(
        UsageError, match=r"^an export to ONNX needs no_such_package: pip install 'rpp-clip\["
    ):
        require_onnx()
    monkeypatch.setattr(preflight, "ONNX_PACKAGES", ("pytest",))
    require_onnx()


def test_a_folder_of_dassl_names_the_checkpoints_in_it(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"is a folder; give a checkpoint$"):
        require_checkpoint(tmp_path)
    file = tmp_path / "seed1" / "MultiModalPromptLearner" / "model.pth.tar-5"
    file.parent.mkdir(parents=True)
    file.touch()
    for folder in (tmp_path, file.parent):
        with pytest.raises(UsageError, match=rf"is a folder; give a checkpoint, {file} for example$"):
            require_checkpoint(folder)
    require_checkpoint(file)
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        require_checkpoint(tmp_path / "nowhere")
