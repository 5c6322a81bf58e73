"""The lock of a cache on a disk."""

from pathlib import Path

import pytest

from teacher_cache.errors import CacheBusyError
from teacher_cache.store.local_folder import LocalFolder
from teacher_cache.store.lock import build_lock


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
