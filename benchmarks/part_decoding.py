"""Pictures a second that a build decodes, without a model: in threads of one process, in several processes.

python benchmarks/part_decoding.py --threads 2 --processes 2
"""

import json
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import numpy as np
import typer
from build_overhead import write_photos
from open_clip.transform import PreprocessCfg
from timing import machine

from teacher_cache.classes.vocabulary import Vocabulary
from teacher_cache.command_settings import ViewPolicy
from teacher_cache.compute.part import PartPixels, PartTask, cut_batches
from teacher_cache.images.decode import MAX_PIXELS
from teacher_cache.images.index import index_images
from teacher_cache.images.table import SampleTable
from teacher_cache.views import ViewRenderer

NAMES = Vocabulary(("cat", "dog"), ("cat", "dog"), ("{}",))
BATCH = 64


def decode(shard: str, count: int, threads: int) -> tuple[float, float]:
    """When a process began to decode all pictures of a shard, and when it had them."""
    samples = SampleTable(index_images(shard, NAMES)[0].table)
    header: Any = SimpleNamespace(
        rows=lambda part: range(count),
        views_of=lambda part: range(1),
        view_policy=ViewPolicy(views=1).model_dump(),
        max_pixels=MAX_PIXELS,
    )
    crops, wanted = np.zeros((count, 1, 5), np.uint16), np.ones(count, np.bool_)
    pixels = PartPixels(PartTask(header, 0, samples), ViewRenderer(PreprocessCfg()), crops, wanted, False)
    begun = time.time()
    with ThreadPoolExecutor(threads) as pool:
        for _ in pixels.decoded(pool, cut_batches(count, 1, BATCH)):
            pass
    return begun, time.time()


def main(
    threads: Annotated[int, typer.Option(help="of one process")] = 2,
    processes: Annotated[int, typer.Option(help="of one thread each")] = 2,
    count: Annotated[int, typer.Option(help="pictures of each process")] = 1536,
) -> None:
    """Print the rates as JSON."""
    with tempfile.TemporaryDirectory() as folder:
        shard = str(write_photos(Path(folder) / "photos.tar", count, different=64))
        rates = {}
        for name, of_process, at_once in (
            ("one thread", 1, 1),
            (f"{threads} threads", threads, 1),
            (f"{processes} processes", 1, processes),
        ):
            with ProcessPoolExecutor(at_once, get_context("spawn")) as pool:
                spans = list(pool.map(decode, *zip(*[(shard, count, of_process)] * at_once, strict=True)))
            taken = max(end for _, end in spans) - min(begun for begun, _ in spans)
            rates[name] = round(at_once * count / taken)
    print(json.dumps({"pictures_per_second": rates, "machine": machine()}))


if __name__ == "__main__":
    typer.run(main)
