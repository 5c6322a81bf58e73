"""Two real processes under torchrun and gloo: the same run as one process, and the same end for both."""

import json
import re
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from student_train.training.distributed import Processes
from student_train.training.loop import train
from student_train.training.settings import TrainSettings
from teacher_cache import open_cache
from teacher_cache.errors import UsageError
from tests.processes import ForkServer
from tests.student_train.conftest import PICTURES, store_anew
from tests.student_train.training.test_loop import assert_same_result, metrics, result
from tests.student_train.training.test_metric_logs import as_events, read_events

ROOT = Path(__file__).parents[3]
STEPS = {
    "epochs": 2,
    "batch_size": 29,
    "max_steps": 8,
    "lr": 0.02,
    "log_every": 1,
    "device": "cpu",
    "workers": 0,
}
UNLABELLED = "a third without labels"
# name -> settings of runs that are compared with one process
ALIKE: dict[str, dict[str, Any]] = {
    "text, all classes": {"towers": "text"},
    "text, 75 classes": {"towers": "text", "classes_per_step": 75, "temperature": 2.0},
    "both towers": {"towers": "both", "carry": "residual"},
    "both towers, 64 classes": {
        "towers": "both",
        "classes_per_step": 64,
        "optimizer": "adamw",
        "lr": 0.002,
        "max_steps": 18,
    },
    "vision, hard labels": {"towers": "vision", "soft_weight": 0.0},
    UNLABELLED: {"towers": "text", "temperature": 2.0},
    "base classes, blocks": {"towers": "text", "class_subset": "base", "reader": "blocks", "max_steps": 6},
}


def values(cache: Path, out: Path, towers: str, carry: str = "replace", **others: Any) -> dict[str, Any]:
    prompts = {"towers": towers, "carry": carry, "prompt_length": 3}
    return {"cache": str(cache), "out": str(out), "prompts": prompts, **STEPS, **others}


def run_two(
    processes: ForkServer, folder: Path, runs: list[list[Any]]
) -> tuple[list[list[Any]], list[list[Any]], str, int]:
    """How the runs ended in both processes, the standard error, and torchrun's exit code."""
    (folder / "runs.json").write_text(json.dumps(runs))
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    script = ["-m", "tests.student_train.processes", str(folder), str(folder / "runs.json")]
    ended = processes.call("python", *torchrun, *script, cwd=ROOT)
    ends = [json.loads((folder / f"process-{rank}.json").read_text()) for rank in range(2)]
    return ends[0], ends[1], ended.err, ended.code


@pytest.fixture(scope="module")
def two(processes: ForkServer, cache_path: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """All runs of two processes, in one start of them; the last one kills a process."""
    folder = tmp_path_factory.mktemp("two")
    damaged = folder / "damaged.tar"
    content = bytearray((PICTURES / "noto.tar").read_bytes())
    with tarfile.open(PICTURES / "noto.tar") as tar:
        for member in list(tar)[::20]:
            content[member.offset_data : member.offset_data + 4] = b"GONE"
    damaged.write_bytes(content)
    caches = dict.fromkeys(ALIKE, cache_path) | {UNLABELLED: folder / "unlabelled.zarr"}
    shutil.copytree(cache_path, caches[UNLABELLED])
    labels = open_cache(cache_path).labels
    store_anew(caches[UNLABELLED], "labels", np.where(np.arange(len(labels)) % 3 == 0, -1, labels))
    stopped = values(cache_path, folder / "stopped", **ALIKE["both towers, 64 classes"])
    runs = [["run", values(caches[name], folder / name, **how), {}] for name, how in ALIKE.items()]
    runs += [
        ["stop", stopped, {}],
        ["run", stopped | {"resume": True}, {}],
        ["run", values(cache_path, folder / "unlike", "both"), {"images": "/no/such/folder"}],
        ["run", values(cache_path, folder / "damaged", "both"), {"images": str(damaged)}],
        ["break", values(cache_path, folder / "broken", "text", log_every=50), {}],
        ["die", values(cache_path, folder / "dead", "text", max_steps=None, epochs=2000), {}],
    ]
    first, second, stderr, code = run_two(processes, folder, runs)
    keys = [*ALIKE, "stopped", "resumed", "unlike", "damaged", "broken", "dead"]
    return {
        "folder": folder,
        "caches": caches,
        "first": dict(zip(keys, first, strict=True)),
        "second": dict(zip(keys, second, strict=False)),
        "stderr": stderr,
        "code": code,
    }


@pytest.mark.parametrize("name", ALIKE)
def test_two_processes_have_the_result_of_one(two: dict[str, Any], tmp_path: Path, name: str) -> None:
    assert two["first"][name][0] == two["second"][name][0] == "done"
    train(TrainSettings(**values(two["caches"][name], tmp_path / "one", **ALIKE[name])))
    ours, theirs = metrics(tmp_path / "one"), metrics(two["folder"] / name)
    assert len(ours) == len(theirs) >= 5
    for one, both in zip(ours, theirs, strict=True):
        for figure in ("loss", "hard_loss", "soft_loss"):
            assert both[figure] == pytest.approx(one[figure], rel=2e-6, abs=1e-6), (one["step"], figure)
        assert both["gradient_norm"] == pytest.approx(one["gradient_norm"], rel=1e-4)
        assert both["accuracy"] == pytest.approx(one["accuracy"])
    assert len(list((two["folder"] / name / "tensorboard").iterdir())) == 1, "of the first process"
    assert read_events(two["folder"] / name) == as_events(theirs)
    of_one = result(tmp_path / "one")
    for key, tensor in result(two["folder"] / name).items():
        assert torch.allclose(tensor, of_one[key], rtol=0, atol=1e-5), key


def test_a_signal_to_one_process_stops_both_at_the_same_step(two: dict[str, Any]) -> None:
    """One checkpoint; continued, the run ends as the same two processes end undisturbed."""
    kind, message, code = two["first"]["stopped"]
    assert (kind, code) == ("AgreedError", 1)
    assert re.fullmatch(
        r"stopped by SIGTERM after step \d+ of 18; resume with --out .*/stopped --resume", message
    )
    assert two["second"]["stopped"] == two["first"]["stopped"]
    assert two["first"]["resumed"][0] == "done"
    assert_same_result(two["folder"] / "both towers, 64 classes", two["folder"] / "stopped")


def test_an_error_in_one_process_is_raised_by_both(two: dict[str, Any]) -> None:
    """Before the first step, and at a step: the other process does not wait."""
    for name, expected, exit_code in (
        ("unlike", r"process 1: image source '/no/such/folder': .* does not exist", 2),
        ("damaged", r"process 1: noto/\S+ in \S+/damaged.tar cannot be read now", 1),
    ):
        kind, message, code = two["first"][name]
        assert (kind, code) == ("AgreedError", exit_code)
        assert re.match(expected, message)
        assert two["second"][name] == two["first"][name]


def test_a_signal_after_a_bad_step_ends_both_without_a_checkpoint(two: dict[str, Any]) -> None:
    kind, message, code = two["first"]["broken"]
    assert (kind, code) == ("AgreedError", 1)
    assert re.match(r"the loss is not finite at step 1 .*no checkpoint was written$", message)
    assert two["second"]["broken"] == two["first"]["broken"]
    assert not (two["folder"] / "broken" / "checkpoint.safetensors").exists()


def test_a_killed_process_does_not_leave_the_other_waiting(two: dict[str, Any]) -> None:
    kind, message, code = two["first"]["dead"]
    assert (kind, code) == ("RppError", 1)
    assert message.startswith("the processes of this run lost their connection")
    assert "dead" not in two["second"]
    assert two["code"] == 1


def test_gpus_are_not_named_for_several_processes() -> None:
    with pytest.raises(UsageError, match="names one GPU for 2 processes; use --device cuda"):
        Processes(rank=0, size=2).choose_device("cuda:0")
