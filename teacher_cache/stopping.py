"""Ctrl-C, SIGTERM and SIGHUP end a command with one line instead of a traceback."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from teacher_cache.errors import RppError

STOPPED = "stopped; what is committed is safe: run the same command again to continue"


@contextmanager
def handling_stops(handler: Callable[[int, Any], Any], *more: signal.Signals) -> Iterator[None]:
    """Handle SIGTERM (a batch system's time limit, `docker stop`) and SIGHUP (a closed terminal).

    A SIGHUP that is ignored stays ignored, as `nohup` wants it. Only the first one counts: terminal and shell
    send one each. In another thread than the main one the caller handles signals.

    Args:
        handler: called with the number of the signal and the current frame.
        more: further signals to handle.
    """

    def handle(number: int, frame: Any) -> None:
        if number == signal.SIGHUP:
            signal.signal(number, signal.SIG_IGN)
        handler(number, frame)

    numbers = [signal.SIGTERM, *more]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    if threading.current_thread() is not threading.main_thread():
        numbers.clear()
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)


@contextmanager
def stoppable(line: str = STOPPED) -> Iterator[None]:
    """End the block with one line on Ctrl-C, SIGTERM or SIGHUP.

    Raises:
        RppError: `line`, after such a signal.
    """
    try:
        with handling_stops(signal.default_int_handler):
            yield
    except KeyboardInterrupt as error:
        raise RppError(line) from error
