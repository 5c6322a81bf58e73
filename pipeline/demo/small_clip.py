"""Train a small CLIP from pictures with class names: for models that are packaged, or that a study needs.

The image-to-text half of CLIP's loss, over class names in templates. Pictures are few, so they are distorted,
recoloured, blurred and mixed; words of names are dropped. Weights are stored in half precision, and rows of
the token embedding that no text uses are zero, so that the file compresses well.

Shapes: B batch, C names of a step, T tokens.
"""

import json
import math
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from teacher_cache.classes.vocabulary import load_vocabulary
from teacher_cache.images.decode import decode_image
from teacher_cache.images.index import index_images
from teacher_cache.images.reader import ImageReader
from teacher_cache.views import normalise

WEIGHTS = "open_clip_model.safetensors"
CONFIG = "open_clip_config.json"
MAX_LOGIT_SCALE = 20.0
LABEL_SMOOTHING = 0.05


@dataclass(frozen=True)
class Training:
    """How a small CLIP is trained.

    Attributes:
        model: open_clip's `model_cfg`.
        preprocess: open_clip's `preprocess_cfg`.
        templates: texts with `{}` for the class name.
        names_per_step: names that a step's pictures are compared with, at most all.
        lr: peak learning rate of AdamW; warms up, then falls by a cosine.
        distortion: strength of the distortions of pictures; 1 is for drawings, which are few and flat.
        flip: whether pictures are mirrored; not where left and right have names.
        mixup: the share of steps whose pictures are blends of two.
    """

    model: dict[str, Any]
    preprocess: dict[str, Any]
    templates: tuple[str, ...]
    steps: int
    batch: int = 128
    names_per_step: int = 256
    lr: float = 1e-3
    weight_decay: float = 0.1
    distortion: float = 1.0
    flip: bool = False
    mixup: float = 0.0
    seed: int = 0


def load_pictures(source: str, classes: str, size: int) -> tuple[Tensor, Tensor, list[str]]:
    """Return pixels [N, 3, size, size] uint8, labels [N] and the class names."""
    vocabulary = load_vocabulary(classes)
    samples, _ = index_images(source, vocabulary)
    reader = ImageReader()
    rows = np.arange(len(samples))
    images = [decode_image(reader.read(location)) for location in samples.locations(rows)]
    pixels = [np.asarray(Image.fromarray(image).resize((size, size))).transpose(2, 0, 1) for image in images]
    labels = torch.from_numpy(samples.labels.astype(np.int64))
    return torch.from_numpy(np.stack(pixels)), labels, list(vocabulary.names)


def distort(pixels: Tensor, size: int, training: Training, generator: torch.Generator) -> Tensor:
    """Move, rotate, bend and recolour pictures [B, 3, H, H] uint8 into [B, 3, size, size] in 0..1."""
    strength = training.distortion

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(len(pixels), *shape, generator=generator)

    def around(middle: float, most: float, *shape: int) -> Tensor:
        return uniform(middle - strength * most, middle + strength * most, *shape)

    def chosen(share: float, *shape: int) -> Tensor:
        return uniform(0, 1, *shape) < strength * share

    images = pixels.float() / 255
    angle = around(0, 0.3)
    zoom_x, zoom_y = (uniform(1 - 0.25 * strength, 1 + 0.3 * strength) for _ in range(2))
    if training.flip:
        zoom_x = zoom_x * torch.where(uniform(0, 1) < 0.5, -1.0, 1.0)
    rows_x = torch.stack([angle.cos() * zoom_x, -angle.sin() * zoom_y, around(0, 0.2)], dim=1)
    rows_y = torch.stack([angle.sin() * zoom_x, angle.cos() * zoom_y, around(0, 0.2)], dim=1)
    grid = F.affine_grid(
        torch.stack([rows_x, rows_y], dim=1), [len(images), 3, size, size], align_corners=False
    )
    bend = F.interpolate(around(0, 0.1, 2, 4, 4), size=size, mode="bicubic", align_corners=True)
    if pixels.shape[-1] > size:  # against aliasing
        images = F.interpolate(images, size=(pixels.shape[-1] + size) // 2, mode="area")
    images = F.grid_sample(images, grid + bend.movedim(1, -1), padding_mode="border", align_corners=False)

    mix = torch.eye(3) + around(0, 0.25, 3, 3)
    mix = torch.where(chosen(0.25, 1, 1), torch.full((3, 3), 1 / 3), mix)  # grey
    images = torch.einsum("bij,bjhw->bihw", mix, images - 0.5) + 0.5
    images = (images - 0.5) * around(1, 0.4, 1, 1, 1) + 0.5 + around(0, 0.2, 3, 1, 1)
    blurred = F.avg_pool2d(images, 3, stride=1, padding=1, count_include_pad=False)
    images = torch.where(chosen(0.3, 1, 1, 1), blurred, images)
    noise = torch.randn(images.shape, generator=generator)
    images = images + strength * uniform(0, 0.06, 1, 1, 1) * noise
    hole_x, hole_y = uniform(0, 1, 1, 1), uniform(0, 1, 1, 1)
    axis = torch.linspace(0, 1, size)
    hole = ((axis[None, :, None] - hole_y).abs() < 0.12) & ((axis[None, None, :] - hole_x).abs() < 0.12)
    return torch.where(hole[:, None], uniform(0, 1, 3, 1, 1), images).clamp(0, 1)


def phrases(names: Sequence[str], templates: Sequence[str], random: np.random.Generator) -> list[str]:
    """Put each name into a template; sometimes drop a word of a longer name."""
    lines = []
    for name in names:
        words = name.split()
        if len(words) > 1 and random.random() < 0.2:
            del words[int(random.integers(len(words)))]
        lines.append(templates[int(random.integers(len(templates)))].format(" ".join(words)))
    return lines


def used_tokens(tokenizer: Any, names: Sequence[str], templates: Sequence[str]) -> Tensor:
    """Return the token ids of all names, templates, digits and letters, ascending."""
    characters = [chr(c) for c in range(ord("a"), ord("z") + 1)] + [str(d) for d in range(10)]
    texts = [*names, *(template.format("") for template in templates), *characters]
    used: Tensor = tokenizer(texts).unique()
    return used


def save_model(model: Any, folder: Path, used: Tensor, rows: Tensor) -> None:
    """Save weights in half precision, with the rows of the used tokens and zeros for other tokens."""
    state = {key: tensor.detach().half().contiguous() for key, tensor in model.state_dict().items()}
    embedding = torch.zeros_like(state["token_embedding.weight"])
    embedding[used] = rows.detach().half()
    state["token_embedding.weight"] = embedding
    save_file(state, folder / WEIGHTS)


class Batches:
    """Distorted pictures, tokens of names, and where each picture's name is among them."""

    def __init__(
        self, training: Training, tokenizer: Any, pixels: Tensor, labels: Tensor, names: list[str]
    ) -> None:
        self._training, self._tokenizer = training, tokenizer
        self._pixels, self._labels, self._names = pixels, labels, names
        self._generator = torch.Generator().manual_seed(training.seed)
        self._random = np.random.default_rng(training.seed)

    def next(self) -> tuple[Tensor, Tensor, Tensor, float]:
        """Return images [B, 3, S, S], tokens [C, T], targets [B, 2] and the weight of the first target."""
        training, generator = self._training, self._generator
        chosen = torch.randperm(len(self._pixels), generator=generator)[: training.batch]
        present = self._labels[chosen].unique()
        rest = torch.randperm(len(self._names), generator=generator)
        classes = torch.cat([present, rest[~torch.isin(rest, present)]])
        classes = classes[: max(training.names_per_step, len(present))]
        tokens = self._tokenizer(
            phrases([self._names[i] for i in classes.tolist()], training.templates, self._random)
        )
        images = distort(self._pixels[chosen], training.preprocess["size"], training, generator)
        targets = torch.searchsorted(present, self._labels[chosen])
        weight = 1.0
        if self._random.random() < training.mixup:
            weight = float(self._random.beta(0.8, 0.8))
            images = weight * images + (1 - weight) * images.flip(0)
        images = normalise(images * 255, training.preprocess["mean"], training.preprocess["std"])
        return images, tokens, torch.stack([targets, targets.flip(0)], dim=1), weight


def train_clip(
    out: Path, training: Training, pixels: Tensor, labels: Tensor, names: list[str], bf16: bool
) -> None:
    """Train from random weights and write an open_clip model folder; prints a line every 100 steps.

    Args:
        pixels: [N, 3, H, H] uint8.
        labels: [N], indices of `names`.
        bf16: compute products in bfloat16, which is faster on processors that have such instructions.
    """
    out.mkdir(parents=True, exist_ok=True)
    config = {"model_cfg": training.model, "preprocess_cfg": training.preprocess}
    (out / CONFIG).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    torch.manual_seed(training.seed)
    model: Any = open_clip.create_model(f"local-dir:{out}", load_weights=False).train()
    model = model.to(memory_format=torch.channels_last)
    tokenizer = open_clip.get_tokenizer(f"local-dir:{out}")
    # only the rows of tokens that occur are trained: gradients of all would take longer than the blocks
    used = used_tokens(tokenizer, names, training.templates)
    rows = torch.nn.Parameter(model.token_embedding.weight.detach()[used])
    model.token_embedding.weight.requires_grad_(False)
    learnt = [rows, *(p for p in model.parameters() if p.requires_grad)]
    decayed = [p for p in learnt if p.ndim >= 2]
    others = [p for p in learnt if p.ndim < 2]
    groups = [
        {"params": decayed, "weight_decay": training.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=training.lr, betas=(0.9, 0.98))
    source = Batches(training, tokenizer, pixels, labels, names)
    started, steps = time.monotonic(), training.steps
    with ThreadPoolExecutor(1) as ahead:
        following = ahead.submit(source.next)
        for step in range(steps):
            images, tokens, targets, weight = following.result()
            following = ahead.submit(source.next)
            warm = min(1.0, (step + 1) / 200)
            for group in optimizer.param_groups:
                group["lr"] = training.lr * warm * 0.5 * (1 + math.cos(math.pi * step / steps))
            # in bfloat16, the CPU's own attention kernel has a backward pass that is slower than the rest
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16), sdpa_kernel(SDPBackend.MATH):
                logits = similarity(
                    model, images, tokens, F.embedding(torch.searchsorted(used, tokens), rows)
                )
            loss = blended_cross_entropy(logits.float(), targets, weight)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(learnt, 1.0)
            optimizer.step()
            with torch.no_grad():
                model.logit_scale.clamp_(max=math.log(MAX_LOGIT_SCALE))
            if (step + 1) % 100 == 0:
                seconds = time.monotonic() - started
                print(f"step {step + 1}/{steps} loss {loss.item():.3f} {seconds:.0f} s", flush=True)
            if (step + 1) % 500 == 0 or step + 1 == steps:
                save_model(model, out, used, rows)


def similarity(model: Any, images: Tensor, tokens: Tensor, embedded: Tensor) -> Tensor:
    """Return scaled cosines [B, C] of images and texts.

    Args:
        tokens: [C, T]; texts are cut to the longest one.
        embedded: the tokens' embeddings [C, T, W].
    """
    length = int(tokens.argmax(dim=1).max()) + 1
    x = embedded[:, :length] + model.positional_embedding[:length]
    x = model.ln_final(model.transformer(x, attn_mask=model.attn_mask[:length, :length]))
    text = x[torch.arange(len(x)), tokens.argmax(dim=1)] @ model.text_projection
    image = F.normalize(model.encode_image(images).float(), dim=-1)
    logits: Tensor = model.logit_scale.exp() * image @ F.normalize(text.float(), dim=-1).T
    return logits


def blended_cross_entropy(logits: Tensor, targets: Tensor, weight: float) -> Tensor:
    """Return the cross entropy with two targets [B, 2], the first weighted with `weight`."""
    first, second = (
        F.cross_entropy(logits, targets_B, label_smoothing=LABEL_SMOOTHING) for targets_B in targets.T
    )
    return weight * first + (1 - weight) * second
