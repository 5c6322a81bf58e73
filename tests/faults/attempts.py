"""Commands called in processes of their own, and disturbed there."""

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

LOOK_SECONDS = 0.002


@dataclass(frozen=True)
class Ended:
    """How a call ended.

    Attributes:
        code: its exit code; negative: the signal that ended it.
        said: its standard error.
        left: command lines of processes that it began and that live on without it.
    """

    code: int
    seconds: float
    said: str
    left: list[str]

    @property
    def last_line(self) -> str:
        """What the user reads at the end."""
        lines = [line for line in self.said.splitlines() if line.strip()]
        return lines[-1] if lines else ""

    @property
    def is_one_sentence(self) -> bool:
        """An error as the commands print them: its exit code, one line, no traceback."""
        return self.code in (1, 2) and self.last_line.startswith("error: ") and "Traceback" not in self.said


class Attempts:
    """Calls of the commands, each in a process of its own."""

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
            kill_after: seconds until it is killed, if it has not ended by then.
            kill_workers: seconds after which one of its worker processes is killed, each.
            environment: variables that are set there.
            disturbed: what is in its way, as arguments of `disturb`.
        """
        begun = time.monotonic()
        process = self._processes.start(
            *command,
            stdout=None,
            environment={**os.environ, **(environment or {})},
            before=("tests.faults.attempts:disturb", disturbed) if disturbed else None,
        )
        until, waiting = END_SECONDS if kill_after is None else kill_after, sorted(kill_workers)
        while process.wait(LOOK_SECONDS, required=False) is None:
            seconds = time.monotonic() - begun
            if seconds > until:
                process.kill()
            elif waiting and seconds > waiting[0] and (workers := workers_of(process.pid)):
                del waiting[0]
                os.kill(random.Random(seconds).choice(workers), signal.SIGKILL)
        took, left = time.monotonic() - begun, left_of(process.pid)
        ended = process.ended()
        return Ended(ended.code, took, ended.err, left)


def disturb(
    largest_file: int | None = None,
    no_rights: bool = False,
    clock: int | None = None,
    failing_read: int | None = None,
) -> None:
    """Put something in the way of this process.

    Args:
        largest_file: bytes beyond which no file can be written.
        no_rights: without the capabilities of root.
        clock: seed of a clock that jumps, once, by up to a day to or fro.
        failing_read: which read of an image (the first is 1) fails with an I/O error, as on a bad disk.
    """
    if largest_file is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    if no_rights:
        without_rights()
    if clock is not None:
        jumping(random.Random(clock))
    if failing_read is not None:
        failing(failing_read)


def jumping(chance: random.Random) -> None:
    """The clock that people read jumps once, at some moment; the monotonic one does not, as anywhere."""
    real, begun = time.time, time.monotonic()
    when, by = chance.uniform(0, 2), chance.uniform(-86_400, 86_400)
    time.time = lambda: real() + (by if time.monotonic() - begun > when else 0)


def without_rights() -> None:
    """Root may write everywhere; without its capabilities it may what the rights of a file say."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    assert ctypes.CDLL(None, use_errno=True).capset(header, (ctypes.c_uint32 * 6)()) == 0


def failing(number: int) -> None:
    """One read at a place in a file fails."""
    real, count = os.pread, iter(range(1, 1_000_000))

    def read(*arguments: Any) -> bytes:
        if next(count) == number:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(*arguments)

    os.pread = read


def processes() -> list[tuple[int, int, int, str]]:
    """Of each process that has not ended: number, parent, session, command line."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, parent, _, session = (folder / "stat").read_text().rpartition(") ")[2].split()[:4]
            words = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # it has ended meanwhile
            continue
        if state != "Z":
            found.append((int(folder.name), int(parent), int(session), words))
    return found


def workers_of(process: int) -> list[int]:
    """Dask workers that it began."""
    return [pid for pid, parent, _, words in processes() if parent == process and "spawn_main" in words]


def left_of(session: int) -> list[str]:
    """Command lines of processes of a session that are still there some seconds later."""
    until = time.monotonic() + 15
    while left := [(pid, words) for pid, _, of, words in processes() if of == session]:
        if time.monotonic() > until:
            for pid, _ in left:
                os.kill(pid, signal.SIGKILL)
            return [words for _, words in left]
        time.sleep(0.02)
    return []
