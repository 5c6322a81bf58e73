"""Image features of a GPU in each precision against those of a CPU in float32, ‖a - b‖ / ‖b‖.

Models have random weights, pictures are random pixels. torch runs convolutions on a GPU in TF32 unless told
otherwise: float32 is measured both ways.

    python benchmarks/image_precision.py --model ViT-B-16
"""

import json
from typing import Annotated

import torch
import typer
from cached_step import random_model
from timing import machine

from teacher_cache.teacher.teacher import Teacher, choose_device


def main(
    model: Annotated[str, typer.Option(help="an open_clip model")] = "ViT-B-32",
    pictures: Annotated[int, typer.Option(help="how many")] = 64,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")] = "auto",
) -> None:
    """Print the differences as JSON."""
    where, cpu = choose_device(device), torch.device("cpu")
    pixels_BCHW = torch.randint(256, (pictures, 3, 224, 224), dtype=torch.uint8)
    exact_BD = Teacher(random_model(model, cpu), cpu).image_features(pixels_BCHW)

    def difference(precision: str, tf32: bool) -> float:
        torch.backends.cudnn.allow_tf32 = tf32
        found_BD = Teacher(random_model(model, where), where, precision).image_features(pixels_BCHW).cpu()
        return float((found_BD - exact_BD).norm() / exact_BD.norm())

    found = {precision: difference(precision, True) for precision in ("fp32", "fp16", "bf16")}
    found["fp32 without TF32"] = difference("fp32", False)
    print(json.dumps({"model": model, **found, "machine": machine()}))


if __name__ == "__main__":
    typer.run(main)
