"""What a run reports of its steps: `metrics.jsonl`, other logs, and the progress on the terminal."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from student_train.runs.folder import RunFolder
from student_train.training.metric_logs import MetricLogs
from teacher_cache.compat.dynamo import CompileClock
from teacher_cache.progress import Counter, counting, print_remark


class Metrics:
    """Measures the time of steps, and writes their figures.

    Attributes:
        wait_seconds: time that the loop waited for data.
    """

    def __init__(
        self,
        folder: RunFolder,
        logs: MetricLogs,
        log_every: int,
        visible: bool,
        compiling: CompileClock | None = None,
    ) -> None:
        """Args:
        log_every: steps between two lines.
        visible: whether to show progress.
        compiling: measures the time of compiling, which does not count as time of steps.
        """
        self.folder, self.logs = folder, logs
        self.wait_seconds = 0.0
        self._log_every, self._visible = log_every, visible
        self._compiling, self._compiled_seconds = compiling, 0.0
        self._counter: Counter | None = None
        self._first_step = 0
        self._started = self._logged = time.perf_counter()

    @contextmanager
    def progress(self, first_step: int, total_steps: int) -> Iterator[None]:
        """Measure time from here on, and show the progress of the steps in the block."""
        self._first_step = first_step
        self._started = self._logged = time.perf_counter()
        if not self._visible:
            yield
            return
        with counting("steps", total_steps) as self._counter:
            self._counter.start_at(first_step)
            yield

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time of the block as waiting for data."""
        started = time.perf_counter()
        yield
        self.wait_seconds += time.perf_counter() - started

    @property
    def seconds(self) -> float:
        """Time since the first step began, without that of compiling."""
        return time.perf_counter() - self._started - self._seconds_compiling()

    def _seconds_compiling(self) -> float:
        return 0.0 if self._compiling is None else self._compiling.seconds

    def count_step(self) -> None:
        """Count a step in the progress."""
        if self._counter is not None:
            self._counter()

    def line(self, done: int, samples_per_step: int, figures: dict[str, Any]) -> dict[str, Any]:
        """A line of `metrics.jsonl`: the figures of step `done`, the first of which is 1, with the times."""
        now = time.perf_counter()
        # a resumed run may have written the last line in an earlier process
        steps = min((done - 1) % self._log_every + 1, done - self._first_step)
        compiled = self._seconds_compiling() - self._compiled_seconds
        rate = steps * samples_per_step / (now - self._logged - compiled)
        self._logged, self._compiled_seconds = now, self._compiled_seconds + compiled
        if compiled and self._visible:
            print_remark(f"torch.compile took {compiled:.0f} s up to step {done}; samples/s are without it")
        times = {"samples_per_second": rate, "wait_seconds": self.wait_seconds}
        return {"step": done, "time": time.time(), **figures, **times}

    def log(self, line: dict[str, Any]) -> None:
        """Write a line to the run's folder, to the other logs, and beside the progress.

        Raises:
            RppError: the folder cannot be written.
        """
        self.folder.log(line)
        self.logs.log(line)
        if self._counter is not None:
            self._counter(0, **progress_fields(line))


def progress_fields(line: dict[str, Any]) -> dict[str, str]:
    """What the progress shows of a line: the loss with its terms, the rate and the time waited."""
    losses = {
        name.removesuffix("_loss"): f"{value:.4f}"
        for name, value in line.items()
        if name == "loss" or name.endswith("_loss")
    }
    rate, waited = f"{line['samples_per_second']:.0f}", f"{line['wait_seconds']:.1f}s"
    return {"samples/s": rate, **losses, "wait": waited}
