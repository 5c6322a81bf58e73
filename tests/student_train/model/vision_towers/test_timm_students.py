"""Students with prompts in timm's towers, from the cache to exported files."""

import os
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from student_train import load_student
from student_train.evaluation.evaluate import evaluate
from student_train.evaluation.settings import EvalSettings
from student_train.interchange.huggingface import export_huggingface
from student_train.interchange.settings import HuggingFaceSettings
from student_train.training.checkpoint import Checkpoint
from student_train.training.loop import train
from teacher_cache.errors import RppError
from tests.models import write_model
from tests.student_train.conftest import PICTURES, build_with
from tests.student_train.interchange.test_onnx_tower import exported, run
from tests.student_train.model.vision_towers.test_timm_tower import images_of
from tests.student_train.training.test_loop import settings


@pytest.mark.parametrize("config", ["timm-siglip", "eva01", "eva02", "pe-core", "vitamin", "mobileclip-b"])
def test_from_cache_to_exported_files(
    config: str, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = str(pictures / "noto.tar")
    cache = build_with(write_model(tmp_path / "model", config), tmp_path / "cache.zarr", images)
    common = {"towers": "both", "batch_size": 20, "max_steps": 4}
    train(settings(cache, tmp_path / "whole", **common))

    save, sent = Checkpoint.save, []

    def save_and_stop(checkpoint: Checkpoint, step: int) -> None:
        save(checkpoint, step)
        if step == 2 and not sent:  # the stopped run saves once more
            sent.append(step)
            os.kill(os.getpid(), signal.SIGTERM)

    stopped = settings(cache, tmp_path / "run", checkpoint_every=2, **common)
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "save", save_and_stop)
        with pytest.raises(RppError, match="stopped by SIGTERM after step 2"):
            train(stopped)
    train(stopped.model_copy(update={"resume": True}))
    trained = load_file(tmp_path / "run" / "student.safetensors")
    for name, tensor in load_file(tmp_path / "whole" / "student.safetensors").items():
        assert torch.equal(trained[name], tensor)

    found = evaluate(
        EvalSettings(
            student=str(tmp_path / "run"), images=images, classes=str(PICTURES / "classes.txt"), device="cpu"
        )
    )
    assert found["samples"] == 100
    student, pixels = load_student(tmp_path / "run"), images_of(config, 2)
    assert set(student.prompts) == {"text", "vision"}
    expected = student.encode_image(pixels, normalize=True)
    made = exported(tmp_path / "run")
    assert made.max_difference <= 1e-4
    torch.testing.assert_close(run(made.file, pixels), expected, atol=1e-4, rtol=0)
    export_huggingface(HuggingFaceSettings(student=tmp_path / "run", out=tmp_path / "hub"))
    again = load_student(tmp_path / "hub", model=str(tmp_path / "model"))
    assert torch.equal(again.encode_image(pixels, normalize=True), expected)
