"""Caches without images for the benchmarks: a small real teacher, real class names, random unit features.

Only values that do not change the speed are random. The store itself creates and commits the cache.

    python benchmarks/synthetic.py --rows 1000000 --out /tmp/million.zarr
    rpp-train --cache /tmp/million.zarr --towers text --classes-per-step 1000 --epochs 1
"""

import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import open_clip
import pyarrow as pa
import torch
import typer
from safetensors.torch import save_file

from teacher_cache.classes.vocabulary import Vocabulary, load_vocabulary
from teacher_cache.command_settings import ViewPolicy
from teacher_cache.distribution import rpp_version
from teacher_cache.images.table import SampleTable
from teacher_cache.store.cache_store import CacheStore
from teacher_cache.store.header import CacheHeader, part_rows
from teacher_cache.store.vocabularies import vocabulary_digest
from teacher_cache.teacher.openclip import load_model
from teacher_cache.teacher.teacher import Teacher
from teacher_cache.views import FULL

PART_ROWS = 16_384


def write_model(folder: Path, embedding: int = 512, width: int = 64, layers: int = 3) -> Path:
    """A small open_clip model with open_clip's own random initial weights, as a folder that stages load."""
    vision = {"image_size": 32, "patch_size": 8, "layers": layers, "width": width, "head_width": 32}
    text = {"context_length": 77, "vocab_size": 49408, "layers": layers, "width": width, "heads": width // 64}
    return write_random(folder, {"embed_dim": embedding, "vision_cfg": vision, "text_cfg": text})


def write_random(folder: Path, config: dict[str, Any] | str) -> Path:
    """A model of this configuration, or of an open_clip name, with random weights; returns the folder."""
    model_cfg = open_clip.get_model_config(config) if isinstance(config, str) else config
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model_cfg, "preprocess_cfg": {}}))
    torch.manual_seed(0)
    model = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return folder


def write_cache(
    path: Path,
    model: Path,
    rows: int,
    classes: str = "imagenet-22k",
    views: int = 1,
    seed: int = 0,
    device: str = "cpu",
) -> Path:
    """A finished cache of `rows` samples without image files, with labels in order as class by class shards
    have them."""
    teacher = Teacher(load_model(str(model)), torch.device(device))
    names = load_vocabulary(classes)
    vocabulary = Vocabulary(names.names, names.ids, ("a photo of a {}.",))
    labels = (np.arange(rows) * len(vocabulary) // rows).astype(np.int32)
    samples = SampleTable(
        pa.table(
            {
                "key": pa.array([f"{row:09d}" for row in range(rows)], pa.large_string()),
                "path": pa.array(["/nowhere.tar"] * rows).dictionary_encode(),
                "offset": pa.array(np.arange(rows, dtype=np.int64)),
                "length": pa.array(np.ones(rows, dtype=np.int64)),
                "label": pa.array(labels),
            }
        )
    )
    class_features_CD = teacher.class_features(vocabulary).numpy()
    embedding = class_features_CD.shape[1]
    header = CacheHeader(
        samples=rows,
        part_size=part_rows(PART_ROWS, rows),
        embedding=embedding,
        classes=len(vocabulary),
        encoding={"name": "factored"},
        teacher=teacher.describe(),
        view_policy=ViewPolicy(views=views).model_dump(),
        vocabulary=Path(classes).stem.lower(),
        vocabulary_digest=vocabulary_digest(vocabulary),
        sample_table_digest=samples.digest,
        images="/nowhere.tar",
        software=f"rpp {rpp_version()}",
        passes=[views],
    )
    store = CacheStore.create(path, header, samples, vocabulary, class_features_CD)
    random = np.random.default_rng(seed)
    for part in range(header.parts):
        here = header.rows(part)
        shape = (here.stop - here.start, views, embedding)
        features = random.standard_normal(shape, dtype=np.float32)
        features /= np.linalg.norm(features, axis=-1, keepdims=True)
        arrays = {
            "image_features": features.astype(np.float16),
            "crops": np.full((*shape[:2], 5), (0, 0, FULL, FULL, 0), dtype=np.uint16),
            "labels": labels[here],
            "valid": np.ones(shape[0], dtype=bool),
        }
        store.parts.commit(part, arrays, {}, [])
    return path


def main(
    *,
    rows: Annotated[int, typer.Option(help="samples")] = 1_000_000,
    out: Annotated[Path, typer.Option(help="the cache's folder")],
    model: Annotated[Path | None, typer.Option(help="model folder [default: a small one is written]")] = None,
    classes: Annotated[str, typer.Option(help="vocabulary")] = "imagenet-22k",
    views: Annotated[int, typer.Option(help="views a sample")] = 1,
) -> None:
    """Write a cache (and a small model beside it, unless one is named)."""
    folder = model or write_model(out.with_suffix(".model"))
    print(write_cache(out, folder, rows, classes, views))


if __name__ == "__main__":
    typer.run(main)
