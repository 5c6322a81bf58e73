"""Train the packaged CLIPs of the demo: a small student, and a larger teacher.

    python -m pipeline.demo.train_clips --emoji FOLDER [--out pipeline/demo/clips] [--only teacher]

Both learn from two drawing styles (Twemoji, EmojiOne) that the demo neither trains prompts on nor tests. The
teacher is a ResNet with twice the student's parameters, which sees more drawings and blends of them.
"""

import os
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from pipeline.demo.clips import pack_weights
from pipeline.demo.small_clip import WEIGHTS, Training, load_pictures, train_clip
from student_train.evaluation.datasets import Dataset
from student_train.evaluation.evaluate import Logits, figures
from student_train.evaluation.image_features import encode_images
from student_train.evaluation.models import LoadedFeatureModel
from teacher_cache.classes.vocabulary import load_vocabulary
from teacher_cache.images.index import index_images
from teacher_cache.teacher.openclip import load_model
from teacher_cache.teacher.teacher import Teacher

STYLES = "{twemoji,emojione}.tar"
UNSEEN_STYLES = ("noto", "noto-v1", "fluent-flat")
SIDE = 96
TEMPLATES = (
    "a photo of a {}.",
    "a drawing of a {}.",
    "an emoji of a {}.",
    "a picture of the {}.",
    "{}.",
    "{}",
)
MEAN, STD = [0.8, 0.75, 0.65], [0.3, 0.3, 0.35]
TEXT: dict[str, Any] = {"context_length": 77, "vocab_size": 49408, "layers": 4}
CLIPS = {
    "student": Training(
        model={
            "embed_dim": 128,
            "vision_cfg": {"image_size": 48, "patch_size": 8, "layers": 5, "width": 160, "head_width": 32},
            "text_cfg": {**TEXT, "width": 96, "heads": 3},
        },
        preprocess={"size": 48, "mean": MEAN, "std": STD},
        templates=TEMPLATES,
        steps=3000,
    ),
    "teacher": Training(
        model={
            "embed_dim": 128,
            "vision_cfg": {"image_size": 64, "layers": [1, 2, 2, 1], "width": 24},
            "text_cfg": {**TEXT, "width": 128, "heads": 4},
        },
        preprocess={"size": 64, "mean": MEAN, "std": STD},
        templates=TEMPLATES,
        steps=5000,
        mixup=0.3,
    ),
}


def main(
    emoji: Annotated[Path, typer.Option(help="folder with one tar shard per style and classes.txt")],
    out: Annotated[Path, typer.Option(help="folder of the model folders")] = Path(__file__).parent / "clips",
    only: Annotated[str | None, typer.Option(help=f"one of {', '.join(CLIPS)} [default: all]")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="fewer steps, for a try")] = None,
    bf16: Annotated[bool, typer.Option(help="products in bfloat16")] = True,
) -> None:
    """Train the models, measure them on styles that they were not trained on, and compress the weights."""
    pixels, labels, names = load_pictures(str(emoji / STYLES), str(emoji / "classes.txt"), SIDE)
    for name in [only] if only else CLIPS:
        training = CLIPS[name]
        if steps is not None:
            training = Training(**{**vars(training), "steps": steps})
        train_clip(out / name, training, pixels, labels, names, bf16)
        print_zero_shot(out / name, emoji)
        pack_weights(out / name / WEIGHTS)


def print_zero_shot(folder: Path, emoji: Path) -> None:
    """Print zero-shot accuracy on the styles that the model was not trained on."""
    teacher = Teacher(load_model(str(folder)), torch.device("cpu"))
    vocabulary = load_vocabulary(str(emoji / "classes.txt"))
    model = LoadedFeatureModel(folder.name, teacher, vocabulary.templates)
    for style in UNSEEN_STYLES:
        samples, notes = index_images(str(emoji / f"{style}.tar"), vocabulary)
        dataset = Dataset(style, samples, vocabulary, np.arange(len(vocabulary.names)), "all", notes)
        found = figures(Logits(model, encode_images([teacher], samples), dataset), None, ["accuracy"])
        print(f"{style}: zero-shot top-1 {100 * found['top1']:.1f} %, top-5 {100 * found['top5']:.1f} %")
    print(f"logit scale {teacher.loaded.logit_scale:.1f}")


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1))
    typer.run(main)
