"""Defaults follow the cores that a process may use, not those of the machine."""

import os
from collections.abc import Iterator

import pytest

from teacher_cache.command_settings import ComputeSettings
from teacher_cache.compute.workers import on_this_machine
from teacher_cache.cores import usable_cores


@pytest.fixture
def one_core() -> Iterator[None]:
    """As under `taskset -c N`."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    yield
    os.sched_setaffinity(0, before)


def test_of_all_cores_those_count_that_may_be_used(one_core: None) -> None:
    assert usable_cores() == 1
    assert on_this_machine(ComputeSettings(workers=1, device="cpu")).threads == 1
