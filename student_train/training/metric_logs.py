"""A run's figures for those who watch it: TensorBoard's event files, and Weights & Biases.

`metrics.jsonl` is the record of a run; what is written here is made of its lines, those of an earlier start
included. So nothing here ends a run that has begun: what cannot be written any more is left with a note.
"""

import os
import secrets
import struct
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from google_crc32c import value as crc32c

from student_train.runs.record import read_metrics
from student_train.training.settings import LogName
from teacher_cache.errors import RppError, UsageError

TENSORBOARD = "tensorboard"  # the folder of the event files, in the run's
WANDB_ID = "wandb-id"  # the file that says which run of Weights & Biases this one is
Line = dict[str, Any]


class MetricLog(Protocol):
    """One place that lines of `metrics.jsonl` go to as well."""

    def log(self, line: Line) -> None:
        """Write a line.

        Raises:
            RppError: it cannot be written.
        """

    def close(self, failed: bool) -> None:
        """End the log; `failed`: of a run that did not come to its end."""


class EventFile:
    """TensorBoard's event file, written whole at each start of a run, so that no step is in it twice.

    Written without TensorBoard's own writer: that one imports tensorflow where it is installed, and writes
    in a thread, where a full disk is noticed some lines later.
    """

    def __init__(self, folder: Path, lines: Iterable[Line]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary

        self._event, self._summary = Event, Summary
        before = sorted(folder.glob("events.out.tfevents.*.rpp"))
        # TensorBoard reads the files of a folder in the order of their names
        self._path = folder / f"events.out.tfevents.{time.time_ns():020d}.rpp"
        try:
            folder.mkdir(exist_ok=True)
            self._file = open(self._path, "xb")  # noqa: SIM115 - closed by `close`
        except OSError as error:
            raise RppError(f"{folder} cannot be written: {error.strerror}") from error
        self._write(Event(wall_time=time.time(), file_version="brain.Event:2"))
        # a TensorBoard that is open forgets what it has read of the file before
        self._write(Event(wall_time=time.time(), session_log=SessionLog(status=SessionLog.START)))
        for line in lines:
            self.log(line)
        with suppress(OSError):  # readers that know of no session would see its steps twice
            for path in before:
                os.truncate(path, 0)  # an open TensorBoard would look for a removed one for ever

    def log(self, line: Line) -> None:
        """Write a line as one event; see `MetricLog`."""
        values = [
            self._summary.Value(tag=name, simple_value=value) for name, value in figures_of(line).items()
        ]
        self._write(
            self._event(wall_time=time_of(line), step=line["step"], summary=self._summary(value=values))
        )

    def _write(self, event: Any) -> None:
        data = event.SerializeToString()
        length = struct.pack("<Q", len(data))
        try:
            self._file.write(length + _masked_crc(length) + data + _masked_crc(data))
            self._file.flush()
        except OSError as error:
            self.close(failed=True)
            raise RppError(f"{self._path} cannot be written: {error.strerror}") from error

    def close(self, failed: bool) -> None:
        """Close the file; see `MetricLog`."""
        with suppress(OSError):  # what a full disk did not take, it does not take now
            self._file.close()


def _masked_crc(data: bytes) -> bytes:
    """As TensorFlow's record files have it, so that a checksum of checksums is no fixed point."""
    crc = crc32c(data)
    return struct.pack("<I", (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF)


class WandbRun:
    """A run of Weights & Biases; its id is kept in the run's folder, and a continued run goes on in it."""

    def __init__(self, out: Path, lines: Iterable[Line], config: dict[str, Any], resumed: bool) -> None:
        import wandb

        kept = out / WANDB_ID
        known = kept.read_text(encoding="utf-8").strip() if resumed and kept.is_file() else None
        run_id = known or secrets.token_hex(4)
        try:
            kept.write_text(run_id, encoding="utf-8")
        except OSError as error:
            raise RppError(f"{kept} cannot be written: {error.strerror}") from error
        try:
            self._run: Any = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "rpp"),
                dir=str(out),
                name=out.absolute().name,
                id=run_id,
                resume="allow" if known else None,
                config=config,
                # what the machine is called and what lies where on it is nobody's business; its load is shown
                settings=wandb.Settings(
                    console="off", disable_git=True, disable_code=True, x_disable_meta=True
                ),
            )
        except Exception as error:  # no list of what it raises exists: no key, no network, no service
            raise UsageError(
                f"--log wandb: {' '.join(str(error).split())}; log in with `wandb login`, or set "
                "WANDB_MODE=offline and send the run later with `wandb sync`"
            ) from error
        for line in lines:
            self.log(line)

    def log(self, line: Line) -> None:
        """Send a line, unless Weights & Biases has its step; see `MetricLog`."""
        try:
            # of a continued run it knows the steps, and takes none back
            if line["step"] >= self._run.step:
                figures = {**figures_of(line), "_timestamp": time_of(line)}
                self._run.log(figures, step=line["step"], commit=True)
        except Exception as error:  # as above
            raise RppError(f"Weights & Biases takes no more: {' '.join(str(error).split())}") from error

    def close(self, failed: bool) -> None:
        """Wait until all is sent, or written where it is offline; see `MetricLog`."""
        try:
            self._run.finish(exit_code=int(failed))
        except Exception as error:  # as above
            raise RppError(f"Weights & Biases may lack steps: {' '.join(str(error).split())}") from error


def figures_of(line: Line) -> dict[str, float]:
    """The figures of a line of `metrics.jsonl`: all but the step and the time, which they are shown at."""
    return {
        name: value
        for name, value in line.items()
        if name not in ("step", "time") and isinstance(value, int | float)
    }


def time_of(line: Line) -> float:
    """When a line was logged, in seconds since 1970; now, if it does not say."""
    return float(line.get("time", time.time()))


class MetricLogs:
    """All logs of a run. One that fails is left, and the run goes on; leaving the block closes the others."""

    def __init__(self, names: Sequence[LogName]) -> None:
        """Nothing is opened yet.

        Raises:
            UsageError: a log whose package is not installed, or `none` beside others.
        """
        self._chosen = chosen_logs(names)
        self._open: list[MetricLog] = []

    def open(self, out: Path, config: dict[str, Any], resumed: bool) -> None:
        """Begin the logs with the lines that `metrics.jsonl` has.

        Args:
            out: the run's folder.
            config: what is told to others of the run.

        Raises:
            UsageError: Weights & Biases takes no run.
        """
        for name in self._chosen:
            try:
                self._open.append(
                    EventFile(out / TENSORBOARD, read_metrics(out))
                    if name == "tensorboard"
                    else WandbRun(out, read_metrics(out), config, resumed)
                )
            except UsageError:
                raise
            except RppError as error:
                _note(error)

    def log(self, line: Line) -> None:
        """Write a line to all logs."""
        for log in list(self._open):
            if not _done(lambda: log.log(line)):  # noqa: B023 - called at once
                self._open.remove(log)

    def __enter__(self) -> "MetricLogs":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for log in self._open:
            _done(lambda: log.close(failed=kind is not None))  # noqa: B023 - called at once
        self._open = []


def chosen_logs(names: Sequence[LogName]) -> list[str]:
    """Of the names that a user gave, the logs to write.

    Raises:
        UsageError: as `MetricLogs`.
    """
    if "none" in names and len(set(names)) > 1:
        raise UsageError(f"--log none stands alone, not beside {', '.join(n for n in names if n != 'none')}")
    for name in ("tensorboard", "wandb"):
        if name in names and find_spec(name) is None:
            raise UsageError(f"--log {name} needs the package {name}: pip install 'rpp-clip[{name}]'")
    automatic = "auto" in names and find_spec("tensorboard") is not None
    return [
        *(["tensorboard"] if automatic or "tensorboard" in names else []),
        *(["wandb"] if "wandb" in names else []),
    ]


def _done(work: Callable[[], None]) -> bool:
    try:
        work()
    except RppError as error:
        _note(error)
        return False
    return True


def _note(error: RppError) -> None:
    print(f"note: {error}; the run goes on, its figures are in metrics.jsonl", file=sys.stderr, flush=True)
