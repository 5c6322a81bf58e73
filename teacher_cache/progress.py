"""Progress of long work on standard error: a bar in a terminal, plain lines elsewhere.

A plain line is `WHAT DONE/TOTAL  RATE/s  left H:MM:SS` and any number of `NAME VALUE`, two spaces apart.
"""

import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from datetime import timedelta
from typing import IO, Any, cast

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

from teacher_cache.errors import RppError

LINE_EVERY_SECONDS = 10.0


class _Screen:
    """Standard error; what it does not take, because a terminal or pipe was closed, is dropped."""

    def __init__(self) -> None:
        self._file = sys.stderr

    def write(self, text: str) -> int:
        """Write what the file takes."""
        with suppress(OSError):
            if self._file is not None:  # it was closed when Python started
                return self._file.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush what the file takes."""
        with suppress(OSError):
            if self._file is not None:
                self._file.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def print_remark(text: str) -> None:
    """Print a line on standard error, if it is open."""
    print(text, file=_Screen(), flush=True)


class Counter:
    """Count finished work; call it with the amount, from any thread."""

    def __init__(self, what: str, total: int, bar: Progress | None) -> None:
        self.what, self.total, self.done = what, total, 0
        self.fields: dict[str, str] = {}
        self._bar = bar
        self._task = bar.add_task(what, total=total, rate="", left="", more="") if bar else None
        self._started = self._printed = time.monotonic()
        self._before = 0
        self._changed = False  # since the last line

    def start_at(self, done: int) -> None:
        """Set what was done before: it is displayed, but not counted in the rate or the time left."""
        self.done = self._before = done

    def __call__(self, amount: int = 1, **fields: str) -> None:
        """Count `amount`; `fields` are displayed beside it as `name value`."""
        self.reach(self.done + amount, **fields)

    def reach(self, done: int, **fields: str) -> None:
        """Set how much is done in total; it decreases when work is lost. `fields` as above."""
        self.done, self._changed = done, True
        self.fields.update(fields)
        if self._bar and self._task is not None:
            rate = f"{_figures(self._rate())} {self.what}/s"
            left = str(self._left())
            self._bar.update(self._task, completed=self.done, rate=rate, left=left, more=self._more())
        elif time.monotonic() - self._printed >= LINE_EVERY_SECONDS:
            self.print_line()

    def print_line(self) -> None:
        """Print the progress if it changed since the last line."""
        if not self._changed:
            return
        self._changed, self._printed = False, time.monotonic()
        rate = f"{_figures(self._rate())}/s"
        line = f"{self.what} {self.done}/{self.total}  {rate}  left {self._left()}  {self._more()}"
        print(line.rstrip(), file=_Screen(), flush=True)

    def _rate(self) -> float:
        return (self.done - self._before) / max(time.monotonic() - self._started, 1e-9)

    def _left(self) -> timedelta | str:
        rate = self._rate()
        return timedelta(seconds=round((self.total - self.done) / rate)) if rate else "?"

    def _more(self) -> str:
        return "  ".join(f"{name} {value}" for name, value in self.fields.items())


def _figures(rate: float) -> str:
    """Format a rate; rates below 1 are those of runs of minutes."""
    return f"{rate:.1f}" if rate >= 1 else f"{rate:.3f}"


class _TwoLines(Progress):
    """A bar with its fields on a second line: 80 columns do not have room for both."""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        for task in self.tasks:
            if task.fields["more"]:
                yield Text(task.fields["more"], no_wrap=True, overflow="ellipsis")


@contextmanager
def counting(what: str, total: int) -> Iterator[Counter]:
    """Display progress of `total` units of work while the block runs."""
    console = Console(file=cast("IO[str]", _Screen()))
    if not console.is_interactive:  # not a terminal, or one that cannot move its cursor
        counter = Counter(what, total, None)
        try:
            yield counter
        finally:
            counter.print_line()
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TextColumn("{task.fields[left]}"),  # rich's own is that of the last pair, if two runs end together
    )
    with _TwoLines(*columns, console=console, expand=True) as bar:
        yield Counter(what, total, bar)


@contextmanager
def loading(what: str = "torch and open_clip") -> Iterator[None]:
    """Display in a terminal that packages are being imported; the line is removed when the block ends.

    Raises:
        RppError: a third-party package cannot be imported.
    """
    console = Console(stderr=True)
    first = os.environ.get("LOCAL_RANK", "0") == "0"  # torchrun starts several processes on one terminal
    try:
        spinner = "line" if console.options.ascii_only else "dots"
        shows = console.is_interactive and first
        with console.status(f"loading {what} ...", spinner=spinner) if shows else nullcontext():
            yield
    except ImportError as error:
        if (error.name or "").partition(".")[0] in ("teacher_cache", "student_train", "pipeline"):
            raise  # a defect of this project
        raise RppError(f"cannot import {what}: {error}; reinstall the named package") from error
