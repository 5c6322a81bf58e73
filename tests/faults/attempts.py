"""Commands called in processes of their own, and disturbed there.

Importing torch takes longer than what is tried here: it is done once, in a process that forks for each call.
"""

import ctypes
import errno
import io
import json
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

LOOK_SECONDS = 0.002
END_SECONDS = 600.0  # no call takes this long, on any machine


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
    """The process that forks."""

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.attempts"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        return self

    def __exit__(self, *error: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def call(self, *command: Any, **disturbed: Any) -> Ended:
        """Call `rpp-cache ...` or `rpp-train ...` in a process of its own.

        Args:
            kill_after: seconds until it is killed, if it has not ended by then.
            kill_workers: seconds after which one of its worker processes is killed, each.
            largest_file: bytes beyond which no file can be written.
            no_rights: without the capabilities of root.
            clock: seed of a clock that jumps, once, by up to a day to or fro.
            failing_read: which read of an image (the first is 1) fails with an I/O error, as on a bad disk.
            environment: variables that are set there.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(
            json.dumps({"command": list(map(str, command)), **disturbed}),
            file=self._process.stdin,
            flush=True,
        )
        return Ended(**json.loads(self._process.stdout.readline()))


def main() -> None:
    """Answer each call with how it ended."""
    import torch

    from student_train.cli import main as train
    from teacher_cache.cli import main as cache

    torch.set_num_threads(1)
    commands = {"rpp-train": train, "rpp-cache": cache}
    for line in sys.stdin:
        print(json.dumps(attempt(commands, **json.loads(line))), flush=True)


def attempt(
    commands: dict[str, Callable[[], None]],
    command: list[str],
    kill_after: float | None = None,
    kill_workers: list[float] | None = None,
    **disturbed: Any,
) -> dict[str, Any]:
    """Fork, disturb, wait; the fields of `Ended`."""
    reading, writing = os.pipe()  # a file would be short of room with all others
    begun = time.monotonic()
    child = os.fork()
    if child == 0:
        run(commands[command[0]], command, writing, **disturbed)
    os.close(writing)
    said: list[bytes] = []
    reader = threading.Thread(target=lambda: said.extend(iter(lambda: os.read(reading, 65_536), b"")))
    reader.start()
    waiting = sorted(kill_workers or [])
    status = None
    while status is None:
        ended, code = os.waitpid(child, os.WNOHANG)
        seconds = time.monotonic() - begun
        if ended:
            status = os.waitstatus_to_exitcode(code)
        elif seconds > (END_SECONDS if kill_after is None else kill_after):
            os.kill(child, signal.SIGKILL)
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        elif waiting and seconds > waiting[0] and (workers := workers_of(child)):
            del waiting[0]
            os.kill(random.Random(seconds).choice(workers), signal.SIGKILL)
        else:
            time.sleep(LOOK_SECONDS)
    took, left = time.monotonic() - begun, left_of(child)
    reader.join()
    os.close(reading)
    return {"code": status, "seconds": took, "said": b"".join(said).decode(errors="replace"), "left": left}


def run(
    function: Callable[[], None],
    command: list[str],
    said: int,
    largest_file: int | None = None,
    no_rights: bool = False,
    clock: int | None = None,
    failing_read: int | None = None,
    environment: dict[str, str] | None = None,
) -> None:
    """What the fork does; it does not come back."""
    os.environ.update(environment or {})
    os.setsid()  # by its session its processes are known
    os.dup2(said, 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.stderr = io.TextIOWrapper(os.fdopen(2, "wb", 0), write_through=True)
    if largest_file is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    if no_rights:
        without_rights()
    if clock is not None:
        jumping(random.Random(clock))
    if failing_read is not None:
        failing(failing_read)
    sys.argv = command
    code = 0
    try:
        function()
    except SystemExit as ended:
        code = int(ended.code or 0)
    except BaseException:
        traceback.print_exc()
        code = 70
    finally:
        sys.stderr.flush()
        os._exit(code)


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


if __name__ == "__main__":
    main()
