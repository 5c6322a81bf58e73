"""The script that trained the demo's CLIPs runs, in one step, on drawings of the demo."""

import tarfile
from pathlib import Path

import pytest

from pipeline.demo import clips, train_clips
from pipeline.demo.clips import unpack_clip
from pipeline.demo.train_clips import CLIPS, UNSEEN_STYLES
from teacher_cache.teacher.openclip import load_model
from tests.student_train.conftest import PICTURES

FEW = 12


def test_both_models_are_trained_measured_and_packed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = (PICTURES / "classes.txt").read_text(encoding="utf-8").splitlines()
    (tmp_path / "classes.txt").write_text("\n".join(names[:FEW]) + "\n", encoding="utf-8")
    for style in ("twemoji", "emojione", *UNSEEN_STYLES):
        with (
            tarfile.open(PICTURES / "noto.tar") as source,
            tarfile.open(tmp_path / f"{style}.tar", "w") as few,
        ):
            for member in source.getmembers()[: 2 * FEW]:
                few.addfile(member, source.extractfile(member))
    train_clips.main(emoji=tmp_path, out=tmp_path / "clips", only=None, steps=1, bf16=False)
    printed = capsys.readouterr().out
    for style in UNSEEN_STYLES:
        assert printed.count(f"{style}: zero-shot top-1") == len(CLIPS)
    monkeypatch.setattr(clips, "CLIPS", tmp_path / "clips")
    sizes = {}
    for name in CLIPS:
        model = load_model(str(unpack_clip(name, tmp_path / "models"))).model
        sizes[name] = sum(weights.numel() for weights in model.parameters())
    assert sizes["teacher"] > 1.2 * sizes["student"]
