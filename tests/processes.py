"""Run commands in processes of their own, without the seconds of importing torch each time.

A server imports the packages and what they need, and does nothing else with it. For each call it forks, and
the fork becomes what `rpp-cache ...`, `python -c ...` or `python -m ...` starts: it has its own arguments,
environment, working directory, standard streams and session, imports the command lines itself, which look at
the terminal when they are imported, and ends as an interpreter ends. Options of the interpreter, its
variables but for PYTHONPATH and PYTHONUNBUFFERED, and what libraries read from the environment at their
import are the server's.
"""

import atexit
import contextlib
import fcntl
import gc
import importlib
import io
import json
import multiprocessing.process
import os
import pkgutil
import runpy
import select
import selectors
import signal
import socket
import subprocess
import sys
import sysconfig
import threading
import traceback
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, Self

ROOT = Path(__file__).parents[1]
PACKAGES = ("teacher_cache", "student_train", "pipeline")
LIBRARIES = (
    "torch",
    "torch.distributed",
    "torch.utils.checkpoint",
    "torch.utils.data",
    "torchvision.transforms",
    "open_clip",
    "timm.data",
    "huggingface_hub",
    "dask.array",
    "dask.distributed",
    "zarr",
    "fsspec",
    "pyarrow.compute",
    "pyarrow.parquet",
    "safetensors.torch",
    "typer",
    "pydantic",
    "rich.progress",
    "rich.table",
    "jinja2",
    "tensorboard.compat.proto.event_pb2",
    "tensorboard.compat.proto.summary_pb2",
)
END_SECONDS = 600.0  # no call takes this long, on any machine
LONGEST_REQUEST = 1 << 17  # bytes
MOST_GIVEN = 16  # file descriptors of a request
PIPE = subprocess.PIPE


@dataclass(frozen=True)
class Ended:
    """How a process ended: exit code (negative for a signal), standard output and error."""

    code: int
    out: str
    err: str


class _Reader(threading.Thread):
    """Reads a pipe to its end, so that its writer never waits."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._reading, self.writing = os.pipe()
        self.content = b""

    def run(self) -> None:
        pieces = iter(lambda: os.read(self._reading, 65_536), b"")
        self.content = b"".join(pieces)
        os.close(self._reading)

    def text(self) -> str:
        self.join()
        return self.content.decode(errors="replace")


class Process:
    """A process that the server forked."""

    def __init__(self, status: int, readers: Mapping[str, _Reader]) -> None:
        self._status, self._readers = os.fdopen(status, "rb", buffering=0), readers
        self.pid = int(self._line())
        self._code: int | None = None

    def _line(self) -> str:
        line = self._status.readline()
        assert line, "the server of processes has ended"
        return line.decode()

    def poll(self) -> int | None:
        """The exit code, or None while it runs."""
        return self._code if self._code is not None else self.wait(0, required=False)

    def wait(self, timeout: float = END_SECONDS, required: bool = True) -> int | None:
        """Wait for the exit code.

        Args:
            required: raise where it has not ended in time; False: None then.

        Raises:
            TimeoutError: it still runs.
        """
        if self._code is None:
            if select.select([self._status], [], [], timeout)[0]:
                self._code = int(self._line())
                self._status.close()
            elif required:
                raise TimeoutError(f"process {self.pid} still runs")
        return self._code

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def ended(self, timeout: float = END_SECONDS) -> Ended:
        """Wait for the end; what it wrote to standard output and error, where these are pipes.

        Raises:
            TimeoutError: it still ran, and was killed.
        """
        try:
            code = self.wait(timeout)
        except TimeoutError:
            self.kill()
            raise
        assert code is not None
        return Ended(code, *(self._readers[n].text() if n in self._readers else "" for n in ("out", "err")))


class ForkServer:
    """The tests' interface to the server: a context manager that kills all forked processes at its end."""

    def __enter__(self) -> Self:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._server = subprocess.Popen(
                [sys.executable, "-m", "tests.processes", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                cwd=ROOT,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
                pass_fds=[theirs.fileno()],
            )
        return self

    @classmethod
    def attached(cls, number: int) -> Self:
        """Return the server in a fork that has its socket under this number."""
        server = cls()
        server._socket = socket.socket(fileno=number)
        return server

    def fileno(self) -> int:
        """Return the socket for requests."""
        return self._socket.fileno()

    def __exit__(self, *error: object) -> None:
        self._socket.close()
        assert self._server.wait(60) == 0

    def start(
        self,
        *command: Any,
        cwd: Path | str | None = None,
        environment: Mapping[str, str] | None = None,
        stdin: int | None = None,
        stdout: int | None = PIPE,
        stderr: int | None = PIPE,
        kept: Sequence[int] = (),
        before: tuple[str, Mapping[str, Any]] | None = None,
    ) -> Process:
        """Start a command.

        Args:
            command: as it is typed: `rpp-cache`, `rpp-train` or `rpp` with arguments, or `python` with
                `-c CODE` or `-m MODULE` and arguments.
            cwd: its working directory; unset: that of the tests.
            environment: all of its variables; unset: those of the tests.
            stdin: a file descriptor, which stays open here, too; None: nothing can be read.
            stdout: the same; PIPE: it is read; None: its output is dropped.
            stderr: as stdout.
            kept: further file descriptors, which have the same numbers there.
            before: `MODULE:FUNCTION` and its keyword arguments, called in the fork before the command.
        """
        request = {
            "command": list(map(str, command)),
            "cwd": str(cwd or os.getcwd()),
            "environment": dict(os.environ if environment is None else environment),
            "kept": list(kept),
            "before": before,
        }
        status, theirs = os.pipe()
        readers = {name: _Reader() for name, of in (("out", stdout), ("err", stderr)) if of == PIPE}
        with open(os.devnull, "r+b") as nothing:
            streams = [
                nothing.fileno() if of is None else readers[name].writing if of == PIPE else of
                for name, of in (("in", stdin), ("out", stdout), ("err", stderr))
            ]
            socket.send_fds(self._socket, [json.dumps(request).encode()], [theirs, *streams, *kept])
        os.close(theirs)
        for reader in readers.values():
            os.close(reader.writing)
            reader.start()
        return Process(status, readers)

    def call(self, *command: Any, timeout: float = END_SECONDS, **how: Any) -> Ended:
        """Start a command as `start` does, and wait for its end."""
        return self.start(*command, **how).ended(timeout)


class Forked:
    """Replaces `subprocess.Popen([sys.executable, ...])`, as far as the packages use it."""

    def __init__(
        self,
        server: ForkServer,
        command: Sequence[str],
        stdin: int,
        stdout: int,
        env: Mapping[str, str],
        cwd: Path,
        pass_fds: Sequence[int],
        start_new_session: bool,
    ) -> None:
        assert (command[0], stdin, stdout, start_new_session) == (sys.executable, PIPE, PIPE, True)
        (reads, write), (read, writes) = os.pipe(), os.pipe()
        streams = {"stdin": reads, "stdout": writes, "stderr": 2}
        how = {"environment": env, "cwd": cwd, "kept": pass_fds, **streams}
        self._process = server.start("python", *command[1:], **how)
        self.pid = self._process.pid
        self.stdin, self.stdout = os.fdopen(write, "wb"), os.fdopen(read, "rb")
        for place in (reads, writes):
            os.close(place)

    @property
    def returncode(self) -> int | None:
        return self.poll()

    def poll(self) -> int | None:
        return self._process.poll()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        try:
            self.stdin.close()
        finally:
            self._process.wait()
            self.stdout.close()


def fork_runs(server: ForkServer | int) -> None:
    """Let the sweeps of this process fork their runs; in a fork the server is the number of its socket."""
    server = ForkServer.attached(server) if isinstance(server, int) else server
    sweep_jobs = importlib.import_module("pipeline.sweep_jobs")
    sweep_jobs.subprocess = types.SimpleNamespace(PIPE=PIPE, Popen=partial(Forked, server))


@dataclass
class _Request:
    """A request for a fork; the server writes its exit status."""

    command: list[str]
    cwd: str
    environment: dict[str, str]
    kept: list[int]
    before: tuple[str, dict[str, Any]] | None
    given: list[int]  # file descriptors: the standard streams, and those of `kept`


def _serve(requests: socket.socket) -> _Request | None:
    """Fork for each request; returns the request in the fork, and None in the server once the tests ended."""
    waiting: dict[int, tuple[int, int]] = {}  # pidfd -> process, and where its exit code is asked for
    with selectors.DefaultSelector() as selector:
        selector.register(requests, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fd != requests.fileno():
                    child, status = waiting.pop(key.fd)
                    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
                    selector.unregister(key.fd)
                    os.close(key.fd)
                    _answer(status, code)
                    os.close(status)
                    continue
                content, given, _, _ = socket.recv_fds(requests, LONGEST_REQUEST, MOST_GIVEN)
                if not content:
                    for child, _ in waiting.values():
                        os.kill(child, signal.SIGKILL)
                    return None
                status, *given = given
                child = os.fork()
                if child == 0:
                    requests.close()
                    return _Request(**json.loads(content), given=given)
                for place in given:
                    os.close(place)
                _answer(status, child)
                place = os.pidfd_open(child)
                waiting[place] = (child, status)
                selector.register(place, selectors.EVENT_READ)


def _answer(status: int, number: int) -> None:
    with contextlib.suppress(BrokenPipeError):  # the client has ended
        os.write(status, f"{number}\n".encode())


def _become(request: _Request) -> None:
    """Run the command, as `__main__`."""
    os.setsid()  # its processes are known by its session
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # also if the tests run under nohup
    numbers = [0, 1, 2, *request.kept]
    above = [fcntl.fcntl(place, fcntl.F_DUPFD, max(numbers) + 1) for place in request.given]
    for place, number in zip(above, numbers, strict=True):
        os.dup2(place, number)
    for place in map(int, os.listdir("/proc/self/fd")):
        if place not in numbers:
            with contextlib.suppress(OSError):  # that of the folder itself
                os.close(place)
    os.environ.clear()
    os.environ.update(request.environment)
    os.chdir(request.cwd)
    multiprocessing.process.ORIGINAL_DIR = request.cwd
    buffered = not request.environment.get("PYTHONUNBUFFERED")
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.stdout, sys.stderr = (_stream(number, buffered) for number in (1, 2))
    if request.before:
        module, _, function = request.before[0].partition(":")
        getattr(importlib.import_module(module), function)(**request.before[1])
    program, *arguments = request.command
    path = [place for place in os.environ.get("PYTHONPATH", "").split(os.pathsep) if place]
    script = Path(sysconfig.get_path("scripts")) / program
    sys.path[:1] = ["" if program == "python" else str(script.parent), *path]
    importlib.invalidate_caches()
    sys.modules["__main__"] = main = types.ModuleType("__main__")
    if program != "python":
        sys.argv = [str(script), *arguments]
        main.__file__ = str(script)
        exec(compile(script.read_bytes(), script, "exec"), main.__dict__)
    elif arguments[0] == "-c":
        sys.argv = ["-c", *arguments[2:]]
        exec(compile(arguments[1], "<string>", "exec"), main.__dict__)
    else:
        assert arguments[0] == "-m", arguments
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)


def _end() -> NoReturn:
    """End with what the command raised as an interpreter does, but for the seconds of taking modules down."""
    code, error = 0, sys.exc_info()[1]
    if isinstance(error, SystemExit):
        code = error.code if isinstance(error.code, int) else 0 if error.code is None else 1
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
    elif error is not None:
        code = 1
        traceback.print_exception(error)
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
    except OSError as failed:
        code = 120
        print(f"Exception ignored in: <stdout>\n{failed!r}", file=sys.stderr)
    sys.stderr.flush()
    if isinstance(error, KeyboardInterrupt):
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(code & 255)


def _stream(number: int, buffered: bool) -> io.TextIOWrapper:
    """Standard output or error as an interpreter makes them."""
    raw = os.fdopen(number, "wb", buffering=-1 if buffered else 0, closefd=False)
    errors = "backslashreplace" if number == 2 else "strict"
    by_lines = number == 2 or os.isatty(number)
    return io.TextIOWrapper(raw, errors=errors, line_buffering=by_lines, write_through=not buffered)


def main() -> None:
    """Import the libraries, then fork for each request on the socket that is named by its number."""
    import torch

    torch.set_num_threads(1)
    for library in LIBRARIES:
        importlib.import_module(library)
    for package in map(importlib.import_module, PACKAGES):
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            importlib.import_module(found.name)
    importlib.import_module("tests.models").share_vocabulary()
    for package in PACKAGES:
        del sys.modules[f"{package}.cli"]
        delattr(sys.modules[package], "cli")
    gc.freeze()  # or each fork's first collection would copy all of it
    requests = socket.socket(fileno=int(sys.argv[1]))
    if (request := _serve(requests)) is not None:
        try:
            _become(request)
        finally:
            _end()


if __name__ == "__main__":
    main()
