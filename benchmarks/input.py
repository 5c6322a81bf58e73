"""Images a second that reach a model which costs nothing, over what bare Pillow decodes in as many processes.

Stage one: the pixels of a build's part. Stage two: those of a training run's batches, in random order. Both
read, decode and render the evaluation view in processes that write into shared memory, stage one also in
threads. The yardstick is a loop of `Image.open`, `resize` and `crop` over the bytes of the same images, in
memory, in as many processes of the same priority. All run in turn; figures are medians over the rounds, and a
ratio is the median of the rounds' ratios. `main_process_ms_per_image` is the processor time of the
process that has the model.

    python benchmarks/input.py --json
    python benchmarks/input.py --processes 16 --count 8192 --images 'shards/{0000..0003}.tar'
"""

import io
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import psutil
import torch
import typer
from build_overhead import write_photos
from open_clip.transform import PreprocessCfg
from PIL import Image
from rich.console import Console
from timing import machine

from student_train.data.pixels import PixelWorkers, ViewRequests
from teacher_cache.classes.vocabulary import Vocabulary
from teacher_cache.command_settings import ViewPolicy
from teacher_cache.compute.part import PartPixels, PartTask, cut_batches, part_job
from teacher_cache.cores import usable_cores
from teacher_cache.images.index import index_images
from teacher_cache.images.reader import ImageReader
from teacher_cache.images.table import SampleTable
from teacher_cache.pixels.decoders import NICENESS, Decoders, ProcessDecoders, ThreadDecoders
from teacher_cache.store.header import CacheHeader
from teacher_cache.views import ViewRenderer

SIDE = 224
WARM_UP = 4  # batches of stage two before it is measured
NAMES = Vocabulary(("cat", "dog"), ("cat", "dog"), ("{}",))

_contents: list[bytes] = []  # of a process of the yardstick


def load(images: str, count: int, process: int, processes: int) -> None:
    """Read a process's share of the images into memory, with the priority of ours."""
    os.nice(NICENESS)
    samples, reader = SampleTable(index_images(images, NAMES)[0].table), ImageReader()
    _contents[:] = map(reader.read, samples.locations(np.arange(process, count, processes)))


def bare() -> int:
    """Decode and resize all of them as a loop would; return their number."""
    pixels = np.empty((64, SIDE, SIDE, 3), np.uint8)
    for number, content in enumerate(_contents):
        picture = Image.open(io.BytesIO(content)).convert("RGB")
        scale = SIDE / min(picture.size)
        width, height = (int(side * scale) for side in picture.size)
        picture = picture.resize((width, height), Image.Resampling.BICUBIC)
        left, top = (width - SIDE) // 2, (height - SIDE) // 2
        pixels[number % 64] = np.asarray(picture.crop((left, top, left + SIDE, top + SIDE)))
    return len(_contents)


def header_of(count: int) -> CacheHeader:
    """The header of a cache with one part, as far as decoding reads it."""
    return CacheHeader(
        samples=count,
        part_size=count,
        embedding=1,
        classes=2,
        encoding={"name": "factored"},
        teacher={},
        view_policy=ViewPolicy().model_dump(),
        vocabulary="",
        vocabulary_digest="",
        sample_table_digest="",
        images="",
        software="",
        passes=[1],
    )


def stage_one(samples: SampleTable, decoders: Decoders, batch: int) -> int:
    """Pass a part's pixels to nobody; return their number."""
    count = len(samples)
    crops, wanted = np.zeros((count, 1, 5), np.uint16), np.ones(count, np.bool_)
    pixels = PartPixels(PartTask(header_of(count), 0, samples), crops, wanted, (SIDE, SIDE))
    return sum(len(of.samples) for of, _, _ in pixels.decoded(decoders, cut_batches(count, 1, batch)))


def endless(count: int, batch: int) -> Iterator[ViewRequests]:
    """Evaluation views in random order."""
    random = np.random.default_rng(0)
    while True:
        rows = random.permutation(count)[:batch]
        yield ViewRequests(rows, np.zeros(len(rows), np.int64), np.zeros((len(rows), 5), np.uint16))


def taken(batches: Iterator[torch.Tensor], count: int) -> int:
    """Take some batches; return their number of images."""
    done = 0
    while done < count:
        done += len(next(batches))
    return done


def busy() -> float:
    """Processor seconds of this process and all of its own."""
    own = psutil.Process()
    times = [process.cpu_times() for process in (own, *own.children(recursive=True))]
    return sum(of.user + of.system for of in times)


def measured(work: Callable[[], int]) -> dict[str, float]:
    """Images a second of a call, milliseconds of a core an image, and those of this process."""
    wall, every, own = time.perf_counter(), busy(), time.process_time()
    done = work()
    own, every = time.process_time() - own, busy() - every
    return {
        "images_per_second": done / (time.perf_counter() - wall),
        "processor_ms_per_image": 1000 * every / done,
        "main_process_ms_per_image": 1000 * own / done,
    }


def medians(runs: list[dict[str, float]], yardstick: list[dict[str, float]]) -> dict[str, float]:
    """Medians of the figures, and of the ratios to the yardstick of the same round."""
    pairs = list(zip(runs, yardstick, strict=True))
    found = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
    found["ratio"] = statistics.median(
        run["images_per_second"] / bare["images_per_second"] for run, bare in pairs
    )
    found["processor_ratio"] = statistics.median(
        bare["processor_ms_per_image"] / run["processor_ms_per_image"] for run, bare in pairs
    )
    return {name: round(value, 3) for name, value in found.items()}


def main(
    images: Annotated[str | None, typer.Option(help="real images; unset: 500 x 375 JPEGs made here")] = None,
    count: Annotated[int, typer.Option(help="images of a measurement")] = 2048,
    processes: Annotated[int, typer.Option(help="that decode")] = usable_cores(),
    batch: Annotated[int, typer.Option(help="images of a batch")] = 64,
    rounds: Annotated[int, typer.Option(help="how often each is measured")] = 5,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Measure in turn and print rates and ratios."""
    torch.set_num_threads(1)
    renderer, size = ViewRenderer(PreprocessCfg()), (SIDE, SIDE)
    runs: dict[str, list[dict[str, float]]] = {way: [] for way in ("stage_one", "threads", "stage_two")}
    yardstick: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as folder, ExitStack() as open_until_the_end:
        photos = partial(write_photos, different=64, width=500, height=375)
        source = images or str(photos(Path(folder) / "photos.tar", count))
        samples = SampleTable(index_images(source, NAMES)[0].table.slice(0, count))
        count = len(samples)
        job = part_job(header_of(count), renderer)
        enter = open_until_the_end.enter_context
        # forks, while this process has no threads
        alone = [enter(ProcessPoolExecutor(1, get_context("fork"))) for _ in range(processes)]
        for number, process in enumerate(alone):
            process.submit(load, source, count, number, processes).result()
        threads = enter(ThreadDecoders(job, size, processes))
        decoders = enter(ProcessDecoders(job, size, processes, (1, batch), option="--processes"))
        workers = PixelWorkers(samples, count, renderer, processes)
        stage_one(SampleTable(samples.table.slice(0, batch)), decoders, batch)  # the processes have started
        for _ in range(rounds):
            yardstick.append(measured(lambda: sum(of.result() for of in [p.submit(bare) for p in alone])))
            runs["stage_one"].append(measured(partial(stage_one, samples, decoders, batch)))
            runs["threads"].append(measured(partial(stage_one, samples, threads, batch)))
            decoded = workers.decode(endless(count, batch), batch)
            taken(decoded, WARM_UP * batch)
            runs["stage_two"].append(measured(partial(taken, decoded, count)))
            del decoded
    found: dict[str, Any] = {way: medians(of, yardstick) for way, of in runs.items()}
    found |= {
        "bare": medians(yardstick, yardstick),
        "processes": processes,
        "images": count,
        "batch": batch,
        "rounds": rounds,
        "machine": machine(),
    }
    if as_json:
        print(json.dumps(found))
    else:
        for key, value in found.items():
            Console().print(f"{key}: {value}", highlight=False)


if __name__ == "__main__":
    typer.run(main)
