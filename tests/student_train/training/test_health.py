"""Losses, gradients and loss scales that go wrong."""

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import zarr
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from student_train.model.settings import PromptSettings
from student_train.training import optimizer
from student_train.training.distributed import joined_processes
from student_train.training.health import Health
from student_train.training.loop import Run, train
from student_train.training.losses.hard import HardLoss
from student_train.training.losses.term import StepLogits
from student_train.training.settings import TrainSettings
from teacher_cache import open_cache
from teacher_cache.errors import RppError


def settings(cache: Path, out: Path, **others: Any) -> TrainSettings:
    """Twenty steps of text prompts, on the cache's features."""
    values = {"epochs": 2, "batch_size": 30, "lr": 0.02, "log_every": 1, "device": "cpu", **others}
    return TrainSettings(cache=cache, out=out, prompts=PromptSettings(towers="text"), **values)


def metrics(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def checkpoint_step(out: Path) -> int:
    with safe_open(out / "checkpoint.safetensors", framework="pt") as file:
        return int(json.loads(file.metadata()["checkpoint"])["step"])


def break_steps(monkeypatch: pytest.MonkeyPatch, steps: range, what: str) -> None:
    """In these steps (the first is 1) the hard loss, or only its gradient, is not a number."""
    done, compute = 0, HardLoss.__call__

    def broken(term: HardLoss, logits: StepLogits) -> Tensor:
        nonlocal done
        done += 1
        hard = compute(term, logits)
        if done in steps:
            zeros = (0 * logits.student_BC).abs()
            hard = hard + (zeros.sqrt().sum() if what == "gradient" else zeros.sum() / 0)
        return hard

    monkeypatch.setattr(HardLoss, "__call__", broken)


@pytest.mark.parametrize("what", ["loss", "gradient"])
@pytest.mark.parametrize("log_every", [1, 50])
def test_a_step_that_is_not_finite_ends_the_run_before_a_checkpoint_has_it(
    cache_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, log_every: int
) -> None:
    out = tmp_path / "run"
    asked = settings(cache_path, out, log_every=log_every, checkpoint_every=4)
    break_steps(monkeypatch, range(6, 7), what)
    with pytest.raises(RppError, match=f"^the {what} is not finite at step 6 ") as stopped:
        train(asked)
    assert str(stopped.value).endswith("; the last good checkpoint has 4 steps")
    assert checkpoint_step(out) == 4
    assert all(tensor.isfinite().all() for tensor in load_file(out / "checkpoint.safetensors").values())
    # the record is enough to look at the pictures
    record = json.loads((out / "bad-step.json").read_text())
    assert (record["step"], record["what"]) == (6, f"the {what} is not finite")
    with joined_processes("cpu") as joined:
        rows, views = Run(settings(cache_path, tmp_path / "other"), *joined).join.step_samples(5)
    assert (record["rows"], record["views"]) == (rows.tolist(), views.tolist())
    assert record["keys"] == open_cache(cache_path).samples.keys(rows)
    assert f"(rows {', '.join(map(str, rows[:8].tolist()))}, ...; all of them" in str(stopped.value)
    # without the error the run resumes from there
    monkeypatch.undo()
    assert train(asked.model_copy(update={"resume": True})).samples == 16 * 30


def test_a_signal_after_a_bad_step_keeps_the_previous_checkpoint(
    cache_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two lines of the log, when the step has not been checked yet."""
    out = tmp_path / "run"
    break_steps(monkeypatch, range(6, 7), "loss")
    broken, calls = HardLoss.__call__, 0

    def stopped_at_the_eighth(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 8:
            os.kill(os.getpid(), signal.SIGTERM)
        return broken(*arguments)

    monkeypatch.setattr(HardLoss, "__call__", stopped_at_the_eighth)
    with pytest.raises(RppError, match=r"^the loss is not finite at step 6 .* last good .* has 5 steps$"):
        train(settings(cache_path, out, log_every=50, checkpoint_every=5))
    assert calls == 8
    assert checkpoint_step(out) == 5
    assert all(tensor.isfinite().all() for tensor in load_file(out / "checkpoint.safetensors").values())
    assert json.loads((out / "bad-step.json").read_text())["step"] == 6


def test_prompts_that_overflow_after_a_finite_gradient_are_not_saved(
    cache_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loss and gradient of the only step are finite; the prompts after it are not."""
    out = tmp_path / "run"
    monkeypatch.setattr(optimizer, "learning_rate", lambda *_: 3e38)
    asked = settings(cache_path, out, weight_decay=1e18, max_steps=1)
    with pytest.raises(
        RppError, match=r"^after step 1 the prompts are not finite; no checkpoint was written"
    ):
        train(asked)
    assert not (out / "checkpoint.safetensors").exists()
    assert not (out / "student.safetensors").exists()


def test_an_error_before_the_first_checkpoint_reports_that_there_is_none(
    cache_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_steps(monkeypatch, range(2, 3), "loss")
    with pytest.raises(RppError, match=r"no checkpoint was written$"):
        train(settings(cache_path, tmp_path / "run"))


def test_features_that_are_not_finite_are_reported_with_their_row(cache_path: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache.zarr"
    shutil.copytree(cache_path, cache)
    stored = zarr.open_group(cache)["image_features"]
    stored[17] = float("nan")
    with pytest.raises(RppError, match="the loss is not finite"):
        train(settings(cache, tmp_path / "run"))
    record = json.loads((tmp_path / "run" / "bad-step.json").read_text())
    assert record["keys"][record["rows"].index(17)] == open_cache(cache).samples.keys(slice(17, 18))[0]


def test_a_folder_without_room_for_the_record_gives_the_same_error(
    cache_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run" / "bad-step.json").mkdir(parents=True)
    break_steps(monkeypatch, range(2, 3), "loss")
    with pytest.raises(RppError, match="the loss is not finite at step 2 "):
        train(settings(cache_path, tmp_path / "run"))


def test_clipped_steps_are_counted_since_the_last_line(cache_path: Path, tmp_path: Path) -> None:
    for clip, expected in ((1e-9, [4, 4, 2]), (1e9, [0, 0, 0]), (0.0, [0, 0, 0])):
        out = tmp_path / str(clip)
        train(settings(cache_path, out, clip_norm=clip, epochs=1, log_every=4))
        lines = metrics(out)
        assert [line["clipped_steps"] for line in lines] == expected
        assert "loss_scale" not in lines[0]
    train(settings(cache_path, tmp_path / "first", max_steps=1))
    norm = metrics(tmp_path / "first")[0]["gradient_norm"]
    for factor, clipped in ((0.99, 1), (1.01, 0)):
        out = tmp_path / str(factor)
        train(settings(cache_path, out, max_steps=1, clip_norm=factor * norm))
        assert metrics(out)[0]["clipped_steps"] == clipped


class TestFloat16:
    def test_a_step_whose_gradient_overflows_is_left_out_and_counted(
        self, cache_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        break_steps(monkeypatch, range(3, 5), "gradient")
        out = tmp_path / "run"
        train(settings(cache_path, out, precision="fp16", max_steps=8, log_every=2))
        scales = [(line["loss_scale"], line["left_out_steps"]) for line in metrics(out)]
        assert scales == [(65536.0, 0), (16384.0, 2), (16384.0, 0), (16384.0, 0)]

    def test_a_loss_that_is_not_finite_ends_the_run(
        self, cache_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        break_steps(monkeypatch, range(3, 5), "loss")
        with pytest.raises(RppError, match="the loss is not finite at step 3 "):
            train(settings(cache_path, tmp_path / "run", precision="fp16"))

    def test_gradients_that_overflow_for_good_end_the_run(
        self, cache_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """65,536 halved 17 times is less than 1."""
        break_steps(monkeypatch, range(2, 100), "gradient")
        with pytest.raises(RppError, match=r"at step 18 gradients overflow float16 .* --precision bf16"):
            train(settings(cache_path, tmp_path / "run", precision="fp16"))


def test_the_first_fault_is_reported() -> None:
    health = Health(torch.device("cpu"), 1.0, torch.amp.GradScaler("cpu", enabled=False))
    good, bad = torch.tensor(0.5), torch.tensor(float("inf"))
    for step, loss, norm in ((1, good, good), (2, good, bad), (3, bad, bad), (4, good, good)):
        health.note(step, loss, norm)
    assert health.fault() == (2, "the gradient is not finite")
    assert health.counts() == {"clipped_steps": 0}
