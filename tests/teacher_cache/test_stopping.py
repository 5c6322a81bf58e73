"""Signals end a block with one line."""

import os
import signal
import subprocess
import sys

import pytest

from teacher_cache.errors import RppError
from teacher_cache.stopping import STOPPED, stoppable

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.mark.parametrize("number", SIGNALS)
def test_signals_end_the_block_with_one_line(number: signal.Signals) -> None:
    before = {each: signal.getsignal(each) for each in SIGNALS}
    # a shell that starts pytest in the background ignores SIGINT, nohup ignores SIGHUP
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        with pytest.raises(RppError, match=f"^{STOPPED}$"), stoppable():
            os.kill(os.getpid(), number)
        assert signal.getsignal(signal.SIGTERM) == before[signal.SIGTERM]
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def test_the_second_hangup_of_a_closed_terminal_does_not_end_the_cleanup() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    cleaned = []

    def hang_up_twice() -> None:
        try:
            os.kill(os.getpid(), signal.SIGHUP)
        finally:
            os.kill(os.getpid(), signal.SIGHUP)
            cleaned.append(True)

    try:
        with pytest.raises(RppError, match=f"^{STOPPED}$"), stoppable():
            hang_up_twice()
        assert cleaned
    finally:
        signal.signal(signal.SIGHUP, before)


def test_nohup_is_respected() -> None:
    script = (
        "import os, signal; from teacher_cache.stopping import stoppable\n"
        "with stoppable(): os.kill(os.getpid(), signal.SIGHUP); print('still here')"
    )
    ended = subprocess.run(
        ["nohup", sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=100
    )
    assert ended.stdout == "still here\n"
