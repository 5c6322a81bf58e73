"""Inputs that several tests of stage one read and none may change."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from teacher_cache import cli
from teacher_cache.build import build_cache
from tests.models import write_model
from tests.teacher_cache.inputs import settings, write_names, write_shards


@pytest.fixture(scope="session")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a small teacher."""
    return write_model(tmp_path_factory.mktemp("teacher") / "gelu", "gelu")


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tars of six JPEGs, labelled by .cls."""
    return write_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="session")
def names(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vocabulary of five names."""
    return write_names(tmp_path_factory.mktemp("vocabulary") / "animals.txt")


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory, teacher: Path, shards: Path, names: Path) -> Path:
    """A finished cache of those: twelve samples in four parts."""
    out = tmp_path_factory.mktemp("cache") / "zarr"
    build_cache(settings(shards, names, out, teacher))
    return out


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Call `rpp-cache` in this process; gives exit code, standard output and standard error."""

    def call(*arguments: Any) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["rpp-cache", *map(str, arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as exit_:
            code = int(exit_.code or 0)
        output = capsys.readouterr()
        return code, output.out, output.err

    return call


@pytest.fixture
def arguments(teacher: Path, shards: Path, names: Path, tmp_path: Path) -> dict[str, Any]:
    """Options of a build that works."""
    return {
        "--images": shards,
        "--classes": names,
        "--out": tmp_path / "zarr",
        "--teacher": teacher,
        "--part-size": 3,
        "--batch-size": 4,
        "--device": "cpu",
    }
