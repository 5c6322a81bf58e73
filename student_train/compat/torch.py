"""End a DataLoader's worker processes immediately.

Private: `_workers` and `_shutdown_workers` of the loader's iterator, seen in torch 2.6 to 2.14. Torch calls
the second when the iterator is freed, which a kept traceback delays, and ends hanging workers by SIGTERM,
which ours ignore. Without these names the iterator is freed, torch has some seconds to end the processes, and
those that remain are killed.
"""

import multiprocessing
import time
from collections.abc import Iterable, Iterator
from multiprocessing.process import BaseProcess
from typing import Any

from teacher_cache.compat.main_module import main_not_imported

PATIENCE_SECONDS = 5.0


class WorkerProcesses:
    """The worker processes of a DataLoader's iterator, `pieces`."""

    def __init__(self, loader: Iterable[Any]) -> None:
        """Start the processes."""
        before = set(multiprocessing.active_children())
        with main_not_imported():
            self.pieces: Iterator[Any] = iter(loader)
        self._started: list[BaseProcess] = [p for p in multiprocessing.active_children() if p not in before]

    def end(self) -> None:
        """End the processes; none is left, whatever it is doing."""
        pieces, self.pieces = self.pieces, iter(())
        if hasattr(pieces, "_shutdown_workers") and getattr(pieces, "_workers", []):
            pieces._shutdown_workers()
        del pieces
        until = time.monotonic() + PATIENCE_SECONDS
        for worker in self._started:
            worker.join(max(0.0, until - time.monotonic()))
            worker.kill()
