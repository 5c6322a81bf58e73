"""Worker processes of torch's DataLoader end when they are told to."""

import multiprocessing
from collections.abc import Iterator
from typing import Any

import pytest
from torch.utils.data import DataLoader

from student_train.compat.torch import WorkerProcesses


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
