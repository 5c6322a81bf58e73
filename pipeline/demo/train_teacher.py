"""Train the packaged tiny CLIP: the teacher of the demo.

    python -m pipeline.demo.train_teacher --emoji FOLDER [--steps 3000] [--out pipeline/demo/teacher]

It is trained on two drawing styles (Twemoji, EmojiOne) that no student is trained or tested on, with the
image-to-text half of CLIP's loss over sampled class names. Drawings are few and flat, so they are distorted,
recoloured and blurred; names are put into templates, and words are dropped. Weights are stored in half
precision; unused rows of the token embedding are zero, so that the file is small.

Shapes: B batch, C names of a step, T tokens.
"""

import json
import math
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
import typer
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from student_train.evaluation.datasets import Dataset
from student_train.evaluation.evaluate import Logits, figures
from student_train.evaluation.image_features import encode_images
from student_train.evaluation.models import LoadedFeatureModel
from teacher_cache.classes.vocabulary import load_vocabulary
from teacher_cache.images.decode import decode_image
from teacher_cache.images.index import index_images
from teacher_cache.images.reader import ImageReader
from teacher_cache.teacher.openclip import load_model
from teacher_cache.teacher.teacher import Teacher
from teacher_cache.views import normalise

MODEL: dict[str, Any] = {
    "embed_dim": 128,
    "vision_cfg": {"image_size": 48, "patch_size": 8, "layers": 5, "width": 160, "head_width": 32},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "layers": 4, "width": 96, "heads": 3},
}
PREPROCESS: dict[str, Any] = {"size": 48, "mean": [0.8, 0.75, 0.65], "std": [0.3, 0.3, 0.35]}
STYLES = "{twemoji,emojione}.tar"
UNSEEN_STYLES = ("noto", "noto-v1", "fluent-flat")
TEMPLATES = (
    "a photo of a {}.",
    "a drawing of a {}.",
    "an emoji of a {}.",
    "a picture of the {}.",
    "{}.",
    "{}",
)
MAX_LOGIT_SCALE = 20.0
CANVAS = 96


def load_drawings(source: str, classes: Path) -> tuple[Tensor, Tensor, list[str]]:
    """Return pixels [N, 3, 96, 96] uint8, labels [N] and the class names."""
    vocabulary = load_vocabulary(str(classes))
    samples, _ = index_images(source, vocabulary)
    reader = ImageReader()
    rows = np.arange(len(samples))
    images = [decode_image(reader.read(location)) for location in samples.locations(rows)]
    pixels = [
        np.asarray(Image.fromarray(image).resize((CANVAS, CANVAS))).transpose(2, 0, 1) for image in images
    ]
    labels = torch.from_numpy(samples.labels.astype(np.int64))
    return torch.from_numpy(np.stack(pixels)), labels, list(vocabulary.names)


def distort(pixels: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Move, rotate, bend and recolour drawings [B, 3, 96, 96] uint8 into [B, 3, size, size] in 0..1."""

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(len(pixels), *shape, generator=generator)

    images = pixels.float() / 255
    angle, zoom_x, zoom_y = uniform(-0.3, 0.3), uniform(0.75, 1.3), uniform(0.75, 1.3)
    rows_x = torch.stack([angle.cos() * zoom_x, -angle.sin() * zoom_x, uniform(-0.2, 0.2)], dim=1)
    rows_y = torch.stack([angle.sin() * zoom_y, angle.cos() * zoom_y, uniform(-0.2, 0.2)], dim=1)
    grid = F.affine_grid(
        torch.stack([rows_x, rows_y], dim=1), [len(images), 3, size, size], align_corners=False
    )
    bend = F.interpolate(uniform(-0.1, 0.1, 2, 4, 4), size=size, mode="bicubic", align_corners=True)
    images = F.interpolate(images, scale_factor=0.75, mode="area")  # against aliasing at 48 pixels
    images = F.grid_sample(images, grid + bend.movedim(1, -1), padding_mode="border", align_corners=False)

    mix = torch.eye(3) + uniform(-0.25, 0.25, 3, 3)
    gray = (uniform(0, 1) < 0.25)[:, None, None]
    mix = torch.where(gray, torch.full((3, 3), 1 / 3), mix)
    images = torch.einsum("bij,bjhw->bihw", mix, images - 0.5) + 0.5
    images = (images - 0.5) * uniform(0.6, 1.4, 1, 1, 1) + 0.5 + uniform(-0.2, 0.2, 3, 1, 1)
    blurred = F.avg_pool2d(images, 3, stride=1, padding=1, count_include_pad=False)
    images = torch.where(uniform(0, 1, 1, 1, 1) < 0.3, blurred, images)
    images = images + uniform(0, 0.06, 1, 1, 1) * torch.randn(images.shape, generator=generator)
    hole_x, hole_y = uniform(0, 1, 1, 1), uniform(0, 1, 1, 1)
    axis = torch.linspace(0, 1, size)
    hole = ((axis[None, :, None] - hole_y).abs() < 0.12) & ((axis[None, None, :] - hole_x).abs() < 0.12)
    return torch.where(hole[:, None], uniform(0, 1, 3, 1, 1), images).clamp(0, 1)


def phrases(names: list[str], random: np.random.Generator) -> list[str]:
    """Put each name into a template; sometimes drop a word of a longer name."""
    lines = []
    for name in names:
        words = name.split()
        if len(words) > 1 and random.random() < 0.2:
            del words[random.integers(len(words))]
        lines.append(TEMPLATES[random.integers(len(TEMPLATES))].format(" ".join(words)))
    return lines


def used_tokens(tokenizer: Any, names: list[str]) -> Tensor:
    """Return the token ids of all names, templates, digits and letters, ascending."""
    characters = [chr(c) for c in range(ord("a"), ord("z") + 1)] + [str(d) for d in range(10)]
    texts = [*names, *(template.format("") for template in TEMPLATES), *characters]
    used: Tensor = tokenizer(texts).unique()
    return used


def save_model(model: Any, folder: Path, used: Tensor) -> None:
    """Save weights in half precision with unused token rows set to zero."""
    state = {key: tensor.detach().half().contiguous() for key, tensor in model.state_dict().items()}
    embedding = torch.zeros_like(state["token_embedding.weight"])
    embedding[used] = state["token_embedding.weight"][used]
    state["token_embedding.weight"] = embedding
    save_file(state, folder / "open_clip_model.safetensors")


def main(
    emoji: Annotated[Path, typer.Option(help="folder with one tar shard per style and classes.txt")],
    out: Annotated[Path, typer.Option(help="model folder to write")] = Path(__file__).parent / "teacher",
    steps: Annotated[int, typer.Option(min=1, help="optimizer steps")] = 3000,
    batch: Annotated[int, typer.Option(min=1, help="drawings per step")] = 128,
    names_per_step: Annotated[int, typer.Option(min=1, help="class names per step")] = 256,
    lr: Annotated[float, typer.Option(min=0, help="peak learning rate of AdamW")] = 1e-3,
    seed: Annotated[int, typer.Option(help="initial weights, order, distortions")] = 0,
) -> None:
    """Train, save, and measure zero-shot accuracy on the styles that the teacher was not trained on."""
    out.mkdir(parents=True, exist_ok=True)
    config = {"model_cfg": MODEL, "preprocess_cfg": PREPROCESS}
    (out / "open_clip_config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    pixels, labels, names = load_drawings(str(emoji / STYLES), emoji / "classes.txt")
    torch.manual_seed(seed)
    model: Any = open_clip.create_model(f"local-dir:{out}", load_weights=False).train()
    tokenizer = open_clip.get_tokenizer(f"local-dir:{out}")
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98))
    generator = torch.Generator().manual_seed(seed)
    random = np.random.default_rng(seed)
    started = time.monotonic()

    def prepare(_: int) -> tuple[Tensor, Tensor, Tensor]:
        chosen = torch.randperm(len(pixels), generator=generator)[:batch]
        present = labels[chosen].unique()
        rest = torch.randperm(len(names), generator=generator)
        classes = torch.cat([present, rest[~torch.isin(rest, present)]])[: max(names_per_step, len(present))]
        tokens = tokenizer(phrases([names[i] for i in classes.tolist()], random))
        images = distort(pixels[chosen], MODEL["vision_cfg"]["image_size"], generator)
        targets = torch.searchsorted(present, labels[chosen])
        return normalise_unit(images), tokens, targets

    with ThreadPoolExecutor(1) as ahead:
        following = ahead.submit(prepare, 0)
        for step in range(steps):
            images, tokens, targets = following.result()
            following = ahead.submit(prepare, step + 1)
            warm = min(1.0, (step + 1) / 200)
            for group in optimizer.param_groups:
                group["lr"] = lr * warm * 0.5 * (1 + math.cos(math.pi * step / steps))
            loss = contrast(model, images, tokens, targets)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            with torch.no_grad():
                model.logit_scale.clamp_(max=math.log(MAX_LOGIT_SCALE))
            if (step + 1) % 100 == 0:
                seconds = time.monotonic() - started
                print(f"step {step + 1}/{steps} loss {loss.item():.3f} {seconds:.0f} s", flush=True)
            if (step + 1) % 500 == 0 or step + 1 == steps:
                save_model(model, out, used_tokens(tokenizer, names))
    teacher = Teacher(load_model(str(out)), torch.device("cpu"))
    vocabulary = load_vocabulary(str(emoji / "classes.txt"))
    model = LoadedFeatureModel("teacher", teacher, vocabulary.templates)
    for style in UNSEEN_STYLES:
        samples, notes = index_images(str(emoji / f"{style}.tar"), vocabulary)
        dataset = Dataset(style, samples, vocabulary, np.arange(len(names)), "all", notes)
        found = figures(Logits(model, encode_images([teacher], samples), dataset), None, ["accuracy"])
        print(f"{style}: zero-shot top-1 {100 * found['top1']:.1f} %, top-5 {100 * found['top5']:.1f} %")
    size = (out / "open_clip_model.safetensors").stat().st_size
    print(f"logit scale {teacher.loaded.logit_scale:.1f}, {size} bytes")


def normalise_unit(images: Tensor) -> Tensor:
    """Normalise images in 0..1 with the mean and deviation of the preprocessing."""
    return normalise(images * 255, PREPROCESS["mean"], PREPROCESS["std"])


def contrast(model: Any, images: Tensor, tokens: Tensor, targets: Tensor) -> Tensor:
    """Return the cross entropy of the drawings over the step's names. Texts are cut to the longest one."""
    length = int(tokens.argmax(dim=1).max()) + 1
    x = model.token_embedding(tokens[:, :length]) + model.positional_embedding[:length]
    x = model.ln_final(model.transformer(x, attn_mask=model.attn_mask[:length, :length]))
    text = x[torch.arange(len(x)), tokens.argmax(dim=1)] @ model.text_projection
    image = F.normalize(model.encode_image(images), dim=-1)
    logits = model.logit_scale.exp() * image @ F.normalize(text, dim=-1).T
    return F.cross_entropy(logits, targets, label_smoothing=0.05)


if __name__ == "__main__":
    torch.set_num_threads(os.cpu_count() or 1)
    typer.run(main)
