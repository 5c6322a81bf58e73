"""Files that appear complete or not at all: their permissions, and places where they cannot be."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from teacher_cache.errors import UsageError
from teacher_cache.files.atomic_write import atomic_write, require_writable


@pytest.fixture(params=[0o022, 0o027, 0o077])
def mask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_the_umask_decides_who_may_read_a_file_whatever_wrote_it(tmp_path: Path, mask: int) -> None:
    with atomic_write(tmp_path / "a.safetensors", sync=True) as path:
        save_file({"x": torch.zeros(2)}, path)
    (tmp_path / "a.txt.tmp").touch(0o600)  # a killed process left it
    with atomic_write(tmp_path / "a.txt") as path:
        path.write_text("text")
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert modes == dict.fromkeys(("a.safetensors", "a.txt"), 0o666 & ~mask)
    assert os.umask(mask) == mask


def test_require_writable_leaves_the_folder_unchanged(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("before")
    require_writable(tmp_path / "a.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    with pytest.raises(UsageError, match=r"--out .*/none/a.txt cannot be written: No such file"):
        require_writable(tmp_path / "none" / "a.txt")


def test_an_error_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("before")
    for shared in (False, True):
        with pytest.raises(TypeError), atomic_write(tmp_path / "a.txt", shared=shared) as path:
            path.write_text(3)  # type: ignore[arg-type]
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "before"


def test_shared_files_are_written_by_several_at_a_time(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "a", shared=True) as one, atomic_write(tmp_path / "a", shared=True) as other:
        assert one != other
        one.write_text("one")
        other.write_text("other")
    assert (tmp_path / "a").read_text() == "one"  # the outer block ends last
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_folder_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with (
        pytest.raises(UsageError, match=r"cannot write .*/a \(Is a directory\); remove what is there"),
        atomic_write(tmp_path / "a") as path,
    ):
        path.write_text("text")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
