"""A small cache over real pictures that the tests of stage two share."""

import shutil
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import zarr
from numpy.typing import NDArray

from student_train.model.settings import PromptSettings
from student_train.training.loop import train
from student_train.training.settings import TrainSettings
from teacher_cache.build import build_cache
from teacher_cache.command_settings import BuildSettings, ViewPolicy
from teacher_cache.store.cache_store import CacheStore
from teacher_cache.store.checksums import checksum
from tests.conftest import Shared
from tests.models import write_model

PICTURES = Path(__file__).parents[1] / "data" / "pictures"


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
        record = store.parts.record(part)
        sums = record.checksums | {name: checksum(values[store.header.rows(part)])}
        store.parts.write_record(replace(record, checksums=sums))


def thinned(tar: Path, out: Path) -> Path:
    """A shard of every third sample of another one, in which a sample is a picture and its label."""
    with tarfile.open(tar) as source, tarfile.open(out, "w") as target:
        for number, member in enumerate(source):
            if number // 2 % 3 == 0:
                target.addfile(member, source.extractfile(member))
    return out


@pytest.fixture(scope="session")
def cache_path(shared: Shared) -> Path:
    """A finished cache of the model `gelu`; read-only."""
    return shared("gelu", lambda folder: build(folder, "gelu")) / "gelu-0.zarr"


@pytest.fixture(scope="session")
def demo_cache_path(shared: Shared, clip: Path) -> Path:
    """A finished cache of the demo's student, which tells classes apart; read-only."""

    def make(folder: Path) -> None:
        build_with(clip, folder / "demo.zarr")

    return shared("demo", make) / "demo.zarr"


@pytest.fixture(scope="session")
def run_of(shared: Shared, demo_cache_path: Path) -> Callable[[str], Path]:
    """Short trainings on the demo's student, by the towers that have prompts; read-only."""

    def trained(towers: str) -> Path:
        asked = TrainSettings(
            cache=demo_cache_path, prompts=PromptSettings(towers=towers), batch_size=30, epochs=2
        )
        name = f"demo-{towers}"
        return shared(name, lambda folder: train(asked.model_copy(update={"out": folder / "run"}))) / "run"

    return trained


@pytest.fixture(scope="session")
def pictures(shared: Shared) -> Path:
    """A folder with 100 of the 300 pictures of each style, and with their names."""

    def make(folder: Path) -> None:
        shutil.copy(PICTURES / "classes.txt", folder)
        for style in PICTURES.glob("*.tar"):
            thinned(style, folder / style.name)

    return shared("pictures", make)
