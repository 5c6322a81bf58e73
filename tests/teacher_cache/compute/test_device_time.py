"""The time of a device that computes in the background."""

import time
from dataclasses import dataclass, field

import pytest
import torch

from teacher_cache.compute.device_time import DeviceTimer


def test_without_cuda_a_block_takes_as_long_as_it_runs() -> None:
    timer = DeviceTimer(torch.device("cpu"))
    assert timer.seconds() == 0
    for _ in range(2):
        with timer.timing():
            time.sleep(0.02)
        time.sleep(0.2)  # not part of any block
    assert 0.04 <= timer.seconds() < 0.2


@dataclass
class Stream:
    """A stream of work in torch's place, in milliseconds: work is queued, and done when it is waited for."""

    queued: float = 0.0
    done: float = 0.0
    waits: int = 0


@dataclass
class Event:
    """A mark in a stream."""

    stream: Stream = field(default_factory=Stream)
    at: float = 0.0

    def record(self, stream: Stream) -> None:
        self.stream, self.at = stream, stream.queued

    def query(self) -> bool:
        return self.at <= self.stream.done

    def synchronize(self) -> None:
        self.stream.done = max(self.stream.done, self.at)
        self.stream.waits += 1

    def elapsed_time(self, later: "Event") -> float:
        assert later.query()
        return later.at - self.at


def test_on_cuda_the_device_is_timed_and_nobody_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Stream()
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: {"cuda:1": stream}[str(device)])
    monkeypatch.setattr(torch.cuda, "Event", lambda enable_timing: Event())
    timer = DeviceTimer(torch.device("cuda:1"))
    for work in (300.0, 200.0):
        with timer.timing():
            stream.queued += work
        stream.queued += 1000.0  # of others
    assert stream.waits == 0
    assert timer.seconds() == pytest.approx(0.5)
    assert stream.waits == 1
    assert timer.seconds() == pytest.approx(0.5)
    assert stream.waits == 1
