"""The lock of a cache on a disk: with each kind of lock, without one, and after a killed build."""

import errno
import fcntl
import json
import os
import signal
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from teacher_cache.build import build_cache
from teacher_cache.errors import CacheBusyError
from teacher_cache.files import owner_record
from teacher_cache.store.cache_store import CacheStore
from teacher_cache.store.local_folder import LocalFolder
from teacher_cache.store.lock import build_lock
from tests.processes import ForkServer
from tests.teacher_cache.inputs import assert_same_arrays, settings


def refuse(descriptor: int, operation: int) -> None:
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))


@pytest.fixture(params=[(), ("flock",), ("flock", "lockf")], ids=["flock", "lockf", "record"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A file system that lacks some locks; the name of the one that is used."""
    for name in request.param:
        monkeypatch.setattr(fcntl, name, refuse)
    monkeypatch.setattr(owner_record, "SETTLE_SECONDS", 0.01)
    return {0: "flock", 1: "lockf", 2: "record"}[len(request.param)]


def test_one_build_at_a_time(kind: str, tmp_path: Path) -> None:
    folder = LocalFolder(str(tmp_path))
    with build_lock(folder):
        assert json.loads((tmp_path / "build.lock.owner").read_text())["kind"] == kind
        with pytest.raises(CacheBusyError, match="another build is writing"), build_lock(folder):
            pass
    with build_lock(folder):
        pass


@pytest.mark.usefixtures("kind")
def test_a_build_is_refused_while_another_writes_and_not_after_it_was_killed(
    cache: Path, shards: Path, names: Path, teacher: Path, tmp_path: Path
) -> None:
    asked = settings(shards, names, tmp_path / "zarr", teacher)
    store = CacheStore.open(build_cache(asked).path, writable=True)
    store.parts.withdraw(1)
    with store.locked():
        with pytest.raises(CacheBusyError, match=r"another build is writing .*zarr.*; wait"):
            build_cache(asked)
        # whoever knows better
        assert build_cache(asked.model_copy(update={"lock": False})).parts_computed == 1
    store.parts.withdraw(1)
    left: dict[str, Any] = {"owner": "killed", "kind": "record", "pid": 2**22 + 1, "time": time.time()}
    (tmp_path / "zarr" / "build.lock.owner").write_text(json.dumps(left | {"host": socket.gethostname()}))
    assert build_cache(asked).parts_computed == 1
    assert_same_arrays(tmp_path / "zarr", cache)
    assert not (tmp_path / "zarr" / "build.lock.owner").exists()


def test_no_lock_touches_no_lock_file(
    shards: Path, names: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`flock` on NFS without its lock service may never return."""
    locked: list[str] = []

    def never_returns(
        descriptor: Any, operation: int
    ) -> None:  # Dask locks its own folder of temporary files
        number = descriptor if isinstance(descriptor, int) else descriptor.fileno()
        locked.append(os.readlink(f"/proc/self/fd/{number}"))

    monkeypatch.setattr(fcntl, "flock", never_returns)
    monkeypatch.setattr(fcntl, "lockf", never_returns)
    build_cache(settings(shards, names, tmp_path / "zarr", teacher, lock=False))
    assert not [path for path in locked if str(tmp_path) in path]
    assert not [name for name in os.listdir(tmp_path / "zarr") if "lock" in name]


def test_a_killed_build_leaves_its_owner_and_the_next_takes_over(
    processes: ForkServer, shards: Path, names: Path, teacher: Path, cache: Path, tmp_path: Path
) -> None:
    out = tmp_path / "zarr"
    arguments = ("--images", shards, "--classes", names, "--teacher", teacher, "--out", out)
    asked = [str(argument) for argument in arguments]
    process = processes.start("rpp-cache", "build", *asked, "--part-size", "3", stdout=None, stderr=None)
    while not (out / "build.lock.owner").exists():
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    build_cache(settings(shards, names, out, teacher))
    assert_same_arrays(out, cache)
    assert not (out / "build.lock.owner").exists()
