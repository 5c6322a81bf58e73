"""Progress without a terminal is lines that a program can read; in one it is in `test_terminal.py`."""

import contextlib
import os
import pty
import re
import subprocess
import sys

import pyte
import pytest

from teacher_cache import progress
from teacher_cache.progress import counting, loading

LINE = re.compile(r"(\S+) (\d+)/(\d+)  ([\d.]+)/s  left (\d+:\d\d:\d\d|\?)((?:  \S+ \S+)*)")


def lines(error: str) -> list[tuple[str, ...]]:
    assert "\x1b" not in error
    found = [LINE.fullmatch(line) for line in error.splitlines()]
    assert all(found), error
    return [match.groups() for match in found if match]


def test_a_short_work_says_one_line_at_its_end(capsys: pytest.CaptureFixture[str]) -> None:
    with counting("parts", 4) as counter:
        counter.start_at(1)
        for _ in range(3):
            counter(loss="0.5", wait="1.0s")
    ((what, done, total, _, left, more),) = lines(capsys.readouterr().err)
    assert (what, done, total, left) == ("parts", "4", "4", "0:00:00")
    assert more == "  loss 0.5  wait 1.0s"


def test_a_long_work_says_lines_in_between(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "LINE_EVERY_SECONDS", 0.0)
    with counting("steps", 3) as counter:
        for loss in ("3", "2", "1"):
            counter(0, loss=loss)
            counter()
    said = lines(capsys.readouterr().err)
    assert [line[1] for line in said] == ["0", "1", "1", "2", "2", "3"]
    assert [line[5] for line in said] == [f"  loss {loss}" for loss in "332211"]


def test_the_rate_of_slow_work_has_digits(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = iter([0.0, 0.0, *([80.0] * 9)])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now))
    with counting("runs", 18) as counter:
        counter.start_at(6)
        counter(2)
    ((_, done, _, rate, left, _),) = lines(capsys.readouterr().err)
    assert (done, rate, left) == ("8", "0.025", "0:06:40")


def test_the_time_left_in_a_bar_is_that_of_all_finished_work() -> None:
    """Kept work does not count, and two units that end together are not a fast pace."""
    slow = "import time; from teacher_cache.progress import counting\nwith counting('runs', 100) as c:\n"
    slow += " c.start_at(90)\n for _ in range(2): time.sleep(1.5); c(); c()\n"
    screen = pyte.Screen(80, 24)
    pyte.ByteStream(screen).feed(in_terminal(slow))
    assert re.search(r"94/100 1\.[0123] runs/s 0:00:0[56]", "".join(screen.display))


def test_a_work_that_fails_says_how_far_it_came(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="invalid literal"), counting("rows", 5) as counter:  # noqa: PT012
        counter(int("2"))
        counter(int("no more"))
    assert [line[1:3] for line in lines(capsys.readouterr().err)] == [("2", "5")]


def test_a_work_that_never_began_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with counting("rows", 5):
        pass
    assert capsys.readouterr().err == ""


LOAD = "import time; from teacher_cache.progress import loading\nwith loading(): time.sleep(0.5)"


def in_terminal(code: str, **environment: str) -> bytes:
    """What a terminal gets from a process."""
    master, slave = pty.openpty()
    env = os.environ | {"TERM": "xterm", "COLUMNS": "80"} | environment
    with subprocess.Popen([sys.executable, "-c", code], stdout=slave, stderr=slave, env=env) as process:
        os.close(slave)
        got = b""
        with contextlib.suppress(OSError):  # how Linux says that a terminal is closed
            while piece := os.read(master, 4096):
                got += piece
    os.close(master)
    assert process.returncode == 0
    return got


def test_loading_is_said_in_a_terminal_and_gone_afterwards() -> None:
    got = in_terminal(LOAD)
    assert b"loading torch and open_clip ..." in got
    screen = pyte.Screen(80, 24)
    pyte.ByteStream(screen).feed(got)
    assert "".join(screen.display).strip() == ""
    assert in_terminal(LOAD, LOCAL_RANK="1") == b"", "one of several processes says it"
    assert in_terminal(LOAD, TERM="dumb") == b""


def test_loading_is_not_said_elsewhere(capfd: pytest.CaptureFixture[str]) -> None:
    with loading():
        pass
    assert capfd.readouterr() == ("", "")
