"""The tested versions of Python and dependencies are those in pyproject.toml."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.oldest_requirements import lowest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
NEWEST = ROOT / ".ci" / "newest-python"


def test_classifiers_name_the_oldest_python_and_others_that_are_looked_for() -> None:
    """A version has a classifier if the tests ran on it."""
    oldest = PROJECT["requires-python"].removeprefix(">=")
    (looked_for,) = re.findall(r"for version in (.+); do", NEWEST.read_text(encoding="utf-8"))
    prefix = "Programming Language :: Python :: 3."
    named = [line.rpartition(" ")[2] for line in PROJECT["classifiers"] if line.startswith(prefix)]
    assert named[0] == oldest
    assert set(named[1:]) <= set(looked_for.split())


def test_scripts_of_ci_are_clean() -> None:
    for script in (ROOT / ".ci").iterdir():
        subprocess.run(["sh", "-n", script], check=True)
        assert os.access(script, os.X_OK), script


def newest(folder: Path) -> subprocess.CompletedProcess[str]:
    """Look up Pythons on a machine that has those in `folder`, and pyenv in the home folder beside it."""
    environment = {"PATH": str(folder), "HOME": str(folder.parent)}
    return subprocess.run([NEWEST], env=environment, capture_output=True, text=True, check=False)


def python(path: Path, line: str) -> Path:
    """Write a script that stands for a Python."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{line}\n", encoding="utf-8")
    path.chmod(0o755)
    return path


def test_the_newest_python_is_one_that_runs(tmp_path: Path) -> None:
    folder = tmp_path / "bin"
    python(folder / "python3.14", "echo 'pyenv: python3.14: command not found' >&2; exit 127")
    missing = newest(folder)
    assert (missing.returncode, missing.stdout) == (1, "")
    assert missing.stderr == "no Python from 3.12 to 3.14 runs here, on PATH or under pyenv\n"

    oldest = python(folder / "python3.12", f'exec {sys.executable} "$@"')
    assert newest(folder).stdout == f"{oldest}\n"
    of_pyenv = tmp_path / ".pyenv" / "versions" / "3.13.0" / "bin" / "python"
    python(of_pyenv, f'exec {sys.executable} "$@"')
    assert newest(folder).stdout == f"{of_pyenv}\n"


def test_every_dependency_has_a_lowest_version() -> None:
    assert lowest("torch>=2.6,!=2.13.0") == "torch==2.6"
    assert lowest("moto[server]>=5.1") == "moto==5.1"
    with pytest.raises(ValueError, match=r"'zarr' in pyproject\.toml: expected NAME>=VERSION"):
        lowest("zarr")
    for requirement in [*PROJECT["dependencies"], *EXTRAS["dev"]]:
        assert re.fullmatch(r"[\w-]+==[\d.]+", lowest(requirement))


def test_extras_have_the_bounds_that_are_tested() -> None:
    """`dev` has all extras but gcs, for which there is no test server."""
    for name in EXTRAS.keys() - {"dev", "gcs"}:
        assert set(EXTRAS[name]) <= set(EXTRAS["dev"])


def test_the_root_that_stands_for_the_image_is_of_its_release() -> None:
    """The Dockerfile's steps are tested in the Debian release of its first line."""
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    ((version, release),) = re.findall(r"^FROM python:(3\.\d+)-slim-(\w+)$", dockerfile, re.MULTILINE)
    assert f"Programming Language :: Python :: {version}" in PROJECT["classifiers"]
    for page in ("docs/contributing.md", "tests/dockerfile_steps.py"):
        assert f"ca-certificates {release} /tmp/root" in (ROOT / page).read_text(encoding="utf-8")
