"""Fixtures and settings of all tests."""

import fcntl
import json
import multiprocessing
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest
import torch
from moto.server import ThreadedMotoServer

from pipeline import sweep_jobs
from pipeline.demo.clips import STUDENT, unpack_clip
from tests.models import share_vocabulary
from tests.processes import ForkServer, fork_runs

# The models are tiny: one thread is several times faster than two that wait for each other, also in the
# processes that tests start.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")
share_vocabulary()

# Tests read the output of commands, which must not depend on the terminal that pytest was started in.
for name in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
    os.environ.pop(name, None)


@pytest.fixture(scope="module", autouse=True)
def _no_process_is_left_behind() -> Iterator[None]:
    """Fail if a module leaves child processes: Python would wait for them forever at its exit."""
    yield
    left = multiprocessing.active_children()
    for process in left:
        process.kill()
    assert not left


Shared = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    """Make a folder by its name, once for all workers of a session; tests must not write to it."""
    base = tmp_path_factory.getbasetemp()
    root = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"
    root.mkdir(exist_ok=True)
    used: set[Path] = set()

    def folder_of(name: str, make: Callable[[Path], object]) -> Path:
        folder, record = root / name, root / f"{name}.json"
        with open(root / f"{name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not record.exists():
                folder.mkdir()
                make(folder)
                record.write_text(json.dumps(_files(folder)))
        used.add(folder)
        return folder

    yield folder_of
    for folder in used:
        assert json.loads(folder.with_name(f"{folder.name}.json").read_text()) == _files(folder)


@pytest.fixture(scope="session")
def clip(shared: Shared) -> Path:
    """The demo's student as a model folder: a real tiny CLIP, which tells classes apart; read-only."""
    return shared("clips", lambda folder: unpack_clip(STUDENT, folder)) / STUDENT


def _files(folder: Path) -> dict[str, list[int]]:
    """Return size and modification time of each file."""
    stats = {str(path): path.stat() for path in sorted(folder.rglob("*")) if path.is_file()}
    return {path: [stat.st_size, stat.st_mtime_ns] for path, stat in stats.items()}


@pytest.fixture(scope="session")
def processes() -> Iterator[ForkServer]:
    """A server that forks a process for each command."""
    with ForkServer() as server:
        yield server


@pytest.fixture
def forked_runs(processes: ForkServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fork the runs of sweeps, which saves importing torch."""
    monkeypatch.setattr(sweep_jobs, "subprocess", sweep_jobs.subprocess)  # restored at the end
    fork_runs(processes)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """Start a local S3 server, set AWS's environment variables to it, and return its URL."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    url = "http://{}:{}".format(*server.get_host_and_port())
    patched = pytest.MonkeyPatch()
    for name, value in {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        patched.setenv(name, value)
    fsspec.filesystem("s3").mkdir("bucket")
    yield url
    patched.undo()
    server.stop()


@pytest.fixture
def bucket(s3_server: str, request: pytest.FixtureRequest) -> str:
    """Return a URL in an object store that no other test uses."""
    return f"s3://bucket/{abs(hash(request.node.nodeid))}"
