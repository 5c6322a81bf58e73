"""Inputs that several tests of stage one read and none may change."""

from pathlib import Path

import pytest

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
