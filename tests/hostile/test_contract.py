"""The checks themselves: they notice writes outside of the folder, and only those."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.hostile.contract import watched

ESCAPES: dict[str, Callable[[Path, Path], object]] = {
    "a file is written": lambda inside, outside: (outside / "new").write_text("x"),
    "a file is written by a path through the folder": lambda inside, outside: (
        inside / ".." / "outside" / "new"
    ).write_text("x"),
    "a link is written through": lambda inside, outside: (inside / "link").write_text("x"),
    "a folder is written through": lambda inside, outside: (inside / "folder" / "new").write_text("x"),
    "a file is moved out": lambda inside, outside: os.replace(inside / "file", outside / "file"),
    "a file is moved in": lambda inside, outside: os.replace(outside / "file", inside / "new"),
    "a link is made there": lambda inside, outside: os.symlink("file", outside / "link"),
    "a link is made that leads there": lambda inside, outside: os.symlink("../outside", inside / "new"),
    "a file is deleted": lambda inside, outside: (outside / "file").unlink(),
    "a program is started": lambda inside, outside: subprocess.run(["true"], check=True),
}


@pytest.fixture
def places(tmp_path: Path) -> tuple[Path, Path]:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    for place in (inside, outside):
        place.mkdir()
        (place / "file").write_text("")
    (inside / "link").symlink_to(outside / "file")
    (inside / "folder").symlink_to(outside)
    return inside, outside


@pytest.mark.parametrize("what", list(ESCAPES))
def test_writes_outside_of_the_folder_are_noticed(what: str, places: tuple[Path, Path]) -> None:
    with pytest.raises(AssertionError), watched(places[0]):
        ESCAPES[what](*places)


def test_writes_in_the_folder_are_allowed(places: tuple[Path, Path]) -> None:
    inside, outside = places
    with watched(inside):
        (inside / "new").write_text((outside / "file").read_text())
        os.replace(inside / "new", inside / "other")
        os.symlink("other", inside / "new")
        os.link(inside / "other", inside / "third")
        (inside / "new").unlink()
