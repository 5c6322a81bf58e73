"""Rendered views against original images as input of stage two: pictures a second, bytes, and features.

A cache of 500 x 375 JPEGs (made here: `build_overhead.photo`) with two views of 224 x 224 is rendered with
each codec. The same worker processes read the same batches of it, without a model, from the originals and
from the rendered views in turn; both lie in the page cache. `ratio` is that of jpeg95. Features are those of
a ViT-B/32 with random weights; top-1 is that of the demo's teacher on Fluent emoji.

    python benchmarks/pixels.py --json
"""

import json
import statistics
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import open_clip
import torch
import typer
from build_overhead import photo
from numpy.typing import NDArray
from timing import machine

from pipeline.demo.clips import STUDENT, unpack_clip
from student_train.data.pixels import PixelWorkers, ViewRequests
from student_train.data.rendered import RenderedViews
from teacher_cache import open_cache
from teacher_cache.build import build_cache
from teacher_cache.classes.vocabulary import load_vocabulary
from teacher_cache.command_settings import BuildSettings, RenderSettings, ViewPolicy
from teacher_cache.images.decode import decode_image, decode_picture
from teacher_cache.images.index import index_images
from teacher_cache.images.reader import ImageReader
from teacher_cache.images.view_codecs import VIEW_CODECS, encode_view, stored_view
from teacher_cache.render import recorded_renderer, render_cache
from teacher_cache.teacher.openclip import load_model
from teacher_cache.teacher.teacher import Teacher

BATCH = 128
DEMO = Path(__file__).parents[1] / "pipeline" / "demo"
PICTURES = DEMO / "pictures"


TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 224, "patch_size": 32, "layers": 1, "width": 32, "head_width": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "layers": 1, "width": 32, "heads": 2},
}


def write_cache(folder: Path, count: int, model: dict[str, Any] = TINY) -> Path:
    """A cache of `count` pictures of 500 x 375 with two views of 224 x 224; its weights are random."""
    (folder / "images").mkdir()
    with tarfile.open(folder / "images" / "photos.tar", "w") as tar:
        for number in range(count):
            file = folder / "photo.jpg"
            file.write_bytes(photo(number, 500, 375))
            tar.add(file, f"{number:06d}.jpg")
    (folder / "names.txt").write_text("one\ntwo\n")
    teacher = folder / "teacher"
    teacher.mkdir()
    (teacher / "open_clip_config.json").write_text(json.dumps({"model_cfg": model, "preprocess_cfg": {}}))
    weights = open_clip.create_model(f"local-dir:{teacher}").state_dict()
    torch.save(weights, teacher / "open_clip_pytorch_model.bin")
    out = folder / "cache.zarr"
    build_cache(
        BuildSettings(
            images=str(folder / "images"),
            classes=str(folder / "names.txt"),
            out=str(out),
            teacher=str(teacher),
            view_policy=ViewPolicy(views=2),
            device="cpu",
        )
    )
    return out


def batches_of(cache: Any, count: int, number: int) -> list[ViewRequests]:
    """Batches of random rows and views."""
    random, found = np.random.default_rng(number), []
    crops = [cache.crops(slice(None), view) for view in range(2)]
    for _ in range(count):
        rows, views = random.integers(0, len(cache), BATCH), random.integers(0, 2, BATCH)
        boxes = np.where((views == 0)[:, None], crops[0][rows], crops[1][rows])
        found.append(ViewRequests(rows, views, boxes))
    return found


def rate(workers: PixelWorkers, batches: list[ViewRequests]) -> float:
    """Pictures a second after the first batch, which starts the processes."""
    decoded = workers.decode(batches, BATCH)
    next(decoded)
    started, count = time.perf_counter(), 0
    for pixels in decoded:
        count += len(pixels)
    return count / (time.perf_counter() - started)


def cosines(pictures: list[NDArray[np.uint8]]) -> dict[str, dict[str, float]]:
    """1 − cosine of features of stored and of exact pixels: a ViT-B/32 with random weights."""
    torch.manual_seed(0)
    model = open_clip.create_model("ViT-B-32").eval()

    def features(pixels: list[NDArray[np.uint8]]) -> torch.Tensor:
        stacked = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 255
        with torch.inference_mode():
            return model.encode_image((stacked - 0.45) / 0.27, normalize=True)

    exact = features(pictures)
    stored = {codec: features([stored_view(one, codec)[1] for one in pictures]) for codec in VIEW_CODECS}
    lost = {codec: 1 - (of * exact).sum(-1) for codec, of in stored.items()}
    return {codec: {"mean": float(of.mean()), "largest": float(of.max())} for codec, of in lost.items()}


def codec_times(pictures: list[NDArray[np.uint8]]) -> dict[str, dict[str, float]]:
    """Processor milliseconds a view of encoding and of decoding, on one core."""
    found = {}
    for codec in VIEW_CODECS:
        before = time.process_time()
        files = [encode_view(one, codec) for one in pictures]
        written = time.process_time()
        for file in files:
            decode_image(file)
        seconds = {"encode": written - before, "decode": time.process_time() - written}
        found[codec] = {name: round(1000 * of / len(pictures), 3) for name, of in seconds.items()}
    return found


def accuracies() -> dict[str, float]:
    """Top-1 of the demo's student on Fluent emoji, from exact pixels and through each codec."""
    classes = load_vocabulary(str(PICTURES / "classes.txt"))
    samples, _ = index_images(str(PICTURES / "fluent-flat.parquet"), classes)
    with tempfile.TemporaryDirectory() as folder:
        teacher = Teacher(load_model(str(unpack_clip(STUDENT, Path(folder)))), torch.device("cpu"))
    reader, renderer = ImageReader(), teacher.renderer
    empty = np.zeros(5, dtype=np.uint16)
    views = [
        renderer.draw(decode_picture(reader.read(place)), 0, empty)
        for place in samples.locations(slice(None))
    ]
    classifier_CD = teacher.class_features(classes)
    labels = torch.from_numpy(samples.labels.astype(np.int64))

    def top1(pixels: list[NDArray[np.uint8]]) -> float:
        features = teacher.image_features(torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2))
        hits = (features @ classifier_CD.T).argmax(-1) == labels
        return round(float(hits[labels >= 0].float().mean()), 4)

    return {"exact": top1(views)} | {c: top1([stored_view(v, c)[1] for v in views]) for c in VIEW_CODECS}


def main(
    count: Annotated[int, typer.Option(help="pictures")] = 512,
    workers: Annotated[int, typer.Option(help="worker processes of each side")] = 2,
    rounds: Annotated[int, typer.Option(help="how often each is measured")] = 3,
    per_round: Annotated[int, typer.Option(help="batches a round")] = 8,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Measure in turn and print medians."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        path = write_cache(Path(temporary), count)
        cache = open_cache(path)
        renderer = recorded_renderer(cache.store)
        sides = {"originals": PixelWorkers(cache.samples, count, renderer, workers)}
        sizes, differences = {}, {}
        for codec in VIEW_CODECS:
            pixels = path / "pixels"
            done = render_cache(path, RenderSettings(pixels=codec))
            sizes[codec], differences[codec] = done.bytes_per_view, done.difference
            sides[codec] = PixelWorkers(RenderedViews(open_cache(path)), count, renderer, workers)
            pixels.rename(path / f"pixels-{codec}")
        rates: dict[str, list[float]] = {name: [] for name in sides}
        for number in range(rounds):
            batches = batches_of(cache, per_round, number)
            for name in list(sides)[:: -1 if number % 2 else 1]:
                folder = path / f"pixels-{name}"
                if folder.exists():
                    folder.rename(path / "pixels")
                rates[name].append(rate(sides[name], batches))
                if name != "originals":
                    (path / "pixels").rename(folder)
        reader = ImageReader()
        places = cache.samples.locations(slice(0, 32))
        crops = cache.crops(slice(0, 32), 1)
        pictures = [
            renderer.draw(decode_picture(reader.read(place)), 1, crop)
            for place, crop in zip(places, crops, strict=True)
        ]
    medians = {name: round(statistics.median(of), 1) for name, of in rates.items()}
    report = {
        "ratio": round(medians["jpeg95"] / medians["originals"], 2),
        "images_per_second": medians,
        "bytes_per_view": sizes,
        "pixel_difference": differences,
        "one_minus_cosine": cosines(pictures),
        "processor_ms_per_view": codec_times(pictures),
        "top1_fluent": accuracies(),
        "workers": workers,
        "machine": machine(),
    }
    if as_json:
        print(json.dumps(report))
        return
    for name, value in report.items():
        print(f"{name:18} {value}")


if __name__ == "__main__":
    typer.run(main)
