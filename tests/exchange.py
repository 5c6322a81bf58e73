"""Caches for another environment to read, and what this one reads from a cache.

    python -m tests.exchange INPUTS OURS THEIRS

builds caches in the folder THEIRS from the teacher and the images in INPUTS, reads these caches and those in
the folder OURS, and saves what it read beside each as `NAME.npz`. `test_two_environments.py` runs it with
another Python, whose zarr, numpy and torch may be other releases.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from student_train.data.readers import StoredArrays
from teacher_cache import build_cache, open_cache
from teacher_cache.command_settings import ViewPolicy
from teacher_cache.encodings import ENCODINGS
from teacher_cache.store.cache_store import CacheStore
from teacher_cache.store.verify import verify_store
from tests.models import write_model
from tests.teacher_cache.inputs import settings, write_names, write_shards


def write_inputs(folder: Path) -> None:
    """Write a teacher, images and class names; both environments build from these."""
    write_model(folder / "teacher", "gelu")
    (folder / "images").mkdir()
    write_shards(folder / "images")
    write_names(folder / "animals.txt")


def write_caches(inputs: Path, out: Path) -> None:
    """Build a cache of each encoding, with twelve samples and two views."""
    for encoding in ENCODINGS:
        build_cache(
            settings(
                inputs / "images",
                inputs / "animals.txt",
                out / encoding,
                inputs / "teacher",
                encoding=encoding,
                view_policy=ViewPolicy(views=2),
                **({"topk": 2} if encoding == "topk" else {}),
            )
        )


def read_cache(path: Path) -> dict[str, NDArray[Any]]:
    """Return all that is stored in a cache, its soft labels and the arrays as training reads them.

    Raises:
        ValueError: what is stored differs from its checksums.
    """
    if damage := verify_store(CacheStore.open(path)):
        raise ValueError(f"{path}: {damage}")
    cache = open_cache(path)
    found: dict[str, NDArray[Any]] = {
        "keys": np.array(cache.samples.keys(slice(None))),
        "labels": cache.labels,
        "valid": cache.valid,
        "class features": cache.class_features.numpy(),
    }
    rows = np.arange(len(cache))
    for view in range(cache.num_views):
        stored = cache.stored(slice(None), view)
        found |= {f"{name}, view {view}": values.numpy() for name, values in stored.items()}
        found[f"crops, view {view}"] = cache.crops(slice(None), view)
        found[f"soft labels, view {view}"] = cache.soft_labels(slice(None), view=view).numpy()
        source = StoredArrays(cache, (*stored, "crops"))
        read = source.read(rows, np.full_like(rows, view), source.room(len(rows)))
        found |= {f"{name}, view {view}, in training": values.numpy() for name, values in read.items()}
    return found


def main(inputs: Path, ours: Path, theirs: Path) -> None:
    """Write caches for the other environment, and save what this one reads from all of them."""
    write_caches(inputs, theirs)
    for folder in (ours, theirs):
        for encoding in ENCODINGS:
            np.savez(folder / f"{encoding}.npz", **read_cache(folder / encoding))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*map(Path, sys.argv[1:]))
