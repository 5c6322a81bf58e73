"""A small cache over real pictures that the tests of stage two share."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import zarr
from numpy.typing import NDArray

from teacher_cache.build import build_cache
from teacher_cache.command_settings import BuildSettings, ViewPolicy
from teacher_cache.store import CacheStore, checksum
from tests.models import write_model

PICTURES = Path(__file__).parents[2] / "pipeline" / "demo" / "pictures"


def build(folder: Path, model: str, seed: int = 0, images: str | None = None) -> Path:
    """A cache `folder/MODEL-SEED.zarr` of one of the tests' models."""
    teacher = write_model(folder / f"model-{model}-{seed}", model, seed)
    return build_with(teacher, folder / f"{model}-{seed}.zarr", images)


def build_with(teacher: Path, out: Path, images: str | None = None, classes: Path | None = None) -> Path:
    """A cache of 300 classes, three views each, in parts of 100 samples."""
    build_cache(
        BuildSettings(
            images=images or str(PICTURES / "noto.tar"),
            classes=str(classes or PICTURES / "classes.txt"),
            out=out,
            teacher=str(teacher),
            templates="a photo of a {}.",
            view_policy=ViewPolicy(views=3),
            part_size=100,
        )
    )
    return out


def store_anew(cache: Path, name: str, values: NDArray[Any]) -> None:
    """Other values of `labels` or `valid`, as a build would have committed them."""
    store = CacheStore.open(cache)
    zarr.open_array(cache, path=name, mode="r+", zarr_format=3)[:] = values
    for part in range(store.header.parts_per_pass):
        record = store.record(part)
        sums = record.checksums | {name: checksum(values[store.header.rows(part)])}
        store.write_record(replace(record, checksums=sums))


@pytest.fixture(scope="session")
def cache_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished cache of the model `gelu`; nobody may write to it."""
    return build(tmp_path_factory.mktemp("cache"), "gelu")


@pytest.fixture(scope="session")
def demo_cache_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished cache of the demo's teacher, which tells classes apart; nobody may write to it."""
    return build_with(PICTURES.parent / "teacher", tmp_path_factory.mktemp("cache") / "demo.zarr")
