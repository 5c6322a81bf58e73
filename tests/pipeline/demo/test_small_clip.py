"""A small CLIP learns its names, and is stored as an open_clip model folder."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pipeline.demo.small_clip import (
    Batches,
    Training,
    blended_cross_entropy,
    distort,
    phrases,
    train_clip,
    used_tokens,
)
from teacher_cache.teacher.openclip import load_model

NAMES = ["red", "green", "blue", "yellow"]
TRAINING = Training(
    model={
        "embed_dim": 32,
        "vision_cfg": {"image_size": 16, "patch_size": 8, "layers": 2, "width": 32, "head_width": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "layers": 2, "width": 32, "heads": 2},
    },
    preprocess={"size": 16, "mean": [0.5] * 3, "std": [0.5] * 3},
    templates=("a photo of {}.", "{}"),
    steps=60,
    batch=32,
    names_per_step=4,
    lr=3e-3,
    mixup=0.3,
)


def coloured(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels [N, 3, 32, 32] of one colour with noise, and labels [N]."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 4
    colours = torch.tensor([[220, 20, 20], [20, 200, 20], [20, 20, 220], [220, 220, 20]])
    noise = torch.randint(-20, 20, (count, 3, 32, 32), generator=generator)
    pixels = (colours[labels][:, :, None, None] + noise).clamp(0, 255)
    return pixels.to(torch.uint8), labels


@pytest.mark.parametrize("bf16", [False, True])
def test_it_learns_names_that_its_stored_form_knows(bf16: bool, tmp_path: Path) -> None:
    pixels, labels = coloured(64)
    train_clip(tmp_path, TRAINING, pixels, labels, NAMES, bf16)
    loaded = load_model(str(tmp_path))
    tokens = loaded.tokenizer([f"a photo of {name}." for name in NAMES])
    seen, truth = coloured(40, seed=1)
    small = F.interpolate(seen.float() / 255, size=16, mode="area")
    with torch.no_grad():
        image = F.normalize(loaded.model.encode_image((small - 0.5) / 0.5), dim=-1)
        text = F.normalize(loaded.model.encode_text(tokens), dim=-1)
    hits = ((image @ text.T).argmax(dim=1) == truth).float().mean()
    assert hits > 0.7, "guessing gives 0.25"
    used = used_tokens(loaded.tokenizer, NAMES, TRAINING.templates)
    is_zero = (loaded.model.token_embedding.weight == 0).all(dim=1)
    assert not is_zero[used].any()
    assert is_zero.sum() == len(is_zero) - len(used)


def test_targets_are_the_names_of_the_pictures() -> None:
    """Also when fewer names are compared than there are, and of both pictures of a blend."""
    pixels, labels = coloured(64)
    names = [*NAMES, *(f"name {i}" for i in range(20))]
    texts: list[str] = []

    def tokenizer(lines: list[str]) -> torch.Tensor:
        texts[:] = lines
        return torch.zeros(len(lines), 77, dtype=torch.long)

    training = replace(TRAINING, batch=8, names_per_step=10, templates=("{}",), mixup=1.0)
    source = Batches(training, tokenizer, pixels, labels, names)
    images, tokens, targets, weight = source.next()
    chosen = torch.randperm(64, generator=torch.Generator().manual_seed(training.seed))[:8]
    assert [texts[i] for i in targets[:, 0].tolist()] == [NAMES[i] for i in labels[chosen].tolist()]
    assert torch.equal(targets[:, 1], targets[:, 0].flip(0))
    assert len(tokens) == 10
    assert images.shape == (8, 3, 16, 16)
    assert 0 <= weight <= 1


def test_a_blend_has_both_losses() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    targets = torch.tensor([[0, 1], [1, 0]])
    both = [F.cross_entropy(logits, targets[:, i], label_smoothing=0.05) for i in (0, 1)]
    assert blended_cross_entropy(logits, targets, 0.3) == pytest.approx(float(0.3 * both[0] + 0.7 * both[1]))
    assert blended_cross_entropy(logits, targets, 1.0) == pytest.approx(float(both[0]))


def test_distortions_keep_the_picture_and_mirror_only_on_request() -> None:
    left = torch.zeros(64, 3, 32, 32, dtype=torch.uint8)
    left[:, :, :, :16] = 255
    means = []
    for flip in (False, True):
        images = distort(left, 16, replace(TRAINING, flip=flip), torch.Generator().manual_seed(0))
        assert images.shape == (64, 3, 16, 16)
        assert images.min() >= 0
        assert images.max() <= 1
        means.append((images[..., :8].mean((1, 2, 3)) > images[..., 8:].mean((1, 2, 3))).float().mean())
    assert means[0] > 0.9
    assert 0.2 < means[1] < 0.8


def test_words_are_dropped_only_from_longer_names() -> None:
    lines = phrases(["cat", "red apple"] * 200, ("{}",), np.random.default_rng(0))
    assert set(lines[::2]) == {"cat"}
    assert set(lines[1::2]) == {"red apple", "red", "apple"}


def test_the_strength_of_distortions_is_a_setting() -> None:
    pixels, _ = coloured(64)
    plain = F.interpolate(pixels.float() / 255, size=16, mode="area")
    changes = []
    for strength in (0.0, 0.4, 1.0):
        training = replace(TRAINING, distortion=strength)
        images = distort(pixels, 16, training, torch.Generator().manual_seed(0))
        changes.append((images - plain).abs().median())
    assert changes[0] < 0.02
    assert changes[0] < changes[1] < changes[2]
