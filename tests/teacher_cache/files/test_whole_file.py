"""Files that appear complete or not at all: who may read them, and where they cannot be."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from teacher_cache.errors import UsageError
from teacher_cache.files.whole_file import require_writable, whole_file


@pytest.fixture(params=[0o022, 0o027, 0o077])
def mask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_the_umask_says_who_may_read_a_file_whatever_wrote_it(tmp_path: Path, mask: int) -> None:
    with whole_file(tmp_path / "a.safetensors") as path:
        save_file({"x": torch.zeros(2)}, path)
    with whole_file(tmp_path / "a.txt") as path:
        path.write_text("text")
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert modes == dict.fromkeys(("a.safetensors", "a.txt"), 0o666 & ~mask)
    assert os.umask(mask) == mask


def test_a_place_that_can_be_written_is_left_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("before")
    require_writable(tmp_path / "a.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    with pytest.raises(UsageError, match=r"--out .*/none/a.txt cannot be written: No such file"):
        require_writable(tmp_path / "none" / "a.txt")
