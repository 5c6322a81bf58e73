"""Write a small cache of each encoding with the installed zarr: `python -m tests.data.caches.write OUT`.

No model and no image: features are random numbers of a seed, encoded as a build would.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from teacher_cache.classes.vocabulary import Vocabulary
from teacher_cache.encodings import ClassHead, encoding_of
from teacher_cache.images.table import SampleTable
from teacher_cache.store.cache_store import CacheStore
from teacher_cache.store.header import CacheHeader
from teacher_cache.store.vocabularies import vocabulary_digest

SAMPLES, VIEWS, WIDTH, PART = 23, 2, 6, 8
NAMES = ("cat", "dog", "owl", "elk", "bee")
VOCABULARY = Vocabulary(NAMES, NAMES)
ENCODINGS: dict[str, dict[str, Any]] = {
    "factored": {"name": "factored"},
    "factored-int8": {"name": "factored-int8"},
    "topk": {"name": "topk", "k": 3},
    "dense": {"name": "dense"},
}


def unit(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows of length one."""
    return values / np.linalg.norm(values, axis=-1, keepdims=True)


def arrays_of(encoding: str) -> dict[str, NDArray[Any]]:
    """All arrays of the cache, [N, ...] or [N, V, ...]."""
    random = np.random.default_rng(7)
    features_NVD = unit(random.standard_normal((SAMPLES, VIEWS, WIDTH), dtype=np.float32))
    flat_BD = torch.from_numpy(features_NVD.reshape(-1, WIDTH))
    encoded = encoding_of(ENCODINGS[encoding]).encode(flat_BD, ClassHead(torch.from_numpy(classes()), 20.0))
    return {
        **{name: values.reshape(SAMPLES, VIEWS, *values.shape[1:]) for name, values in encoded.items()},
        "crops": random.integers(0, 1 << 16, (SAMPLES, VIEWS, 5), dtype=np.uint16),
        "labels": random.integers(-1, len(NAMES), SAMPLES, dtype=np.int32),
        "valid": random.random(SAMPLES) < 0.9,
    }


def classes() -> NDArray[np.float32]:
    """Unit class features [C, D]."""
    return unit(np.random.default_rng(8).standard_normal((len(NAMES), WIDTH), dtype=np.float32))


def table(encoding: str) -> SampleTable:
    """The samples."""
    return SampleTable(
        pa.table(
            {
                "key": pa.array([f"{row:06d}" for row in range(SAMPLES)], pa.large_string()),
                "path": pa.array(["shard.tar"] * SAMPLES).dictionary_encode(),
                "offset": pa.array(np.arange(SAMPLES, dtype=np.int64)),
                "length": pa.array(np.ones(SAMPLES, dtype=np.int64)),
                "label": pa.array(arrays_of(encoding)["labels"]),
            }
        )
    )


def header_of(encoding: str) -> CacheHeader:
    """What the cache is of."""
    return CacheHeader(
        samples=SAMPLES,
        part_size=PART,
        embedding=WIDTH,
        classes=len(NAMES),
        encoding=ENCODINGS[encoding],
        teacher={"model": "ViT-B-32", "pretrained": None, "weights_digest": "none", "logit_scale": 20.0},
        view_policy={"views": VIEWS},
        vocabulary="animals",
        vocabulary_digest=vocabulary_digest(VOCABULARY),
        sample_table_digest=table(encoding).digest,
        images="shard.tar",
        software="rpp 0.1.0",
        passes=[VIEWS],
    )


def write(out: Path, encoding: str) -> None:
    """A finished cache."""
    arrays, header = arrays_of(encoding), header_of(encoding)
    store = CacheStore.create(out, header, table(encoding), VOCABULARY, classes())
    for part in range(header.parts):
        store.parts.commit(part, {name: values[header.rows(part)] for name, values in arrays.items()}, {}, [])


if __name__ == "__main__":
    for each in ENCODINGS:
        write(Path(sys.argv[1]) / each, each)
