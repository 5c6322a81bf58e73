"""Rules for every call that reads hostile input, and how they are checked."""

import os
import re
import resource
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from teacher_cache.errors import RppError
from teacher_cache.images.decode import UnreadableImageError

PROCESSOR_SECONDS = 20.0  # of a call; calls on valid files take a hundredth of it
MORE_BYTES = 3 << 30  # address space that a call may use, threads and their arenas included
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")

Outcome = Literal["read", "refused"]
outcomes: Counter[Outcome] = Counter()

# Audit events of started programs, and of globals that the C unpickler looks up.
RUNS = {"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "pickle.find_class"}
CHANGES = {
    "os.rename",
    "os.remove",
    "os.mkdir",
    "os.rmdir",
    "os.link",
    "os.symlink",
    "os.truncate",
    "os.chmod",
}
_violations: list[str] | None = None  # None outside of `watched`
_may_write: tuple[str, ...] = ()


class TooLongError(BaseException):
    """A call took more processor time than allowed."""


def tried(call: Callable[[], Any], may_write: Path | None = None) -> Outcome:
    """Make a call and return whether it read the input, or refused it with one of our errors in one line.

    Args:
        call: the call.
        may_write: the only folder in which the call may write.

    Raises:
        AssertionError: the error has several lines, a file was written elsewhere, or a program was started.
        BaseException: any other error of the call, or TooLongError.
    """
    refused: Exception | None = None
    with watched(may_write), bounded():
        try:
            call()
        except (RppError, UnreadableImageError) as error:
            refused = error
    assert refused is None or is_one_line(str(refused)), f"not one line: {refused!r}"
    outcome: Outcome = "read" if refused is None else "refused"
    outcomes[outcome] += 1
    return outcome


def is_one_line(text: str) -> bool:
    """Return whether a terminal shows the text as one line and interprets nothing in it."""
    return bool(text.strip()) and not CONTROL.search(text)


@contextmanager
def watched(may_write: Path | None = None) -> Iterator[None]:
    """Assert that the block writes only in a folder, starts no program and unpickles nothing."""
    global _violations, _may_write
    _violations, _may_write = [], () if may_write is None else (f"{os.path.realpath(may_write)}/",)
    try:
        yield
    finally:
        found, _violations = _violations, None
    assert not found, found


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if _violations is None:
        return
    if event in RUNS:
        _violations.append(f"{event} {arguments[:2]}")
    elif event in CHANGES or (event == "open" and _writes(arguments)):
        paths = (
            arguments[:1] if event == "open" else arguments
        )  # the other arguments of an open are its mode and flags
        places = [os.fsdecode(path) for path in paths if isinstance(path, str | bytes | os.PathLike)]
        if event == "os.symlink":  # its target is relative to its folder
            places[0] = os.path.join(os.path.dirname(places[1]), places[0])
        if not all(f"{os.path.realpath(place)}/".startswith(_may_write or "\0") for place in places):
            _violations.append(f"{event} {arguments}")


def _writes(arguments: tuple[Any, ...]) -> bool:
    _, _, flags = arguments
    return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC))


sys.addaudithook(_audit)  # cannot be removed; it does nothing outside of `watched`


@contextmanager
def bounded() -> Iterator[None]:
    """Limit processor time, and memory beyond what is in use now."""

    def stop(*_: object) -> None:
        raise TooLongError(f"more than {PROCESSOR_SECONDS:.0f} seconds of processor time")

    # processor time, because the machine may be busy and pytest-timeout uses the other timer
    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, PROCESSOR_SECONDS)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MORE_BYTES, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
