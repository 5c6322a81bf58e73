"""Indexing: members a second of a set of synset tars, against tarfile over the same files, and reuse.

The default set is 200 tars of 500 images of 700 bytes, read from the page cache. All seconds are processor
time: not of a disk, and not of what else runs on the machine. `--table N` adds the table of N rows that a set
of that size gives, its memory and the seconds of joining, labels, digest, writing and reading.

    python benchmarks/index_images.py --json --table 14197122
"""

import io
import json
import random
import resource
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import typer
from rich.console import Console

from teacher_cache.classes.vocabulary import load_vocabulary
from teacher_cache.images.index import index_images
from teacher_cache.images.labels import resolve_labels
from teacher_cache.images.rows import SCHEMA, Rows, joined
from teacher_cache.images.table import SampleTable

IMAGENET_21K = 14_197_122


def write_tars(folder: Path, synsets: tuple[str, ...], members: int) -> None:
    """A tar a synset, as ImageNet-21K is published."""
    for synset in synsets:
        with tarfile.open(folder / f"{synset}.tar", "w") as tar:
            for number in range(members):
                member = tarfile.TarInfo(f"{synset}_{number}.JPEG")
                member.size = 700
                tar.addfile(member, io.BytesIO(random.Random(number).randbytes(700)))


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """What the work returns, and its seconds of processor time, all threads together."""
    started = time.process_time()
    return work(), time.process_time() - started


def peak_mb() -> float:
    """Largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def tarfile_walk(paths: list[Path]) -> int:
    """All members, by tarfile."""
    count = 0
    for path in paths:
        with tarfile.open(path, "r:") as tar:
            count += sum(1 for _ in tar)
    return count


def table_of(rows: int, folder: Path) -> dict[str, Any]:
    """Seconds and memory of the table of a set with so many rows in 21,841 tars."""
    vocabulary = load_vocabulary("imagenet-21k")
    counts = np.full(len(vocabulary), rows // len(vocabulary))
    counts[: rows - counts.sum()] += 1
    before = peak_mb()

    def piece(c: int) -> Rows:
        n, synset = int(counts[c]), vocabulary.ids[c]
        columns = [
            pa.array([f"{synset}_{i}" for i in range(n)], pa.large_string()),
            pa.array(np.arange(n) * 110_592),
            pa.array(np.full(n, 110_000)),
            pa.nulls(n, pa.int32()),
            pa.array([synset] * n, pa.string()).dictionary_encode(),
        ]
        return Rows(f"/data/imagenet21k/{synset}.tar", pa.table(columns, schema=SCHEMA))

    pieces = [piece(c) for c in range(len(vocabulary))]
    raw, join = timed(lambda: joined(pieces))
    (labels, _), resolve = timed(lambda: resolve_labels(raw, None, vocabulary, "benchmark"))
    columns = {name: raw[name] for name in ("key", "path", "offset", "length")}
    samples = SampleTable(pa.table({**columns, "label": pa.array(labels)}))
    _, digest = timed(lambda: samples.digest)
    path = folder / "samples.parquet"
    _, write = timed(lambda: pq.write_table(samples.table, path, row_group_size=1 << 17, compression="zstd"))
    _, read = timed(lambda: SampleTable(pq.read_table(path, read_dictionary=["path"])))
    return {
        "rows": rows,
        "seconds_join": join,
        "seconds_labels": resolve,
        "seconds_digest": digest,
        "seconds_write": write,
        "seconds_read": read,
        "table_mb": samples.table.nbytes / 2**20,
        "file_mb": path.stat().st_size / 2**20,
        "peak_mb_above_start": peak_mb() - before,
    }


def main(
    tars: Annotated[int, typer.Option(help="how many tars")] = 200,
    members: Annotated[int, typer.Option(help="images a tar")] = 500,
    table: Annotated[int, typer.Option(help="rows of a table to build; 0: none")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="print only the figures, as JSON")] = False,
) -> None:
    """Print members a second of indexing and of tarfile, the seconds of indexing again, an estimate."""
    vocabulary = load_vocabulary("imagenet-21k")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_tars(folder, vocabulary.ids[:tars], members)
        paths = sorted(folder.glob("*.tar"))
        count, by_tarfile = timed(lambda: tarfile_walk(paths))
        (samples, _), seconds = timed(lambda: index_images(name, vocabulary))
        _, again = timed(lambda: index_images(name, vocabulary, samples))
        result = {
            "members": count,
            "members_per_second": count / seconds,
            "tarfile_members_per_second": count / by_tarfile,
            "ratio": by_tarfile / seconds,
            "seconds_again": again,
            "minutes_for_imagenet_21k": IMAGENET_21K * seconds / count / 60,
            "table": table_of(table, folder) if table else None,
        }
    if as_json:
        print(json.dumps(result))
    else:
        Console().print_json(json.dumps(result))


if __name__ == "__main__":
    typer.run(main)
