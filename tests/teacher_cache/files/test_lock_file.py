"""Locks: one holder, regular files only, forked and started processes, file systems without locks."""

import errno
import fcntl
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from teacher_cache.errors import UsageError
from teacher_cache.files.lock_file import file_lock

BUSY = UsageError("somebody else has it")


def is_free(path: Path, wait_seconds: float = 0.0) -> bool:
    try:
        with file_lock(path, BUSY, wait_seconds):
            return True
    except UsageError as error:
        if error is not BUSY:
            raise
        return False


def test_a_lock_has_one_holder_and_leaves_the_content_of_its_file(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.write_text("content")
    with file_lock(path, BUSY):
        assert not is_free(path)
    assert is_free(path)
    assert path.read_text() == "content"


def test_a_lock_can_be_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    hold = "import sys, time; from teacher_cache.errors import UsageError; "
    hold += "from teacher_cache.files.lock_file import file_lock; from pathlib import Path\n"
    hold += "with file_lock(Path(sys.argv[1]), UsageError('')): print('locked', flush=True); time.sleep(1)"
    with subprocess.Popen([sys.executable, "-c", hold, path], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "locked\n"
        assert not is_free(path)
        assert is_free(path, wait_seconds=30)


@pytest.mark.parametrize("passed_on", [False, True])
def test_a_started_process_has_the_lock_if_it_gets_the_descriptor(passed_on: bool, tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with file_lock(path, BUSY) as descriptor:
        child = subprocess.Popen(["sleep", "60"], pass_fds=[descriptor] if passed_on else [])
    try:
        assert is_free(path) is not passed_on
    finally:
        child.kill()
        child.wait()
    assert is_free(path)


def test_a_forked_process_does_not_have_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    here, there = socket.socketpair()
    with file_lock(path, BUSY):
        child = os.fork()
        if child == 0:
            here.close()
            there.send(b"started")
            there.recv(1)  # until the test closes its end
            os._exit(0)
        there.close()
        assert here.recv(7) == b"started"
        assert not is_free(path)
    assert is_free(path)
    here.close()
    os.waitpid(child, 0)


@pytest.mark.parametrize(
    "put",
    [
        lambda path: path.symlink_to(path.parent / "precious"),
        lambda path: path.symlink_to(path.parent / "nowhere"),
        lambda path: path.mkdir(),
        lambda path: os.mkfifo(path),
    ],
    ids=["link", "link to nowhere", "folder", "pipe"],
)
def test_a_link_a_folder_or_a_pipe_is_not_locked(put: Any, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("precious")
    put(tmp_path / "lock")
    before = time.monotonic()
    with pytest.raises(UsageError, match=r"/lock is a lock file and has to be a regular file; remove"):
        is_free(tmp_path / "lock")
    assert time.monotonic() - before < 5
    assert (tmp_path / "precious").read_text() == "precious"
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK])
def test_a_file_system_without_locks_is_named(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    open_before = os.listdir("/proc/self/fd")
    with pytest.raises(UsageError, match=r"cannot lock .*/lock: its file system does not support file locks"):
        is_free(tmp_path / "lock")
    assert os.listdir("/proc/self/fd") == open_before
