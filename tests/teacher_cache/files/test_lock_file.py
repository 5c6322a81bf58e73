"""Locks: one holder, regular files only, forked and started processes, file systems without locks."""

import errno
import fcntl
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from teacher_cache.errors import UsageError
from teacher_cache.files import owner_record
from teacher_cache.files.lock_file import file_lock

BUSY = UsageError("somebody else has it")
# Each kind of lock, and the kinds that the file system does not have then.
KINDS: dict[str, tuple[str, ...]] = {"flock": (), "lockf": ("flock",), "record": ("flock", "lockf")}
# Lustre without -o flock; FUSE; NFS without its lock service; container mounts; NFS within NFS.
ANSWERS = [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL, errno.EBADF]


def is_free(path: Path, wait_seconds: float = 0.0) -> bool:
    try:
        with file_lock(path, BUSY, wait_seconds):
            return True
    except UsageError as error:
        if not str(error).startswith(str(BUSY)):
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


def without(monkeypatch: pytest.MonkeyPatch, *locks: str, number: int = errno.ENOSYS) -> None:
    """Let the operating system answer as a file system without these locks does."""

    def missing(descriptor: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    for name in locks:
        monkeypatch.setattr(fcntl, name, missing)
    monkeypatch.setattr(owner_record, "SETTLE_SECONDS", 0.01)


HOLD = """
import errno, fcntl, sys, time
from pathlib import Path
from teacher_cache.errors import UsageError
from teacher_cache.files import lock_file, owner_record

def missing(descriptor, operation):
    raise OSError(errno.ENOSYS, "Function not implemented")

for name in sys.argv[2:]:
    setattr(fcntl, name, missing)
owner_record.SETTLE_SECONDS = 0.01
with lock_file.file_lock(Path(sys.argv[1]), UsageError("")):
    print("locked", flush=True)
    time.sleep(60)
"""


@contextmanager
def holder(path: Path, *locks: str) -> Iterator[subprocess.Popen[str]]:
    """Hold the lock in another process, for which the file system has none of these locks."""
    command = [sys.executable, "-c", HOLD, str(path), *locks]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        try:
            yield process
        finally:
            process.kill()


def record_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.owner")


def put_record(path: Path, **fields: Any) -> None:
    record = {"owner": "somebody", "kind": "record", "host": "elsewhere", "pid": 7, "time": time.time()}
    record_of(path).write_text(json.dumps(record | fields))


@pytest.mark.parametrize("locks", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("number", ANSWERS, ids=errno.errorcode.get)
def test_a_file_system_without_locks_has_the_next_kind(
    locks: tuple[str, ...], number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without(monkeypatch, *locks, number=number)
    path, open_before = tmp_path / "lock", os.listdir("/proc/self/fd")
    with file_lock(path, BUSY):
        assert KINDS[json.loads(record_of(path).read_text())["kind"]] == locks
        assert not is_free(path)
        assert record_of(path).exists()
    assert is_free(path)
    assert os.listdir(tmp_path) == ["lock"]
    assert os.listdir("/proc/self/fd") == open_before


def test_without_any_locks_a_line_says_what_the_file_system_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    without(monkeypatch, "flock", "lockf")
    assert is_free(tmp_path / "lock")
    assert re.search(
        r"file system of .*/lock has no file locks \(flock: Function not implemented, lockf: Function not "
        r"implemented\); so that no two processes write the same files, .*/lock.owner locks instead",
        capsys.readouterr().err,
    )


@pytest.mark.parametrize("here", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("there", KINDS.values(), ids=KINDS)
def test_processes_exclude_each_other_whichever_way_they_lock(
    here: tuple[str, ...],
    there: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "lock"
    without(monkeypatch, *here)
    with holder(path, *there) as process:
        for _ in range(2):  # a refused try releases nothing
            with (
                pytest.raises(
                    UsageError, match=f"has it \\(process {process.pid} on .*, last seen 0:00:0. ago"
                ),
                file_lock(path, BUSY),
            ):
                pass
        process.kill()  # leaves its record
        process.wait()
        assert record_of(path).exists()
        assert is_free(path)
    ended = f"process {process.pid} on {socket.gethostname()}, which has ended"
    said = f"taking over the lock {record_of(path)} of {ended}"
    assert (said in capsys.readouterr().err) == (here != there or here == KINDS["record"])


@pytest.mark.parametrize("locks", KINDS.values(), ids=KINDS)
def test_a_refused_second_block_does_not_release_the_lock(
    locks: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Closing any descriptor of the file would release a `lockf`."""
    without(monkeypatch, *locks)
    with file_lock(tmp_path / "lock", BUSY):
        assert not is_free(tmp_path / "lock")
        record_of(tmp_path / "lock").rename(tmp_path / "record")  # the lock itself is asked
        asks = "import fcntl, sys; file = open(sys.argv[1], 'r+'); "
        asks += "fcntl.flock(file, 6) if sys.argv[2] == 'flock' else fcntl.lockf(file, 6)"
        asked = {"flock": "flock", "lockf": "lockf"}
        for kind in asked:
            tried = subprocess.run(
                [sys.executable, "-c", asks, tmp_path / "lock", kind], capture_output=True, check=False
            )
            assert (tried.returncode == 0) == (KINDS[kind] != locks)
        (tmp_path / "record").rename(record_of(tmp_path / "lock"))


@pytest.mark.parametrize("locks", KINDS.values(), ids=KINDS)
def test_a_process_on_another_machine(
    locks: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "lock"
    without(monkeypatch, *locks)
    put_record(path, time=time.time() - owner_record.DEAD_AFTER_SECONDS / 2)
    busy = r"process 7 on elsewhere, last seen 0:02:3\d ago; one that was killed counts as dead after 0:05:00"
    with pytest.raises(UsageError, match=busy), file_lock(path, BUSY):
        pass
    put_record(path, time=time.time() - owner_record.DEAD_AFTER_SECONDS - 1)
    assert is_free(path)
    assert "of process 7 on elsewhere, which no longer renews it" in capsys.readouterr().err
    assert not record_of(path).exists()


def test_a_flock_of_this_machine_only_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """NFS with local_lock, Lustre with localflock: the kernel gives both machines the lock."""
    put_record(tmp_path / "lock", kind="flock", time=time.time() - 20)
    assert is_free(tmp_path / "lock")
    said = capsys.readouterr().err
    assert "note: process 7 on elsewhere had the lock" in said
    assert "the locks of this file system do not reach other machines" in said
    put_record(tmp_path / "lock", kind="flock", time=time.time() - 200)  # killed some time ago
    assert is_free(tmp_path / "lock")
    assert capsys.readouterr().err == ""


def test_a_number_that_another_process_has_now_is_not_the_owner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, parent, host = tmp_path / "lock", os.getppid(), socket.gethostname()
    without(monkeypatch, "flock", "lockf")
    put_record(path, host=host, pid=parent, started=owner_record.start_of(parent))
    assert not is_free(path)
    put_record(path, host=host, pid=parent, started=1)
    assert is_free(path)


def test_a_deleted_lock_file_does_not_let_a_second_process_in(tmp_path: Path) -> None:
    with holder(tmp_path / "lock"):
        (tmp_path / "lock").unlink()
        assert not is_free(tmp_path / "lock")


@pytest.mark.parametrize(
    "content",
    ["", "{", "[" * 4000, "[1]", '{"time": NaN}', '{"time": 1e300}', '{"time": [1]}', "\x1b[2J" * 5000],
)
def test_a_damaged_record_counts_until_it_is_old(
    content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An empty one is being written."""
    path = tmp_path / "lock"
    without(monkeypatch, "flock", "lockf")
    record_of(path).write_text(content)
    assert not is_free(path)
    long_ago = time.time() - 1000
    os.utime(record_of(path), (long_ago, long_ago))
    assert is_free(path)


def test_a_link_in_the_place_of_the_record_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "precious").write_text("precious")
    record_of(tmp_path / "lock").symlink_to(tmp_path / "precious")
    assert is_free(tmp_path / "lock")  # the kernel's lock suffices
    without(monkeypatch, "flock", "lockf")
    with pytest.raises(OSError, match="symbolic links"):
        is_free(tmp_path / "lock")
    assert (tmp_path / "precious").read_text() == "precious"


def test_the_record_is_renewed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owner_record, "RENEW_SECONDS", 0.02)
    with file_lock(tmp_path / "lock", BUSY):
        first, until = record_of(tmp_path / "lock").read_text(), time.monotonic() + 5
        while record_of(tmp_path / "lock").read_text() == first:
            assert time.monotonic() < until
