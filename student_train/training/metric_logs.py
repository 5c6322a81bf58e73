"""Copies of a run's metrics for TensorBoard and Weights & Biases.

`metrics.jsonl` is the record of a run; these logs get its lines, those of earlier processes of the run
included. A log that fails is closed with a note, and the run continues.
"""

import os
import secrets
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from student_train.runs.record import read_metrics
from student_train.training.settings import LogName
from teacher_cache.errors import UsageError

TENSORBOARD = "tensorboard"  # folder of the event files, in the run's folder
OWN_FILES = ".rpp"  # suffix of the event files that are written here
WANDB_ID = "wandb-id"  # file with the id of the run at Weights & Biases
Line = dict[str, Any]


class MetricLog(Protocol):
    """A log that gets the lines of `metrics.jsonl`. Its methods may raise any exception."""

    def log(self, line: Line) -> None:
        """Write a line."""

    def close(self, failed: bool) -> None:
        """Close the log; `failed`: the run did not reach its last step."""


class TensorBoardLog:
    """TensorBoard's event files. Each start of a run adds one with all lines, which replaces the earlier."""

    def __init__(self, folder: Path, lines: Iterable[Line]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # TensorBoard drops earlier events from this step on
        purge_step = 0 if any(folder.glob(f"events.out.tfevents.*{OWN_FILES}")) else None
        self._writer = SummaryWriter(str(folder), purge_step=purge_step, filename_suffix=OWN_FILES)
        for line in lines:
            self.log(line)

    def log(self, line: Line) -> None:
        """See `MetricLog`."""
        for name, value in figures_of(line).items():
            self._writer.add_scalar(name, value, line["step"], line_time(line))
        self._writer.flush()  # its thread would report a full disk some lines later

    def close(self, failed: bool) -> None:
        """See `MetricLog`."""
        self._writer.close()


class WandbLog:
    """A run at Weights & Biases. Its id is kept in the run's folder: a resumed run continues it."""

    def __init__(self, out: Path, lines: Iterable[Line], config: dict[str, Any], resumed: bool) -> None:
        """Raises:
        UsageError: Weights & Biases does not accept the run.
        OSError: the id cannot be written.
        """
        import wandb

        id_file = out / WANDB_ID
        known = id_file.read_text(encoding="utf-8").strip() if resumed and id_file.is_file() else None
        run_id = known or secrets.token_hex(4)
        id_file.write_text(run_id, encoding="utf-8")
        try:
            self._run: Any = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "rpp"),
                dir=str(out),
                name=out.absolute().name,
                id=run_id,
                resume="allow" if known else None,
                config=config,
                # names and paths of the machine are private; its load is logged
                settings=wandb.Settings(
                    console="off", disable_git=True, disable_code=True, x_disable_meta=True
                ),
            )
        except Exception as error:  # wandb documents no list: no key, no network, no service
            raise UsageError(
                f"--log wandb: {' '.join(str(error).split())}; log in with `wandb login`, or set "
                "WANDB_MODE=offline and send the run later with `wandb sync`"
            ) from error
        for line in lines:
            self.log(line)

    def log(self, line: Line) -> None:
        """Send a line unless Weights & Biases has its step already; see `MetricLog`."""
        # a resumed run cannot replace steps there
        if line["step"] >= self._run.step:
            figures = {**figures_of(line), "_timestamp": line_time(line)}
            self._run.log(figures, step=line["step"], commit=True)

    def close(self, failed: bool) -> None:
        """Wait until everything is sent, or written if offline; see `MetricLog`."""
        self._run.finish(exit_code=int(failed))


def figures_of(line: Line) -> dict[str, float]:
    """The figures of a line of `metrics.jsonl`: all numbers but the step and the time."""
    return {
        name: value
        for name, value in line.items()
        if name not in ("step", "time") and isinstance(value, int | float)
    }


def line_time(line: Line) -> float:
    """When a line was logged, in seconds since 1970; now for a line that has no time."""
    return float(line.get("time", time.time()))


class MetricLogs:
    """All logs of a run, closed at the end of a `with` block."""

    def __init__(self, names: Sequence[LogName]) -> None:
        """Choose the logs; none is opened yet.

        Raises:
            UsageError: a log whose package is not installed, or `none` beside others.
        """
        self._chosen = chosen_logs(names)
        self._open: dict[str, MetricLog] = {}

    def open(self, out: Path, config: dict[str, Any], resumed: bool) -> None:
        """Open the logs, and write the lines that `metrics.jsonl` has.

        Args:
            out: the run's folder.
            config: what is published about the run.

        Raises:
            UsageError: Weights & Biases does not accept the run.
        """
        for name in self._chosen:
            self._attempt(name, self._open_log, name, out, config, resumed)

    def _open_log(self, name: str, out: Path, config: dict[str, Any], resumed: bool) -> None:
        lines = read_metrics(out)
        if name == "tensorboard":
            self._open[name] = TensorBoardLog(out / TENSORBOARD, lines)
        else:
            self._open[name] = WandbLog(out, lines, config, resumed)

    def log(self, line: Line) -> None:
        """Write a line to all logs."""
        for name, log in list(self._open.items()):
            if not self._attempt(name, log.log, line):
                del self._open[name]
                with suppress(Exception):  # it has failed already
                    log.close(failed=True)

    def _attempt(self, name: str, work: Callable[..., None], *arguments: Any) -> bool:
        """Call; print a note if it fails. Returns whether it succeeded."""
        try:
            work(*arguments)
        except UsageError:
            raise
        except Exception as error:  # of any library: a copy of the metrics must not end the run
            reason = " ".join(str(error).split()) or type(error).__name__
            note = f"note: --log {name}: {reason}; the run continues, its figures are in metrics.jsonl"
            print(note, file=sys.stderr, flush=True)
            return False
        return True

    def __enter__(self) -> "MetricLogs":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for name, log in self._open.items():
            self._attempt(name, log.close, kind is not None)
        self._open = {}


def chosen_logs(names: Sequence[LogName]) -> list[str]:
    """The logs to write, for the values of `--log`.

    Raises:
        UsageError: as `MetricLogs`.
    """
    if "none" in names and len(set(names)) > 1:
        others = ", ".join(name for name in names if name != "none")
        raise UsageError(f"--log none cannot be combined with {others}")
    for name in ("tensorboard", "wandb"):
        if name in names and find_spec(name) is None:
            raise UsageError(f"--log {name} needs the package {name}: pip install 'rpp-clip[{name}]'")
    automatic = ["tensorboard"] if "auto" in names and find_spec("tensorboard") is not None else []
    return [name for name in ("tensorboard", "wandb") if name in [*names, *automatic]]
