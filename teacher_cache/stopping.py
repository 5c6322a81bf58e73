"""Ctrl-C and SIGTERM as one line, and not as a traceback."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from teacher_cache.errors import RppError

STOPPED = "stopped; what is committed is safe: run the same command again to go on"


@contextmanager
def stoppable(line: str = STOPPED) -> Iterator[None]:
    """Ctrl-C and SIGTERM (a batch system's time limit, `docker stop`) end the block with one line."""
    ours = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, signal.default_int_handler) if ours else None
    try:
        yield
    except KeyboardInterrupt as error:
        raise RppError(line) from error
    finally:
        if ours:
            signal.signal(signal.SIGTERM, before)
