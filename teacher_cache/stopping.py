"""Ctrl-C and SIGTERM end a command with one line instead of a traceback."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from teacher_cache.errors import RppError

STOPPED = "stopped; what is committed is safe: run the same command again to continue"


@contextmanager
def stoppable(line: str = STOPPED) -> Iterator[None]:
    """End the block with one line on Ctrl-C or SIGTERM (a batch system's time limit, `docker stop`).

    Raises:
        RppError: `line`, after either signal.
    """
    in_main_thread = threading.current_thread() is threading.main_thread()  # others cannot set handlers
    before = signal.signal(signal.SIGTERM, signal.default_int_handler) if in_main_thread else None
    try:
        yield
    except KeyboardInterrupt as error:
        raise RppError(line) from error
    finally:
        if in_main_thread:
            signal.signal(signal.SIGTERM, before)
