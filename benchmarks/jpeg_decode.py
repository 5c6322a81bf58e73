"""JPEG decoded at 1/2, 1/4 or 1/8 of its size against plain decoding: how much faster, and how different.

Speed and pixels: pictures with the spectrum of photographs, 500x375 (ImageNet's usual size) and 2000x1500,
shown at 224 pixels. Features and logits: the demo's teacher (48 pixels) over its class names, on the same
pictures and on emoji enlarged to 512x512, which it knows. A margin of 2 decodes at no less than twice the
size that the crop needs. One thread, processor time; medians over the rounds.

    python benchmarks/jpeg_decode.py --json
"""

import io
import json
import statistics
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from open_clip.transform import PreprocessCfg
from PIL import Image
from rich.console import Console

from teacher_cache.classes.vocabulary import load_vocabulary
from teacher_cache.command_settings import ViewPolicy
from teacher_cache.images import ImageReader, decode_image, image_size, index_images
from teacher_cache.teacher.openclip import load_model
from teacher_cache.teacher.teacher import Teacher
from teacher_cache.views import ViewRenderer, draw_crop, enough_pixels, evaluation_crop

DEMO = Path(__file__).parents[1] / "pipeline" / "demo"
PHOTOS = {(500, 375): 32, (2000, 1500): 8}
EMOJI = 64
MARGINS = (1, 2)
POLICY = ViewPolicy(views=2)


def jpeg(image: Image.Image) -> bytes:
    """The picture as a JPEG of quality 90 with halved chroma, as most photographs are."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def photo(seed: int, width: int, height: int) -> bytes:
    """A picture whose amplitudes fall with frequency as those of photographs do."""
    random = np.random.default_rng(seed)
    fy, fx = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
    amplitude = 1 / np.maximum(np.hypot(fx, fy), 1 / max(width, height))
    planes = np.fft.irfft2(
        np.fft.rfft2(random.normal(size=(3, height, width))) * amplitude, s=(height, width)
    )
    planes /= planes.std(axis=(1, 2), keepdims=True)
    mixed = np.tensordot([[1, 0.15, 0.1], [1, -0.05, 0.05], [1, -0.1, -0.2]], planes, axes=1)
    return jpeg(Image.fromarray((120 + 55 * mixed).clip(0, 255).astype(np.uint8).transpose(1, 2, 0)))


def emoji(count: int) -> list[bytes]:
    """Drawings that the demo's teacher can tell apart, enlarged."""
    samples, _ = index_images(
        str(DEMO / "pictures" / "noto.tar"), load_vocabulary(DEMO / "pictures" / "classes.txt")
    )
    reader = ImageReader()
    images = [decode_image(reader.read(place)) for place in samples.locations(slice(0, count))]
    return [jpeg(image.resize((512, 512), Image.Resampling.LANCZOS)) for image in images]


def shown(
    renderer: ViewRenderer, content: bytes, row: int, view: int, margin: int | None
) -> tuple[NDArray[np.uint8], float]:
    """Pixels of one view, decoded plainly without a margin, and the processor's seconds."""
    size = image_size(content)
    crop = evaluation_crop(renderer.preprocess, *size) if view == 0 else draw_crop(POLICY, row, view, *size)
    started = time.process_time()
    at_least = None if margin is None else enough_pixels(crop, *(margin * side for side in renderer.size))
    pixels = renderer.render(decode_image(content, at_least), view, crop)
    return pixels, time.process_time() - started


def compare(contents: list[bytes], renderer: ViewRenderer, view: int, rounds: int) -> dict[str, Any]:
    """Milliseconds a picture (decoding and resizing) and the mean difference of pixels, by margin."""
    found: dict[str, Any] = {}
    pixels = {}
    for margin in (None, *MARGINS):
        times = []
        for _ in range(rounds):
            both = [shown(renderer, content, row, view, margin) for row, content in enumerate(contents)]
            times.append(sum(seconds for _, seconds in both) / len(both))
        pixels[margin] = np.stack([image for image, _ in both])
        found["plain" if margin is None else f"margin {margin}"] = {"ms": 1000 * statistics.median(times)}
    for margin in MARGINS:
        difference = np.abs(pixels[margin].astype(int) - pixels[None])
        found[f"margin {margin}"] |= {
            "speedup": found["plain"]["ms"] / found[f"margin {margin}"]["ms"],
            "pixel_difference": float(difference.mean()),
        }
    return found


def features(contents: list[bytes], teacher: Teacher, classes_CD: torch.Tensor, view: int) -> dict[str, Any]:
    """By margin, how far the teacher's features and logits are from those of plain decoding."""
    scale = teacher.loaded.logit_scale

    def of(margin: int | None) -> torch.Tensor:
        pixels = [
            shown(teacher.renderer, content, row, view, margin)[0] for row, content in enumerate(contents)
        ]
        return teacher.image_features(torch.from_numpy(np.stack(pixels)))

    plain_BD = of(None)
    found: dict[str, Any] = {}
    for margin in MARGINS:
        features_BD = of(margin)
        logits_BC, plain_BC = (scale * f @ classes_CD.T for f in (features_BD, plain_BD))
        p, q = plain_BC.log_softmax(-1), logits_BC.log_softmax(-1)
        found[f"margin {margin}"] = {
            "cosine_distance": float((1 - (features_BD * plain_BD).sum(-1)).mean()),
            "logit_difference_mean": float((logits_BC - plain_BC).abs().mean()),
            "logit_difference_max": float((logits_BC - plain_BC).abs().max()),
            "kl": float((p.exp() * (p - q)).sum(-1).mean()),
            "same_top1": float((logits_BC.argmax(-1) == plain_BC.argmax(-1)).float().mean()),
        }
    return found


def main(
    rounds: Annotated[int, typer.Option(help="how often each is timed")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="print the figures alone, as JSON")] = False,
) -> None:
    """Print milliseconds a picture, the difference of pixels, and that of a teacher's features."""
    torch.set_num_threads(1)
    pictures = {
        f"{width}x{height}": [photo(seed, width, height) for seed in range(count)]
        for (width, height), count in PHOTOS.items()
    }
    renderer = ViewRenderer(PreprocessCfg(size=224))
    teacher = Teacher(load_model(str(DEMO / "teacher")), torch.device("cpu"))
    classes_CD = teacher.class_features(load_vocabulary(DEMO / "pictures" / "classes.txt"))
    views = {"evaluation view": 0, "random crop": 1}
    result = {
        "logit_scale": teacher.loaded.logit_scale,
        "speed": {
            f"{name}, {what}": compare(contents, renderer, view, rounds)
            for name, contents in pictures.items()
            for what, view in views.items()
        },
        "teacher": {
            f"{name}, {what}": features(contents, teacher, classes_CD, view)
            for name, contents in {**pictures, "emoji 512x512": emoji(EMOJI)}.items()
            for what, view in views.items()
        },
    }
    if as_json:
        print(json.dumps(result))
    else:
        Console().print_json(json.dumps(result))


if __name__ == "__main__":
    typer.run(main)
