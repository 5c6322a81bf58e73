"""A cache of ImageNet-21K's size: what opening it costs, and reading from it.

    python benchmarks/open_large.py --json

Lays out a cache of 14,197,122 samples as a build does: header, arrays, vocabulary of 21,841 names, sample
table, the records of all parts. The first parts' shards are written, those of the others are links to the
first: 14 GB that take 16 MB. Then a fresh process opens it and reads from it. The bars: 2 s and 300 MB above
the imports. Linux, for the peak memory.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SAMPLES = 14_197_122
EMBEDDING = 512
BLOCK_READS = 1000
WRITTEN_PARTS = 2  # with features, for the reads
BAR_SECONDS, BAR_MB = 2.0, 300.0


def lay_out(path: Path, samples: int) -> None:
    """Write the cache."""
    import numpy as np
    import pyarrow as pa

    from teacher_cache.classes.vocabulary import load_vocabulary
    from teacher_cache.images.table import SampleTable
    from teacher_cache.store.cache_store import CacheStore
    from teacher_cache.store.checksums import checksum
    from teacher_cache.store.header import SAMPLE_ARRAYS, CacheHeader, part_rows
    from teacher_cache.store.records import PartRecord
    from teacher_cache.store.vocabularies import vocabulary_digest
    from teacher_cache.views import FULL

    vocabulary = load_vocabulary("imagenet-21k")
    random = np.random.default_rng(0)
    labels = np.sort(random.integers(0, len(vocabulary), samples, dtype=np.int32))
    synsets = np.array(vocabulary.ids)[labels]
    begins = np.searchsorted(labels, labels)  # where the row's class begins
    lengths = random.integers(20_000, 200_000, samples)
    table = pa.table(
        {
            "key": pa.array(
                (f"{s}/{s}_{n}" for s, n in zip(synsets, np.arange(samples) - begins, strict=True)),
                pa.large_string(),
            ),
            "path": pa.DictionaryArray.from_arrays(
                pa.array(labels), pa.array([f"/data/imagenet21k/{synset}.tar" for synset in vocabulary.ids])
            ),
            "offset": pa.array(512 * random.integers(0, 1 << 20, samples)),
            "length": pa.array(lengths),
            "label": pa.array(labels),
        }
    )
    header = CacheHeader(
        samples=samples,
        part_size=part_rows(8192, samples),
        embedding=EMBEDDING,
        classes=len(vocabulary),
        encoding={"name": "factored"},
        teacher={"model": "ViT-B-16", "pretrained": "openai", "weights_digest": "-", "logit_scale": 100.0},
        view_policy={"views": 1, "view_seed": 0},
        vocabulary="imagenet-21k",
        vocabulary_digest=vocabulary_digest(vocabulary),
        sample_table_digest="-",
        images="/data/imagenet21k",
        software="benchmark",
        passes=[1],
    )
    features = random.normal(size=(len(vocabulary), EMBEDDING)).astype(np.float32)
    store = CacheStore.create(path, header, SampleTable(table), vocabulary, features)
    seconds = {"wall": 41.0, "read": 10.0, "decode": 60.0, "wait": 1.0, "forward": 40.0, "write": 1.0}
    first: dict[str, Any] = {}
    for part in range(header.parts):
        rows = header.rows(part)
        count = rows.stop - rows.start
        if part < WRITTEN_PARTS:
            values = random.normal(size=(count, 1, EMBEDDING)).astype(np.float16)
            arrays: dict[str, Any] = {
                "image_features": values,
                "crops": np.full((count, 1, 5), (0, 0, FULL, FULL, 0), np.uint16),
                "valid": np.ones(count, np.bool_),
                "labels": labels[rows],
            }
            record = store.parts.commit(part, arrays, seconds, [])
            first = first or arrays
        else:
            for name in header.arrays_of(part):
                inner = "/0/0" if name in header.per_view else ""
                shard = path / name / "c" / f"{part}{inner}"
                shard.parent.mkdir(parents=True, exist_ok=True)
                os.link(path / name / "c" / f"0{inner}", shard)
            sums = record.checksums | {name: checksum(first[name][:count]) for name in SAMPLE_ARRAYS}
            store.parts.write_record(PartRecord(part, (rows.start, rows.stop), sums, seconds, []))


def peak_mb() -> float:
    """Largest resident memory of this process since the last call, in MB."""
    status = Path("/proc/self/status").read_text()
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak
    return int(peak.split()[1]) * 1024 / 1e6


def measure(path: Path) -> dict[str, Any]:
    """Open the cache and read from it; seconds and peak memory above the imports after each step."""
    import numpy as np

    from student_train.data.order import Order
    from teacher_cache import open_cache
    from teacher_cache.info import describe
    from teacher_cache.store.cache_store import CacheStore
    from teacher_cache.store.header import CHUNK_ROWS

    peak_mb()
    imported, facts = peak_mb(), dict[str, Any]()  # what is resident now

    @contextmanager
    def timed(step: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        facts[f"{step}_seconds"] = round(time.perf_counter() - started, 3)
        facts[f"{step}_peak_mb"] = round(peak_mb() - imported, 1)

    with timed("open"):
        cache = open_cache(path)
    random = np.random.default_rng(0)
    some = np.sort(random.integers(0, len(cache), 256))
    with timed("locations_of_256_rows"):
        cache.samples.locations(some)
    written = WRITTEN_PARTS * cache.header.part_size // CHUNK_ROWS
    with timed(f"{BLOCK_READS}_block_reads"):
        for block in random.integers(0, min(written, len(cache) // CHUNK_ROWS), BLOCK_READS):
            cache.image_features(slice(int(block) * CHUNK_ROWS, (int(block) + 1) * CHUNK_ROWS))
    with timed("labels_and_valid"):
        rows = len(cache.labels), len(cache.valid)
    with timed("epoch_order"):
        Order(np.arange(rows[0]), cache.num_views, seed=0).samples(epoch=0, start=0, stop=256)
    with timed("info"):
        describe(CacheStore.open(path))
    facts["samples"], facts["parts"] = len(cache), cache.header.parts
    return facts


def main() -> None:
    """Lay the cache out, measure in a fresh process, compare with the bars."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=SAMPLES)
    parser.add_argument("--cache", type=Path, help="keep it here, or measure the one that is here")
    parser.add_argument("--json", action="store_true", help="print only JSON")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.cache)))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = options.cache or Path(folder, "zarr")
        facts: dict[str, Any] = {}
        if not path.exists():
            started = time.perf_counter()
            lay_out(path, options.samples)
            facts["layout_seconds"] = round(time.perf_counter() - started, 1)
        command = [sys.executable, __file__, "--measure", "--cache", str(path)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        facts |= json.loads(done.stdout)
    facts["ok"] = facts["open_seconds"] <= BAR_SECONDS and facts["open_peak_mb"] <= BAR_MB
    if options.json:
        print(json.dumps(facts))
        return
    for name, value in facts.items():
        print(f"{name}: {value}")


if __name__ == "__main__":
    main()
