"""Worker processes of torch's DataLoader end when they are told to."""

import multiprocessing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import DataLoader

from student_train.compat.torch import WorkerProcesses
from tests.plain_scripts import run_script


class Plain:
    """An iterator without torch's private names, which lets go of torch's when it is freed."""

    def __init__(self, pieces: Iterator[Any]) -> None:
        self.inner = pieces

    def __iter__(self) -> "Plain":
        return self

    def __next__(self) -> Any:
        return next(self.inner)


@pytest.mark.parametrize("private", [True, False])
def test_workers_end_with_and_without_torchs_private_names(private: bool) -> None:
    before = set(multiprocessing.active_children())
    workers = WorkerProcesses(DataLoader(list(range(8)), num_workers=2))
    if not private:
        workers.pieces = Plain(workers.pieces)
    assert next(workers.pieces) == 0
    started = set(multiprocessing.active_children()) - before
    assert len(started) == 2
    workers.end()
    assert not set(multiprocessing.active_children()) - before
    assert all(process.exitcode == 0 for process in started), "none had to be killed"


TRAIN = """
import multiprocessing

with open("runs.txt", "a") as file:
    file.write("run\\n")
multiprocessing.set_start_method("forkserver")
from student_train import PromptSettings, TrainSettings, train
train(
    TrainSettings(
        cache={cache!r}, out="run", prompts=PromptSettings(towers="both", prompt_length=2, prompt_depth=1),
        batch_size=30, max_steps=2, workers=2, log=("none",), device="cpu"
    )
)
"""


def test_workers_do_not_run_a_plain_script_again(cache_path: Path, tmp_path: Path) -> None:
    """With the default of Python 3.14, `forkserver`, in a script without `if __name__ == "__main__":`."""
    run_script(tmp_path, TRAIN.format(cache=str(cache_path)), "-m", "plain")
    assert (tmp_path / "run" / "student.safetensors").exists()
