"""Shuffled reads of cached features: this project's readers against three ways to read a row at a time.

The cache is a real one of random unit features. What the training loop gets (`Join.batches`, an epoch in its
order) is compared with rows in random order from: Zarr's own fancy indexing; flat files, one seek and read a
row, with a dictionary from key to place (TinyViT's layout); one `torch.save` file a sample (Dataset
Reinforcement's). The slow ones read a subset, as printed. All files are in the page cache.

    python benchmarks/feature_reads.py --json
"""

import json
import tempfile
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import synthetic
import torch
import typer
from rich.console import Console
from timing import in_turn, machine, record, timed

from student_train.data.join import Join
from teacher_cache import TeacherCache, open_cache

BAR_ROWS, BAR_RATIO = 2e6, 10


class FlatFiles:
    """One file a part, rows behind one another; where a key's row begins is in a dictionary."""

    def __init__(self, cache: TeacherCache, keys: list[str], folder: Path) -> None:
        part = cache.header.part_size
        self.row_bytes = 2 * cache.header.embedding
        for number, start in enumerate(range(0, len(cache), part)):
            features = cache.image_features(slice(start, start + part)).numpy()
            (folder / f"{number}.bin").write_bytes(features.tobytes())
        self.files = [open(folder / f"{n}.bin", "rb", buffering=0) for n in range(number + 1)]  # noqa: SIM115
        self.places = {key: (row // part, row % part * self.row_bytes) for row, key in enumerate(keys)}

    def read(self, key: str) -> np.ndarray:
        """[D] float16."""
        number, offset = self.places[key]
        file = self.files[number]
        file.seek(offset)
        return np.frombuffer(file.read(self.row_bytes), np.float16)


def main(
    rows: Annotated[int, typer.Option(help="samples in the cache")] = 524_288,
    embedding: Annotated[int, typer.Option(help="width D of a feature")] = 512,
    batch: Annotated[int, typer.Option(help="rows that are handed over at a time")] = 1024,
    rounds: Annotated[int, typer.Option(help="how often each is timed")] = 5,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Write the caches and files, time all readers in turn, print rows a second."""
    with tempfile.TemporaryDirectory() as folder_name:
        folder = Path(folder_name)
        model = synthetic.write_model(folder / "model", embedding)
        cache = open_cache(synthetic.write_cache(folder / "c.zarr", model, rows, "imagenet-1k"))
        report = measure(cache, folder, batch, rounds)
    if as_json:
        print(json.dumps(report))
        return
    console = Console(soft_wrap=True)
    for name, value in report["rows_per_second"].items():
        console.print(f"{name:42} {value:12,.0f} rows/s", highlight=False)
    console.print(
        f"blocks / flat files: {report['ratio']:.0f} (bar {BAR_RATIO}), bar {BAR_ROWS:,.0f} rows/s",
        highlight=False,
    )


def measure(cache: TeacherCache, folder: Path, batch: int, rounds: int) -> dict[str, Any]:
    """Rows a second of every way, and the ratios."""
    every = np.arange(len(cache))
    joins = {
        name: Join(cache, every, batch, 0, student_features=cache, reader=name)
        for name in ("memory", "blocks")
    }
    loading = timed(lambda: Join(cache, every, batch, 0, student_features=cache, reader="memory"))
    keys = cache.samples.keys(slice(None))
    (folder / "flat").mkdir()
    flat = FlatFiles(cache, keys, folder / "flat")
    drawn = np.random.default_rng(0).permutation(len(cache))
    of_zarr, of_flat, of_files = drawn[:2_000], drawn[:50_000], drawn[:2_000]
    (folder / "files").mkdir()
    for row in of_files.tolist():
        torch.save(cache.image_features(row)[0], folder / "files" / f"{keys[row]}.pt")
    array = cache.store.parts.array("image_features")

    def an_epoch(join: Join) -> None:
        for _ in join.batches(0, join.steps_per_epoch):
            pass

    def by_zarr() -> None:
        for start in range(0, len(of_zarr), batch):
            array.oindex[of_zarr[start : start + batch], 0]

    def by_flat_files() -> None:
        for start in range(0, len(of_flat), batch):
            np.stack([flat.read(keys[row]) for row in of_flat[start : start + batch].tolist()])

    def by_file() -> None:
        for start in range(0, len(of_files), batch):
            part = of_files[start : start + batch].tolist()
            torch.stack([torch.load(folder / "files" / f"{keys[row]}.pt") for row in part])

    work = {
        "blocks": (lambda: an_epoch(joins["blocks"]), joins["blocks"].steps_per_epoch * batch),
        "memory": (lambda: an_epoch(joins["memory"]), joins["memory"].steps_per_epoch * batch),
        "zarr": (by_zarr, len(of_zarr)),
        "flat": (by_flat_files, len(of_flat)),
        "files": (by_file, len(of_files)),
    }
    times = in_turn({name: call for name, (call, _) in work.items()}, rounds)
    speed = {name: count / times[name].seconds for name, (_, count) in work.items()}
    names = {
        "blocks": f"blocks, {len(cache):,} rows",
        "memory": f"memory, {len(cache):,} rows",
        "zarr": f"zarr fancy indexing, {len(of_zarr):,} rows",
        "flat": f"flat files and dictionary, {len(of_flat):,} rows",
        "files": f"torch.save a sample, {len(of_files):,} rows",
    }
    return {
        "rows": len(cache),
        "embedding": cache.header.embedding,
        "rows_per_second": {names[name]: value for name, value in speed.items()},
        "rows_per_cpu_second": {
            names[name]: count / times[name].cpu_seconds for name, (_, count) in work.items()
        },
        "times": record(times),
        "memory_loaded_in": record({"memory": loading})["memory"],
        "ratio": speed["blocks"] / speed["flat"],
        "ratio_memory": speed["memory"] / speed["flat"],
        "bars": {"rows_per_second": BAR_ROWS, "ratio": BAR_RATIO},
        "holds": speed["blocks"] >= BAR_ROWS and speed["blocks"] >= BAR_RATIO * speed["flat"],
        "machine": machine(),
    }


if __name__ == "__main__":
    typer.run(main)
