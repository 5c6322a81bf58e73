"""What is no file, where a file of a cache has to be: one sentence, no hang, and no part of the cache."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from teacher_cache import open_cache
from tests.teacher_cache.conftest import Run

COMMANDS = ("info", "stats", "verify", "export")
SENTENCE = r"(?s).*error: [^\n]+\n\Z"


def link(path: Path) -> None:
    path.symlink_to(path.parent / "nowhere")


def empty_folder(path: Path) -> None:
    path.mkdir()


@pytest.fixture
def copy(cache: Path, tmp_path: Path) -> Path:
    """A copy to put things into."""
    return Path(shutil.copytree(cache, tmp_path / "zarr"))


def replaced(path: Path, put: Any) -> None:
    """Something else in a path's place."""
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    put(path)


def calls(run: Run, copy: Path, *names: str) -> list[tuple[str, int, str]]:
    """Name, exit code and standard error of commands that read a cache."""
    more = {"export": ["--out", copy.parent / "soft.parquet", "--top", 2]}
    ends = [(name, run(name, copy, *more.get(name, []))) for name in names or COMMANDS]
    return [(name, code, err) for name, (code, _, err) in ends]


def test_a_link_to_nowhere_that_is_none_of_a_cache_is_passed_over(copy: Path, run: Run) -> None:
    link(copy / "labels/c/notes")
    assert [code for _, code, _ in calls(run, copy)] == [0, 0, 0, 0]


def test_a_folder_is_no_record(copy: Path, run: Run, arguments: dict[str, Any]) -> None:
    replaced(copy / "parts/000001.json", empty_folder)
    for name, code, err in calls(run, copy, "stats", "verify", "export"):
        assert code != 0
        assert name == "verify" or "1 of 4 parts are missing" in err.replace("\n", " ")
    options = [str(word) for pair in (arguments | {"--out": copy}).items() for word in pair]
    code, _, err = run("build", *options)
    assert code == 2
    assert "parts/000001.json (Is a directory): remove what is there" in err


@pytest.mark.parametrize("put", [empty_folder, os.mkfifo], ids=["folder", "pipe"])
def test_a_header_that_is_no_file_is_read_by_its_copy(put: Any, copy: Path, cache: Path, run: Run) -> None:
    replaced(copy / "zarr.json", put)
    assert open_cache(copy).header == open_cache(cache).header
    assert [code for _, code, _ in calls(run, copy)] == [0, 0, 1, 0]
    replaced(copy / "header.json", put)
    for _, code, err in calls(run, copy):
        assert code == 1
        assert "zarr.json is no file: take it away, or copy the cache again" in err


@pytest.mark.parametrize("put", [empty_folder, os.mkfifo], ids=["folder", "pipe"])
def test_neither_is_a_sample_table(put: Any, copy: Path, run: Run) -> None:
    replaced(copy / "samples.parquet", put)
    ends = {name: (code, err) for name, code, err in calls(run, copy)}
    assert ends["verify"][0] == 1
    assert ends["export"][0] == 1
    assert "samples.parquet is no file" in ends["export"][1]


@pytest.mark.parametrize(
    "put", [empty_folder, os.mkfifo, link, Path.touch], ids=["folder", "pipe", "link", "file"]
)
@pytest.mark.parametrize("key", ["image_features", "labels/c/1", "image_features/c/1/0/0", "valid/zarr.json"])
def test_nor_what_lies_in_the_place_of_arrays(key: str, put: Any, copy: Path, run: Run) -> None:
    replaced(copy / key, put)
    for name, code, err in calls(run, copy):
        assert "Traceback" not in err
        if name == "verify":
            assert code == 1
        elif code:
            assert err.splitlines()[-1].startswith("error: ")
        else:
            assert name == "info"
