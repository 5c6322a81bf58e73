"""Decoding in threads or in processes: pictures a second, and what is left of the training thread.

The training thread launches many small operations, as it does for a GPU; threads that decode take Python's
lock from it for some of their time, processes do not. Each way decodes and renders random resized crops of
the pictures without pause while this thread counts how many operations it gets done. As many workers as
leave a core to this thread, so that cores are not what they compete for.

    python benchmarks/decoding.py --images 'shards/*.tar' --classes classes.txt --json
"""

import json
import statistics
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated

import numpy as np
import torch
import typer
from open_clip.transform import PreprocessCfg
from timing import machine

from student_train.data.pixels import PixelWorkers, ViewRequests
from teacher_cache.classes.vocabulary import load_vocabulary
from teacher_cache.command_settings import ViewPolicy
from teacher_cache.cores import usable_cores
from teacher_cache.images.decode import decode_image
from teacher_cache.images.index import index_images
from teacher_cache.images.location import Location
from teacher_cache.images.reader import ImageReader
from teacher_cache.images.table import SampleTable
from teacher_cache.views import ViewRenderer, draw_crop

BATCH = 64


def endless(samples: SampleTable) -> Iterator[ViewRequests]:
    """Batches of random crops in random order."""
    random, policy, number = np.random.default_rng(0), ViewPolicy(views=2), 0
    while True:
        rows = random.integers(0, len(samples), BATCH)
        crops = np.stack([draw_crop(policy, number * BATCH + i, 1, 500, 400) for i in range(BATCH)])
        yield ViewRequests(rows, np.ones(BATCH, dtype=np.int64), crops)
        number += 1


def by_threads(samples: SampleTable, renderer: ViewRenderer, workers: int) -> Iterator[int]:
    """Pictures of each batch, decoded by a thread pool."""
    reader = ImageReader()

    def pixels(location: Location, crop: np.ndarray) -> np.ndarray:
        return renderer.render(decode_image(reader.read(location)), 1, crop)

    with ThreadPoolExecutor(workers) as pool:
        for batch in endless(samples):
            yield len(np.stack(list(pool.map(pixels, samples.locations(batch.rows), batch.crops))))


def by_processes(samples: SampleTable, renderer: ViewRenderer, workers: int) -> Iterator[int]:
    """The same as the training loop has it."""
    for pixels in PixelWorkers(samples, len(samples), renderer, workers).decode(endless(samples), BATCH):
        yield len(pixels)


def counted(decoding: Iterator[int] | None, seconds: float) -> tuple[float, float]:
    """Operations of this thread and pictures of the others, both a second."""
    pictures, stop = 0, threading.Event()

    def decode(batches: Iterator[int]) -> None:
        nonlocal pictures
        while not stop.is_set():
            pictures += next(batches)

    feeder = threading.Thread(target=decode, args=(decoding,)) if decoding else None
    if feeder and decoding:
        next(decoding)  # the decoders have started
        feeder.start()
    small, operations, started = torch.ones(16, 16), 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        small = small * 1.0
        operations += 1
    took = time.perf_counter() - started
    done = pictures
    stop.set()
    if feeder:
        feeder.join()
    return operations / took, done / took


def main(
    images: Annotated[str, typer.Option(help="tar shards or an image folder")],
    classes: Annotated[str, typer.Option(help="vocabulary of the images")],
    workers: Annotated[int, typer.Option(help="threads or processes")] = max(1, usable_cores() - 1),
    seconds: Annotated[float, typer.Option(help="of each measurement")] = 5.0,
    rounds: Annotated[int, typer.Option(help="how often each is measured")] = 3,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Measure in turn and print medians."""
    torch.set_num_threads(1)
    samples, _ = index_images(images, load_vocabulary(classes))
    renderer = ViewRenderer(PreprocessCfg())
    ways = {"nobody": None, "threads": by_threads, "processes": by_processes}
    figures: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    for number in range(rounds):
        for way in list(ways)[:: -1 if number % 2 else 1]:
            start = ways[way]
            figures[way].append(counted(start and start(samples, renderer, workers), seconds))
    medians = {
        way: {
            "operations_per_second": statistics.median(operations for operations, _ in of),
            "pictures_per_second": statistics.median(pictures for _, pictures in of),
        }
        for way, of in figures.items()
    }
    report = {"workers": workers, "decoding_by": medians, "machine": machine()}
    if as_json:
        print(json.dumps(report))
        return
    for way, of in medians.items():
        print(
            f"{way:10} {of['operations_per_second']:12,.0f} operations/s "
            f"{of['pictures_per_second']:8.0f} pictures/s"
        )


if __name__ == "__main__":
    typer.run(main)
