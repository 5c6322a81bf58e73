"""How long a device computes. Launching work on CUDA returns before the device has done it."""

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class DeviceTimer:
    """Adds up the time that a device spends on what blocks of code launch.

    On CUDA a block is timed by two events of the device's current stream: the first is reached when all
    earlier work is done, the second when the block's work is. Elsewhere a block computes before it ends.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._seconds = 0.0
        self._pending: deque[tuple[torch.cuda.Event, torch.cuda.Event]] = deque()

    @contextmanager
    def timing(self) -> Iterator[None]:
        """Time a block; nothing waits for the device."""
        if self._device.type == "cuda":
            stream = torch.cuda.current_stream(self._device)
            first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            first.record(stream)
            yield
            last.record(stream)
            self._pending.append((first, last))
            self._add_finished()
        else:
            started = time.perf_counter()
            yield
            self._seconds += time.perf_counter() - started

    def _add_finished(self) -> None:
        while self._pending and self._pending[0][1].query():
            first, last = self._pending.popleft()
            self._seconds += first.elapsed_time(last) / 1000  # milliseconds

    def seconds(self) -> float:
        """Return the seconds so far; on CUDA, after the device has finished the last block."""
        if self._pending:
            self._pending[-1][1].synchronize()
            self._add_finished()
        return self._seconds
