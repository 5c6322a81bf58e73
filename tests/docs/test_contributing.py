"""The changes in `docs/contributing.md` work in a copy of the sources."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.pages import ROOT, Block, blocks_of

PAGE = ROOT / "docs" / "contributing.md"
PACKAGES = ("teacher_cache", "student_train", "pipeline")


def write(block: Block, copy: Path) -> Path:
    """Write a new file; its path is in the first line."""
    first, _, rest = block.text.partition("\n")
    path = copy / first.removeprefix("# ")
    assert not path.exists(), f"{block.where}: {path} exists already"
    path.write_text(rest + "\n")
    return path


def change(block: Block, copy: Path) -> Path:
    """Replace lines; the removed lines of a hunk and their neighbours must occur exactly once."""
    first, *lines = block.text.splitlines()
    path = copy / first.removeprefix("--- ")
    for hunk in "\n".join(lines).split("\n@@\n"):
        old, new = (
            "".join(line[1:] + "\n" for line in hunk.splitlines() if line[0] in signs)
            for signs in (" -", " +")
        )
        text = path.read_text()
        assert text.count(old) == 1, f"{block.where}: not once in {first}:\n{old}"
        path.write_text(text.replace(old, new))
    return path


@pytest.fixture(scope="module")
def changed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path]]:
    """The sources with all changes of the page, and the files that it wrote or changed."""
    copy = tmp_path_factory.mktemp("copy")
    for name in (*PACKAGES, "tests"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", copy)
    touched = []
    for block in blocks_of(PAGE):
        if block.language == "python":
            touched.append(write(block, copy))
        elif block.language == "diff":
            touched.append(change(block, copy))
    return copy, touched


def called(copy: Path, *arguments: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(copy)}
    ended = subprocess.run(
        [sys.executable, "-m", *arguments], cwd=copy, env=environment, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def test_the_examples_pass_their_tests(changed: tuple[Path, list[Path]]) -> None:
    copy, touched = changed
    tests = [path for path in touched if path.name.startswith("test_")]
    assert len(tests) == PAGE.read_text().count("\n## Add a")
    said = called(copy, "pytest", "-p", "no:cacheprovider", *map(str, tests))
    passed = re.search(r"\b(\d+) passed", said)
    assert passed
    assert int(passed[1]) == sum(test.read_text().count("\ndef test_") for test in tests)


def test_the_examples_have_their_tests_at_their_places(changed: tuple[Path, list[Path]]) -> None:
    called(changed[0], "pytest", "-p", "no:cacheprovider", "tests/test_twins.py")


def test_the_examples_are_linted_and_formatted(changed: tuple[Path, list[Path]]) -> None:
    copy, touched = changed
    called(copy, "ruff", "check", "--no-cache", *map(str, touched))
    called(copy, "ruff", "format", "--check", "--no-cache", *map(str, touched))
