"""Cost of a build on top of its teacher: reading, decoding, resizing and storing beside the forward pass.

A build of JPEG files is timed against a bare loop of the same model's `encode_image` over the same pictures,
decoded, preprocessed and cut into the same batches beforehand: in one process, with the same torch threads,
in turn. The build is what grows with the number of images (`compute_missing`: workers are started, parts
computed and committed); loading the model, which the bare loop needs as well, and the class features are not
in it. Medians over the rounds. `processor_ratio` compares the processor time of all threads in the same way:
it hardly changes where other work runs on the machine.

    python benchmarks/build_overhead.py --json
    python benchmarks/build_overhead.py --images 'shards/{0000..0003}.tar' --count 2048
"""

import io
import json
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import open_clip
import torch
import typer
from open_clip.transform import image_transform_v2
from PIL import Image
from rich.console import Console
from safetensors.torch import save_file
from timing import machine

from teacher_cache.build import compute_missing, load_requested, open_or_create
from teacher_cache.classes.vocabulary import load_vocabulary
from teacher_cache.command_settings import BuildSettings
from teacher_cache.compute.workers import on_this_machine
from teacher_cache.images.decode import decode_picture
from teacher_cache.images.index import index_images
from teacher_cache.images.reader import ImageReader
from teacher_cache.images.table import SampleTable
from teacher_cache.teacher.teacher import AUTOCAST, Teacher, choose_device


@cache
def photo(seed: int, width: int = 400, height: int = 300) -> bytes:
    """A JPEG of about 20 KB with structure at several scales, as a photograph has, a function of the seed."""
    random = np.random.default_rng(seed)
    picture = np.zeros((height, width, 3))
    for cells in (4, 16, 64):
        noise = random.integers(0, 256, (cells * 3 // 4, cells, 3), dtype=np.uint8)
        grown = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
        picture += np.asarray(grown, dtype=np.float64) / cells**0.5
    picture = 255 * (picture - picture.min()) / np.ptp(picture)
    buffer = io.BytesIO()
    Image.fromarray(picture.astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def write_photos(
    path: Path, count: int, classes: int = 2, different: int = 512, first: int = 0, **size: int
) -> Path:
    """A WebDataset shard of `count` such pictures, `different` of them again and again, of all classes in
    turn; `first` is the number of its first sample."""
    photos = [photo(number, **size) for number in range(min(count, different))]
    with tarfile.open(path, "w") as tar:
        for number in range(first, first + count):
            for suffix, content in (
                ("jpg", photos[number % len(photos)]),
                ("cls", b"%d" % (number % classes)),
            ):
                member = tarfile.TarInfo(f"{number:06d}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return path


def preprocessed(samples: SampleTable, preprocess: Any, batch_size: int) -> list[torch.Tensor]:
    """All pictures by open_clip's own transform, [B, 3, H, W] float32 a batch."""
    transform, reader = image_transform_v2(preprocess, is_train=False), ImageReader()
    contents = (reader.read(location) for location in samples.locations(slice(None)))
    with ThreadPoolExecutor() as pool:
        pictures = list(pool.map(lambda content: transform(decode_picture(content)), contents))
    return [torch.stack(pictures[n : n + batch_size]) for n in range(0, len(pictures), batch_size)]


def seconds(work: Callable[[], object]) -> tuple[float, float]:
    """Wall time of a call, and the processor time of this process during it."""
    wall, busy = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - busy


def main(
    images: Annotated[str | None, typer.Option(help="real images; unset: pictures made here")] = None,
    count: Annotated[int, typer.Option(help="how many images")] = 512,
    model: Annotated[str, typer.Option(help="an open_clip model; its weights are random")] = "ViT-B-32",
    rounds: Annotated[int, typer.Option(help="how often each is timed")] = 3,
    batch_size: Annotated[int | None, typer.Option(help="as rpp-cache build; unset: its default")] = None,
    threads: Annotated[int | None, typer.Option(help="as rpp-cache build; unset: its default")] = None,
    torch_threads: Annotated[int | None, typer.Option(help="of both; unset: as torch chooses")] = None,
    precision: Annotated[str, typer.Option(help="of both: fp32, bf16 or fp16")] = "fp32",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")] = "auto",
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Time both and print the ratio."""
    if torch_threads:
        torch.set_num_threads(torch_threads)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        torch.manual_seed(0)
        save_file(open_clip.create_model(model).state_dict(), folder / "random.safetensors")
        (folder / "names.txt").write_text("cat\ndog\n")
        chosen = {"batch_size": batch_size, "threads": threads, "precision": precision, "device": device}
        settings = BuildSettings(
            images=images or str(write_photos(folder / "photos.tar", count)),
            classes=str(folder / "names.txt"),
            out=str(folder / "zarr"),
            teacher=model,
            pretrained=str(folder / "random.safetensors"),
            weights_like=next(iter(open_clip.list_pretrained_tags_by_model(model)), None),
            part_size=count,
            **{name: value for name, value in chosen.items() if value},
        )
        vocabulary = load_vocabulary(settings.classes)
        samples = SampleTable(index_images(settings.images, vocabulary)[0].table.slice(0, count))
        where = choose_device(device)
        teacher = Teacher(load_requested(settings, print), where, settings.precision)
        batches = preprocessed(samples, teacher.loaded.preprocess, settings.batch_size)
        autocast = torch.autocast(where.type, dtype=AUTOCAST.get(precision), enabled=precision != "fp32")

        def forward() -> None:
            with torch.inference_mode(), autocast:
                for batch in batches:
                    features = teacher.model.encode_image(batch.to(where))
                features.cpu()

        forward()  # the first pass of a model is slower
        forwards, builds = [], []
        for number in range(rounds):
            asked = settings.model_copy(update={"out": str(folder / f"zarr-{number}")})
            store = open_or_create(asked, teacher, vocabulary, samples)
            forwards.append(seconds(forward))
            builds.append(seconds(partial(compute_missing, store, asked, teacher)))
        stages = store.parts.record(0).seconds
    wall_build, wall_forward = (statistics.median(wall for wall, _ in runs) for runs in (builds, forwards))
    busy_build, busy_forward = (statistics.median(busy for _, busy in runs) for runs in (builds, forwards))
    found = {
        "ratio": round(wall_build / wall_forward, 3),
        "seconds_build": round(wall_build, 3),
        "seconds_forward": round(wall_forward, 3),
        "processor_ratio": round(busy_build / busy_forward, 3),
        "processor_seconds_build": round(busy_build, 3),
        "processor_seconds_forward": round(busy_forward, 3),
        "images": len(samples),
        "images_per_second": round(len(samples) / wall_build, 1),
        "machine": machine(),
        "rounds": rounds,
        "torch_threads": torch.get_num_threads(),
        "decoding_threads": on_this_machine(settings).threads,
        "stages_of_the_last_build": stages,
        "all_builds": [round(wall, 3) for wall, _ in builds],
        "all_forwards": [round(wall, 3) for wall, _ in forwards],
    }
    if as_json:
        print(json.dumps(found))
    else:
        for key, value in found.items():
            Console().print(f"{key}: {value}", highlight=False)


if __name__ == "__main__":
    typer.run(main)
