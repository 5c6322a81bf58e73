"""Signals end a block with one line."""

import os
import signal

import pytest

from teacher_cache.errors import RppError
from teacher_cache.stopping import STOPPED, stoppable


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_the_block_with_one_line(number: signal.Signals) -> None:
    before = signal.getsignal(signal.SIGTERM)
    # a shell that starts pytest in the background ignores SIGINT
    interrupt = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(RppError, match=f"^{STOPPED}$"), stoppable():
            os.kill(os.getpid(), number)
        assert signal.getsignal(signal.SIGTERM) == before
    finally:
        signal.signal(signal.SIGINT, interrupt)
