"""Train the CLIPs of the study on photographs: a small student, and a larger teacher.

    python benchmarks/photos_clips.py PHOTOS --out models/photos [--only student]

PHOTOS has `clip-train.parquet` and `classes.txt`: 150 photographs of 32 × 32 pixels for each of 100 names.
The student is a vision transformer of 6 blocks, the teacher a ResNet with 2.6 times the parameters in its
image tower. Neither sees a picture of `prompt-train.parquet` or `test.parquet`.
"""

import os
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from pipeline.demo.small_clip import Training, load_pictures, train_clip

SIDE = 32
TEMPLATES = ("a photo of a {}.", "a small photo of a {}.", "a picture of the {}.", "{}.", "{}")
MEAN, STD = [0.5, 0.48, 0.44], [0.27, 0.26, 0.27]


TEXT = {"context_length": 77, "vocab_size": 49408, "layers": 4, "width": 64, "heads": 2}
COMMON: dict[str, Any] = {
    "templates": TEMPLATES,
    "names_per_step": 100,
    "distortion": 0.4,
    "flip": True,
    "mixup": 0.3,
}
CLIPS = {
    "student": Training(
        model={
            "embed_dim": 128,
            "vision_cfg": {"image_size": 32, "patch_size": 8, "layers": 6, "width": 128, "head_width": 32},
            "text_cfg": TEXT,
        },
        preprocess={"size": 32, "mean": MEAN, "std": STD},
        steps=5000,
        **COMMON,
    ),
    "teacher": Training(
        model={
            "embed_dim": 128,
            "vision_cfg": {"image_size": 64, "layers": [1, 2, 2, 1], "width": 24},
            "text_cfg": TEXT,
        },
        preprocess={"size": 64, "mean": MEAN, "std": STD},
        steps=5000,
        **COMMON,
    ),
}


def main(
    photos: Annotated[Path, typer.Argument(help="folder with clip-train.parquet and classes.txt")],
    out: Annotated[Path, typer.Option(help="folder of the model folders")] = Path("models/photos"),
    only: Annotated[str | None, typer.Option(help=f"one of {', '.join(CLIPS)} [default: all]")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="fewer steps, for a try")] = None,
    bf16: Annotated[bool, typer.Option(help="products in bfloat16")] = True,
) -> None:
    """Train the models."""
    if only is not None and only not in CLIPS:
        raise typer.BadParameter(f"--only {only}: one of {', '.join(CLIPS)}")
    pixels, labels, names = load_pictures(
        str(photos / "clip-train.parquet"), str(photos / "classes.txt"), SIDE
    )
    for name in [only] if only else CLIPS:
        training = CLIPS[name]
        if steps is not None:
            training = Training(**{**vars(training), "steps": steps})
        train_clip(out / name, training, pixels, labels, names, bf16)


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1))
    typer.run(main)
