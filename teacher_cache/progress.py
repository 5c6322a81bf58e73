"""Progress of long work on standard error: a bar in a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

LINE_EVERY_SECONDS = 10.0


class Counter:
    """Counts work that is done; call it with the amount, from any thread."""

    def __init__(self, what: str, total: int, bar: Progress | None) -> None:
        self.what, self.total, self.done = what, total, 0
        self.fields: dict[str, str] = {}
        self._bar = bar
        self._task = bar.add_task(what, total=total, rate="", more="") if bar else None
        self._started = self._printed = time.monotonic()
        self._before = 0

    def start_at(self, done: int) -> None:
        """Say what was done before: it is shown, but not counted in the rate."""
        self.done = self._before = done

    def __call__(self, amount: int = 1, **fields: str) -> None:
        """Count `amount`; `fields` are shown beside it as `name value`."""
        self.fields.update(fields)
        self.reach(self.done + amount)

    def reach(self, done: int) -> None:
        """Say how much is done in all; work that was lost makes it less."""
        self.done = done
        now = time.monotonic()
        rate = (self.done - self._before) / max(now - self._started, 1e-9)
        more = "  ".join(f"{name} {value}" for name, value in self.fields.items())
        if self._bar and self._task is not None:
            self._bar.update(self._task, completed=self.done, rate=f"{rate:,.1f}/s", more=more)
        elif now - self._printed >= LINE_EVERY_SECONDS or self.done == self.total:
            self._printed = now
            left = timedelta(seconds=round((self.total - self.done) / rate)) if rate else "?"
            print(
                f"{self.what} {self.done}/{self.total}  {rate:.1f}/s  left {left}  {more}".rstrip(),
                file=sys.stderr,
                flush=True,
            )


@contextmanager
def counting(what: str, total: int) -> Iterator[Counter]:
    """Show progress of `total` pieces of work while the block runs."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield Counter(what, total, None)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[more]}"),
    )
    with Progress(*columns, console=console) as bar:
        yield Counter(what, total, bar)
