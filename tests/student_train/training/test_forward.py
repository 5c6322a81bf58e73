"""A step does not wait for the device; compiled blocks and half-precision weights do not change it."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._inductor.config as inductor
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from student_train.model.student import PromptedCLIP
from student_train.training import optimizers
from student_train.training.checkpoint import Checkpoint
from student_train.training.loop import Run, train
from student_train.training.optimizers import adamw, sgd
from teacher_cache.compat import dynamo
from teacher_cache.errors import UsageError
from teacher_cache.teacher.frozen_copy import weights_of_products
from tests.student_train.training.test_loop import metrics, result, run_main, settings

# On CUDA each of these waits for the device.
WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "_unique2", "unique_dim"}


class Waits(TorchDispatchMode):
    """Notes the operations that would wait for a GPU: values of tensors, and masks that select."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        masked = name in ("index", "index_put", "index_put_") and any(
            isinstance(index, Tensor) and index.dtype == torch.bool for index in args[1]
        )
        if name in WAITS or masked:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


@contextmanager
def transfers_noted(found: list[str]) -> Iterator[None]:
    """Note calls that copy a tensor to the CPU and do not reach the dispatcher there."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("tolist", "cpu", "item"):
            plain = getattr(Tensor, name)

            def noted(tensor: Tensor, *rest: Any, _plain: Any = plain, _name: str = name) -> Any:
                if threading.current_thread() is threading.main_thread():  # another one makes batches
                    found.append(_name)
                return _plain(tensor, *rest)

            patch.setattr(Tensor, name, noted)
        yield


@pytest.mark.parametrize(
    "options",
    [
        {"towers": "both", "classes_per_step": 60, "precision": "bf16", "optimizer": "adamw"},
        {"towers": "text", "clip_norm": 0.01},
        {"towers": "vision"},
        {"towers": "text", "precision": "fp16"},
    ],
    ids=["both-sampled-bf16", "text-all", "vision-fixed-classes", "fp16"],
)
def test_a_step_waits_for_nothing_but_a_line_of_the_log(
    cache_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    by_step: list[list[str]] = []
    plain = Run.train_step

    def noted(run: Run, batch: Any, step: int, with_accuracy: bool) -> Any:
        with Waits() as waits, transfers_noted(waits.found):
            figures = plain(run, batch, step, with_accuracy)
        by_step.append(waits.found)
        return figures

    for module in (optimizers, sgd, adamw):  # as on CUDA
        monkeypatch.setattr(module, "is_fused", lambda parameters: True)
    monkeypatch.setattr(Run, "train_step", noted)
    train(settings(cache_path, tmp_path / "run", log_every=4, max_steps=4, **options))
    assert by_step == [[], [], [], []]


def test_what_waits_is_found() -> None:
    x = torch.arange(4.0)
    with Waits() as waits, transfers_noted(waits.found):
        if x.sum() > 1:
            x[x > 2] = 0
        x.tolist()
        x.cpu()
    assert {"_local_scalar_dense", "index_put_", "tolist", "cpu"} <= set(waits.found)


@pytest.mark.parametrize("towers", ["both", "text"])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_weights_change_no_bit_of_a_run(
    cache_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, towers: str, precision: str
) -> None:
    """Losses, gradients and prompts, with torch's attention as on CUDA."""
    monkeypatch.setattr(torch.backends.mha, "get_fastpath_enabled", lambda: False)
    options = {"towers": towers, "precision": precision, "max_steps": 4}
    kept = PromptedCLIP.keep_half_weights
    students: list[PromptedCLIP] = []

    def noted(student: PromptedCLIP, dtype: torch.dtype) -> None:
        kept(student, dtype)
        students.append(student)

    monkeypatch.setattr(PromptedCLIP, "keep_half_weights", noted)
    train(settings(cache_path, tmp_path / "half", **options))
    monkeypatch.setattr(PromptedCLIP, "keep_half_weights", lambda student, dtype: None)
    train(settings(cache_path, tmp_path / "plain", **options))
    ours, theirs = result(tmp_path / "half"), result(tmp_path / "plain")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    names = ("loss", "soft_loss", "gradient_norm")
    ours, theirs = ([[line[n] for n in names] for line in metrics(tmp_path / o)] for o in ("half", "plain"))
    assert ours == theirs
    (student,) = students
    assert not list(weights_of_products(student.clip.transformer.resblocks, torch.device("cpu")))
    assert student.base.model is student.clip, "the float32 weights are freed"


def test_a_run_resumes_with_a_fused_optimizer(
    cache_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checkpoints of earlier versions, and of runs on a CPU, have the state of an optimizer that is not."""
    options = {"optimizer": "adamw", "max_steps": 6, "checkpoint_every": 3}
    train(settings(cache_path, tmp_path / "plain", **options))
    saved = Checkpoint.save

    def first_half(checkpoint: Checkpoint, step: int) -> None:
        if step == 3:
            saved(checkpoint, step)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "save", first_half)
        train(settings(cache_path, tmp_path / "fused", **options))
    monkeypatch.setattr(adamw, "is_fused", lambda parameters: True)
    train(settings(cache_path, tmp_path / "fused", resume=True, **options))
    ours, theirs = result(tmp_path / "fused"), result(tmp_path / "plain")
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], atol=1e-6, rtol=1e-5)


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Compile without a compiler, which takes seconds a graph; `test_compiled_towers.py` has one."""
    monkeypatch.setattr(dynamo, "BACKEND", "eager")
    dynamo.compiled.cache_clear()
    torch._dynamo.reset()
    yield
    dynamo.compiled.cache_clear()
    torch._dynamo.reset()


@pytest.mark.usefixtures("traced")
def test_a_compiled_run_equals_an_uncompiled_one_and_resumes_either_way(
    cache_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"towers": "both", "max_steps": 6, "checkpoint_every": 3}
    train(settings(cache_path, tmp_path / "plain", **options))
    capsys.readouterr()
    train(settings(cache_path, tmp_path / "compiled", compile=True, **options))
    assert "torch.compile took" in capsys.readouterr().err
    assert json.loads((tmp_path / "compiled" / "settings.json").read_text())["settings"]["compile"] is True
    ours, theirs = metrics(tmp_path / "compiled"), metrics(tmp_path / "plain")
    assert [line["loss"] for line in ours] == pytest.approx([line["loss"] for line in theirs], rel=1e-5)

    class EnoughError(Exception):
        pass

    def stopping(run: Run, batch: Any, step: int, with_accuracy: bool) -> Any:
        if step == 4:
            raise EnoughError
        return plain(run, batch, step, with_accuracy)

    plain = Run.train_step
    with monkeypatch.context() as patch:
        patch.setattr(Run, "train_step", stopping)
        with pytest.raises(EnoughError):
            train(settings(cache_path, tmp_path / "resumed", compile=True, **options))
    train(settings(cache_path, tmp_path / "resumed", resume=True, **options))
    ours = metrics(tmp_path / "resumed")
    assert [line["loss"] for line in ours] == pytest.approx([line["loss"] for line in theirs], rel=1e-5)


def test_a_machine_without_a_compiler_is_told_what_to_install(
    cache_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    dynamo.require_compiler.cache_clear()
    monkeypatch.setenv("CXX", "no-such-compiler")
    torch._dynamo.reset()
    out = tmp_path / "run"
    arguments = ("--cache", str(cache_path), "--out", str(out), "--log", "none", "--max-steps", "1")
    without = {"cpp.cxx": ("no-such-compiler",), "force_disable_caches": True}
    with inductor.patch(without):
        assert run_main(monkeypatch, *arguments, "--compile") == 2
        printed = " ".join(capsys.readouterr().err.split())
        assert "--compile: torch.compile does not work on this machine" in printed
        assert "a C++ compiler (apt install g++, or name one with CXX)" in printed
        assert "Traceback" not in printed
        assert not out.exists()
        with pytest.raises(UsageError, match="leave out --compile"):
            dynamo.require_compiler(torch.device("cpu"))
    torch._dynamo.reset()
