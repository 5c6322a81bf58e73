"""The state of published checkpoints: what is skipped, what is refused, and names under wrappers."""

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, MultiStepLR, StepLR

from student_train.interchange.checkpoint_state import first_names, read_state
from teacher_cache.errors import UsageError
from tests.student_train.interchange.published_files import dassl_checkpoint
from tests.teacher_cache.teacher.test_openclip import RunsCode


class WarmupScheduler(LRScheduler):
    """As Dassl's ConstantWarmupScheduler in dassl/optim/lr_scheduler.py: the next one is an attribute."""

    def __init__(self, optimizer: torch.optim.Optimizer, successor: LRScheduler) -> None:
        self.successor, self.warmup_epoch, self.cons_lr = successor, 1, 1e-5
        super().__init__(optimizer, last_epoch=-1)

    def get_lr(self) -> list[Any]:
        if self.last_epoch >= self.warmup_epoch:
            return self.successor.get_last_lr()
        return [self.cons_lr for _ in self.base_lrs]

    def step(self, epoch: int | None = None) -> None:
        if self.last_epoch >= self.warmup_epoch:
            self.successor.step(epoch)
            self._last_lr = self.successor.get_last_lr()
        else:
            super().step(epoch)


def trained_checkpoint(path: Path, context: torch.Tensor, optimizer: Any, scheduler: Any) -> Path:
    """What Dassl's `save_model` (dassl/engine/trainer.py) writes after three epochs with a warm-up."""
    weight = torch.nn.Parameter(context.clone())
    steps = optimizer([weight], lr=0.002)
    warm = WarmupScheduler(steps, scheduler(steps))
    for _ in range(3):
        weight.grad = torch.ones_like(weight)
        steps.step()
        warm.step()
    assert isinstance(warm.state_dict()["successor"], LRScheduler)
    states = {"optimizer": steps.state_dict(), "scheduler": warm.state_dict()}
    return dassl_checkpoint(path, {"ctx": context}, **states, val_result=np.float64(71.5))


def sgd(weights: Any, lr: float) -> torch.optim.SGD:
    return torch.optim.SGD(weights, lr=lr, momentum=0.9)


@pytest.mark.parametrize(
    ("optimizer", "scheduler"),
    [
        (sgd, lambda o: CosineAnnealingLR(o, 5.0)),
        (torch.optim.Adam, lambda o: StepLR(o, step_size=2)),
        (torch.optim.AdamW, lambda o: MultiStepLR(o, milestones=[1, 2])),
        (torch.optim.RMSprop, lambda o: CosineAnnealingLR(o, 5.0)),
    ],
)
def test_states_of_optimizer_and_scheduler_are_skipped(
    tmp_path: Path, optimizer: Any, scheduler: Any
) -> None:
    context = 0.05 * torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    path = trained_checkpoint(tmp_path / "model.pth.tar-3", context, optimizer, scheduler)
    assert torch.equal(read_state(path)["ctx"], context)


@pytest.mark.parametrize("new", [True, False])
def test_code_in_a_checkpoint_does_not_run(tmp_path: Path, new: bool) -> None:
    """In any place of the file and in both formats of torch; also a call of `os.system`."""
    marker = tmp_path / "ran"

    class System:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.system, (f"touch {marker}",)

    for code, name in ((RunsCode(str(marker)), r"getattr|pathlib\.\S*"), (System(), r"posix\.system")):
        for place in ("scheduler", "state_dict", "val_result"):
            state = {"state_dict": {"ctx": torch.zeros(4, 64)}, place: code}
            torch.save(state, tmp_path / "bad", _use_new_zipfile_serialization=new)
            with pytest.raises(UsageError, match=rf"without running code that it names \(({name})\)"):
                read_state(tmp_path / "bad")
    assert not marker.exists()


def test_skipped_classes_are_refused_elsewhere(tmp_path: Path) -> None:
    """Importing does not change torch's list of safe globals."""
    path = trained_checkpoint(
        tmp_path / "trained", torch.zeros(4, 64), torch.optim.SGD, lambda o: CosineAnnealingLR(o, 5.0)
    )
    before = set(torch.serialization.get_safe_globals())
    read_state(path)
    assert set(torch.serialization.get_safe_globals()) == before
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)


@pytest.mark.parametrize(
    "prefix", ["", "prompt_learner.", "module.", "module.prompt_learner.", "_orig_mod.model."]
)
def test_prefixes_of_wrappers_are_removed(tmp_path: Path, prefix: str) -> None:
    path = dassl_checkpoint(
        tmp_path / "file", {f"{prefix}ctx": torch.ones(4, 8), f"{prefix}x": torch.ones(2)}
    )
    assert sorted(read_state(path)) == ["ctx", "x"]


def test_a_state_may_be_the_file(tmp_path: Path) -> None:
    torch.save({"ctx": torch.ones(4, 8), "epoch": 3, "optimizer": {"m": torch.ones(2)}}, tmp_path / "file")
    assert list(read_state(tmp_path / "file")) == ["ctx"]
    torch.save(torch.ones(2), tmp_path / "tensor")
    assert read_state(tmp_path / "tensor") == {}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"ctx": torch.ones(4, 8), "meta_net": {"weight": torch.ones(2)}},
            "not imported: meta_net; expected",
        ),
        ({"state_dict": {"ctx": torch.ones(4, 8)}, "ema": [torch.ones(2)]}, "not imported: ema; expected"),
        ({"state_dict": {"ctx": torch.ones(4, 8), 3: torch.ones(2)}}, "not imported: 3; expected"),
        (
            {"ctx": torch.ones(4, 8), "prompt_learner.ctx": torch.ones(4, 8)},
            r"tensors twice, with and without 'prompt_learner\.': ctx; remove",
        ),
    ],
    ids=["nested", "beside", "number", "twice"],
)
def test_tensors_elsewhere_are_refused(tmp_path: Path, content: Any, message: str) -> None:
    torch.save(content, tmp_path / "file")
    with pytest.raises(UsageError, match=message):
        read_state(tmp_path / "file")


def test_a_container_that_contains_itself_is_read(tmp_path: Path) -> None:
    inside: dict[str, Any] = {}
    inside["again"] = inside
    torch.save({"state_dict": {"ctx": torch.ones(4, 8)}, "odd": inside}, tmp_path / "file")
    assert list(read_state(tmp_path / "file")) == ["ctx"]


def test_messages_have_three_names() -> None:
    assert first_names(["a", "b", "c"]) == "a, b, c"
    assert first_names("abcd") == "a, b, c, ... (4 in all)"
    assert first_names(["x" * 100]) == f"{'x' * 80}..."
