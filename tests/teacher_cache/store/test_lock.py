"""The lock of a cache on a disk: what is locked is a file of its own, and what it holds stays."""

import os
from pathlib import Path
from typing import Any

import pytest

from teacher_cache.errors import CacheBusyError, UsageError
from teacher_cache.store.local_folder import LocalFolder
from teacher_cache.store.lock import LOCK, build_lock


def test_one_build_at_a_time(tmp_path: Path) -> None:
    folder = LocalFolder(str(tmp_path))
    with (
        build_lock(folder),
        pytest.raises(CacheBusyError, match="another build is writing"),
        build_lock(folder),
    ):
        pass
    with build_lock(folder):
        pass


def test_what_a_lock_file_holds_stays(tmp_path: Path) -> None:
    (tmp_path / LOCK).write_text("somebody's")
    with build_lock(LocalFolder(str(tmp_path))):
        assert (tmp_path / LOCK).read_text() == "somebody's"


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
    put(tmp_path / LOCK)
    with (
        pytest.raises(UsageError, match=r"build\.lock has to be a file of its own, which is locked"),
        build_lock(LocalFolder(str(tmp_path))),
    ):
        pass
    assert (tmp_path / "precious").read_text() == "precious"
    assert not (tmp_path / "nowhere").exists()
