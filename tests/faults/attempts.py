"""Call commands in processes of their own, and disturb them there."""

import ctypes
import errno
import os
import random
import resource
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.processes import END_SECONDS, ForkServer

POLL_SECONDS = 0.002


@dataclass(frozen=True)
class Ended:
    """How a call ended.

    Attributes:
        code: exit code, or the negative number of the signal that ended it.
        seconds: how long it took.
        stderr: standard error.
        left: command lines of processes that it started and that outlived it.
    """

    code: int
    seconds: float
    stderr: str
    left: list[str]

    @property
    def last_line(self) -> str:
        """The last line of standard error."""
        lines = [line for line in self.stderr.splitlines() if line.strip()]
        return lines[-1] if lines else ""

    @property
    def is_one_line_error(self) -> bool:
        """Whether it ended with an error for the user: an exit code and one line, no traceback."""
        return self.code in (1, 2) and self.last_line.startswith("error: ") and "Traceback" not in self.stderr


class Attempts:
    """Calls commands, each in a process of its own."""

    def __init__(self, processes: ForkServer) -> None:
        self._processes = processes

    def call(
        self,
        *command: Any,
        kill_after: float | None = None,
        kill_workers: Sequence[float] = (),
        environment: Mapping[str, str] | None = None,
        **disturbed: Any,
    ) -> Ended:
        """Call `rpp-cache ...` or `rpp-train ...` in a process of its own.

        Args:
            command: the command line.
            kill_after: seconds after which it is killed if it has not ended.
            kill_workers: times, in seconds, at each of which one of its worker processes is killed.
            environment: additional environment variables.
            disturbed: arguments of `disturb`.
        """
        started = time.monotonic()
        process = self._processes.start(
            *command,
            stdout=None,
            environment={**os.environ, **(environment or {})},
            before=("tests.faults.attempts:disturb", disturbed) if disturbed else None,
        )
        until, waiting = END_SECONDS if kill_after is None else kill_after, sorted(kill_workers)
        while process.wait(POLL_SECONDS, required=False) is None:
            seconds = time.monotonic() - started
            if seconds > until:
                process.kill()
            elif waiting and seconds > waiting[0] and (workers := workers_of(process.pid)):
                del waiting[0]
                os.kill(random.Random(seconds).choice(workers), signal.SIGKILL)
        took, left = time.monotonic() - started, left_of(process.pid)
        ended = process.ended()
        return Ended(ended.code, took, ended.err, left)


def disturb(
    largest_file: int | None = None,
    no_rights: bool = False,
    clock: int | None = None,
    failing_read: int | None = None,
) -> None:
    """Disturb this process.

    Args:
        largest_file: limit of a file's size in bytes.
        no_rights: drop the capabilities of root.
        clock: seed of a clock that jumps once, by up to a day forward or back.
        failing_read: number, from 1, of the read of an image that fails with an I/O error.
    """
    if largest_file is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    if no_rights:
        drop_capabilities()
    if clock is not None:
        make_clock_jump(random.Random(clock))
    if failing_read is not None:
        make_read_fail(failing_read)


def make_clock_jump(chance: random.Random) -> None:
    """Make the wall clock jump once at a random moment; the monotonic clock continues."""
    real, started = time.time, time.monotonic()
    when, by = chance.uniform(0, 2), chance.uniform(-86_400, 86_400)
    time.time = lambda: real() + (by if time.monotonic() - started > when else 0)


def drop_capabilities() -> None:
    """Drop root's capabilities, so that file permissions apply."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    assert ctypes.CDLL(None, use_errno=True).capset(header, (ctypes.c_uint32 * 6)()) == 0


def make_read_fail(number: int) -> None:
    """Make the read of this number fail."""
    real, count = os.pread, iter(range(1, 1_000_000))

    def read(*arguments: Any) -> bytes:
        if next(count) == number:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(*arguments)

    os.pread = read


def processes() -> list[tuple[int, int, int, str]]:
    """Return process id, parent, session and command line of each running process."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, parent, _, session = (folder / "stat").read_text().rpartition(") ")[2].split()[:4]
            words = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # it has ended in the meantime
            continue
        if state != "Z":
            found.append((int(folder.name), int(parent), int(session), words))
    return found


def workers_of(process: int) -> list[int]:
    """Return the Dask workers that a process started."""
    return [pid for pid, parent, _, words in processes() if parent == process and "spawn_main" in words]


def left_of(session: int) -> list[str]:
    """Return the command lines of processes of a session that still run after some seconds."""
    until = time.monotonic() + 15
    while left := [(pid, words) for pid, _, of, words in processes() if of == session]:
        if time.monotonic() > until:
            for pid, _ in left:
                os.kill(pid, signal.SIGKILL)
            return [words for _, words in left]
        time.sleep(0.02)
    return []
