"""The fast towers against the plain ones of `reference.py`, and against open_clip's own."""

import pytest
import torch
from torch import Tensor

from student_train.model import packing, towers
from student_train.model.prompts import Prompts, unused_query_blocks
from student_train.model.settings import PromptSettings
from student_train.model.student import PromptedCLIP
from student_train.model.text_plan import TextPlan
from student_train.training.losses import StepLogits, TotalLoss
from student_train.training.settings import TrainSettings
from teacher_cache.encodings import ClassHead
from teacher_cache.errors import UnsupportedTowerError, UsageError
from tests.models import loaded
from tests.pairwise import pairwise_cases
from tests.student_train import reference

BLOCKS = 3
NAMES = ["cat", "ox", "grand piano", "giant panda bear of the zoo", "emu", "1st place medal", "tie"]
STRUCTURES, CARRIES = ("qkv", "shared"), ("replace", "residual")
CONFIGS = ("gelu", "quickgelu", "custom", "attn-pool")
# every two of model, structure, carry and depth meet
CASES = pytest.mark.parametrize(
    ("config", "structure", "carry", "depth"),
    pairwise_cases(CONFIGS, STRUCTURES, CARRIES, (1, 2, BLOCKS)),
)


def student_of(config: str, towers: str, **settings: object) -> PromptedCLIP:
    """A student whose prompts are all different and of the size of real ones."""
    student = PromptedCLIP(loaded(config), PromptSettings(towers=towers, **settings), seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in student.prompts.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return student


def own_and_start(prompts: Prompts) -> tuple[reference.Own, Tensor | None]:
    return (prompts.q, prompts.k, prompts.v), prompts.start


def gradients(prompts: Prompts, features: Tensor) -> list[Tensor]:
    weights = torch.randn(features.shape, generator=torch.Generator().manual_seed(3))
    prompts.zero_grad(set_to_none=True)
    (features * weights).sum().backward()
    return [p.grad.clone() for p in prompts.parameters() if p.grad is not None]


def assert_equal(prompts: Prompts, fast: Tensor, plain: Tensor) -> None:
    """Forward to 1e-5, gradients to 1e-4 relative, of both towers' bars in the design."""
    assert plain.std(dim=0).mean() > 0.1, "features that hardly differ would prove nothing"
    torch.testing.assert_close(fast, plain, atol=1e-5 * plain.abs().max().item(), rtol=0)
    ours, theirs = gradients(prompts, fast), gradients(prompts, plain)
    assert len(ours) == len(theirs) == (1 if prompts.q is prompts.k else 3)
    for a, b in zip(ours, theirs, strict=True):
        assert (a - b).norm() <= 1e-4 * b.norm()  # dead query prompts: both exactly zero
    assert theirs[-1].norm() > 0


@CASES
def test_text_equals_plain(config: str, structure: str, carry: str, depth: int) -> None:
    student = student_of(
        config, "text", prompt_structure=structure, carry=carry, prompt_depth=depth, prompt_length=5
    )
    prompts, tokens = student.tower_prompts("text"), student.tokenize_names(NAMES)
    assert prompts is not None
    plain = reference.text_features(student.clip, *own_and_start(prompts), tokens)
    assert_equal(prompts, student.encode_text(tokens), plain)


@CASES
def test_vision_equals_plain(config: str, structure: str, carry: str, depth: int) -> None:
    student = student_of(
        config, "vision", prompt_structure=structure, carry=carry, prompt_depth=depth, prompt_length=3
    )
    prompts = student.tower_prompts("vision")
    assert prompts is not None
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    plain = reference.image_features(student.clip, *own_and_start(prompts), images)
    assert_equal(prompts, student.encode_image(images), plain)


FIRST = ["red", "sea", "giant", "grand piano", "old", "emu"]
MANY = [f"{a} {b}" for a in FIRST for b in ("cat", "sea lion", "tie", "giant panda bear", "house of cards")]


@pytest.mark.parametrize("carry", CARRIES)
@pytest.mark.parametrize(("recomputed", "segment"), [(0, 0), (2, 1), (4, 1), (4, 2), (3, BLOCKS)])
def test_chunks_packs_and_recomputation_change_nothing(
    carry: str, recomputed: int, segment: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    student = student_of("gelu", "text", carry=carry, prompt_depth=2)
    prompts, tokens = student.tower_prompts("text"), student.tokenize_names([*MANY, *FIRST, *MANY[:3]])
    assert prompts is not None
    plain = reference.text_features(student.clip, *own_and_start(prompts), tokens)
    monkeypatch.setattr(packing, "PACK_ROWS", 8)
    assert len(student.pack_texts(tokens).ids) > 4
    plan = TextPlan(chunks=4, recomputed=recomputed, segment=segment, peak_bytes=0)
    assert_equal(prompts, towers.encode_text(towers_parts(student), prompts, tokens, plan), plain)


@pytest.mark.parametrize("plan", [TextPlan(1, 0, 0, 0), TextPlan(3, 0, 0, 0), TextPlan(3, 2, 1, 0)])
def test_full_softmax_in_pieces_has_the_gradient_of_the_whole(
    plan: TextPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hard and soft loss over all classes: in chunks, recomputed or not, against 77 tokens in one piece."""
    student = student_of("quickgelu", "text", prompt_depth=BLOCKS)
    prompts, tokens = student.tower_prompts("text"), student.tokenize_names(MANY)
    assert prompts is not None
    generator = torch.Generator().manual_seed(5)
    image_features, teacher_logits = torch.randn(8, 48, generator=generator), torch.randn(8, len(MANY))
    targets = torch.randint(len(MANY), (8,), generator=generator)

    def losses_gradients(features: Tensor) -> list[Tensor]:
        logits = (
            20 * torch.nn.functional.normalize(image_features) @ torch.nn.functional.normalize(features).T
        )
        prompts.zero_grad(set_to_none=True)
        TotalLoss(TrainSettings(cache="none", temperature=2.0))(StepLogits(logits, teacher_logits, targets))[
            "loss"
        ].backward()
        return [p.grad.clone() for p in prompts.parameters() if p.grad is not None]

    whole = losses_gradients(reference.text_features(student.clip, *own_and_start(prompts), tokens))
    monkeypatch.setattr(packing, "PACK_ROWS", 8)
    pieces = losses_gradients(towers.encode_text(towers_parts(student), prompts, tokens, plan))
    for ours, theirs in zip(pieces, whole, strict=True):
        assert (ours - theirs).norm() <= 1e-4 * theirs.norm()
    assert whole[-1].norm() > 1e-3


def test_texts_are_prepared_once_and_encoded_again() -> None:
    student = student_of("gelu", "text", prompt_depth=2)
    tokens = student.tokenize_names(NAMES)
    packed = student.pack_texts(tokens)
    before = student.encode_text(packed)
    assert torch.equal(before, student.encode_text(tokens))
    with torch.no_grad():
        for parameter in student.prompts.parameters():
            parameter.add_(0.1)
    assert not torch.equal(before, student.encode_text(packed))
    assert torch.equal(student.encode_text(packed), student.encode_text(tokens))


def test_texts_prepared_for_other_prompts_are_refused() -> None:
    packed = student_of("gelu", "text").pack_texts(loaded("gelu").tokenizer(NAMES))
    with pytest.raises(UsageError, match="packed for 4 prompts, but the tower has 5"):
        student_of("gelu", "text", prompt_length=5).encode_text(packed)


@pytest.mark.parametrize(
    ("dtype", "logit_bar", "loss_bar", "gradient_bar"),
    [(torch.bfloat16, 0.8, 0.02, 0.25), (torch.float16, 0.1, 0.002, 0.03)],
)
@pytest.mark.parametrize("config", ["quickgelu", "custom"])
def test_half_precision_costs_this_much(
    config: str, dtype: torch.dtype, logit_bar: float, loss_bar: float, gradient_bar: float
) -> None:
    """Under autocast against float32, at logit scale 100; bars are 1.5 to 3 times what was measured."""
    student = student_of(config, "text", prompt_depth=2)
    prompts, tokens = student.tower_prompts("text"), student.tokenize_names(MANY)
    assert prompts is not None
    normalize = torch.nn.functional.normalize
    generator = torch.Generator().manual_seed(6)
    with torch.no_grad():
        classes = student.encode_text(tokens, normalize=True)
    targets = torch.randint(len(MANY), (32,), generator=generator)
    noise, more_noise = normalize(torch.randn(2, 32, 48, generator=generator), dim=-1)
    images = normalize(classes[targets] + 0.5 * noise)
    teacher_logits = 100 * normalize(classes[targets] + 0.5 * more_noise) @ classes.T

    def step(half: bool) -> tuple[Tensor, Tensor, Tensor]:
        with torch.autocast("cpu", dtype=dtype, enabled=half):
            features = student.encode_text(tokens, normalize=True)
        assert features.isfinite().all()
        logits = ClassHead(features.float(), 100.0).logits(images)
        loss = TotalLoss(TrainSettings(cache="none"))(StepLogits(logits, teacher_logits, targets))["loss"]
        prompts.zero_grad(set_to_none=True)
        loss.backward()
        return logits, loss, torch.cat([p.grad.flatten() for p in prompts.parameters() if p.grad is not None])

    (logits, loss, gradient), (half_logits, half_loss, half_gradient) = step(False), step(True)
    errors = (half_logits - logits).abs().max(), (half_loss - loss).abs(), (half_gradient - gradient).norm()
    assert errors[0] <= logit_bar
    assert errors[1] <= loss_bar
    assert errors[2] <= gradient_bar * gradient.norm()
    assert errors[0] > 1e-4, "that was float32"


def towers_parts(student: PromptedCLIP) -> towers.TextParts:
    from teacher_cache.teacher.text_towers import text_parts

    return text_parts(student.clip)


@pytest.mark.parametrize("config", CONFIGS)
def test_depth_0_is_open_clip(config: str) -> None:
    student = PromptedCLIP(loaded(config), PromptSettings(prompt_depth=0))
    assert not list(student.prompts.parameters())
    tokens = loaded(config).tokenizer([f"a photo of a {name}" for name in NAMES])
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    own = loaded(config).model
    fast_text = towers.encode_text(towers_parts(student), None, tokens)
    fast_image = towers.encode_image(own.visual, None, images)
    for ours, theirs in [
        (fast_text, own.encode_text(tokens)),
        (student.encode_text(tokens, normalize=True), own.encode_text(tokens, normalize=True)),
        (fast_image, own.encode_image(images)),
        (student.encode_image(images, normalize=True), own.encode_image(images, normalize=True)),
    ]:
        torch.testing.assert_close(ours, theirs, atol=1e-5 * theirs.abs().max().item(), rtol=0)


def test_zero_prompts_are_no_identity() -> None:
    student = PromptedCLIP(loaded("gelu"), PromptSettings(prompt_depth=1))
    with torch.no_grad():
        for parameter in student.prompts.parameters():
            parameter.zero_()
    images = torch.randn(3, 3, 32, 32)
    assert (student.encode_image(images) - student.clip.encode_image(images)).abs().max() > 1e-3


@pytest.mark.parametrize("carry", CARRIES)
@pytest.mark.parametrize("depth", [1, 2, BLOCKS])
def test_equal_qkv_prompts_are_shared_prompts(carry: str, depth: int) -> None:
    shared = student_of("quickgelu", "both", prompt_structure="shared", carry=carry, prompt_depth=depth)
    qkv = PromptedCLIP(
        loaded("quickgelu"), shared.settings.model_copy(update={"prompt_structure": "qkv"}), seed=1
    )
    with torch.no_grad():
        for tower in ("text", "vision"):
            for own in ("q", "k", "v"):
                getattr(qkv.prompts[tower], own).copy_(shared.prompts[tower].q)
    images = torch.randn(3, 3, 32, 32)
    tokens = shared.tokenize_names(NAMES)
    assert torch.equal(shared.encode_image(images), qkv.encode_image(images))
    assert torch.equal(shared.encode_text(tokens), qkv.encode_text(tokens))


def test_both_structures_start_as_the_same_function() -> None:
    images = torch.randn(3, 3, 32, 32)
    found = []
    for structure in STRUCTURES:
        student = PromptedCLIP(loaded("gelu"), PromptSettings(prompt_structure=structure), seed=4)
        found.append((student.encode_image(images), student.class_features(NAMES)))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


@pytest.mark.parametrize("carry", CARRIES)
def test_text_starts_as_clip_with_the_first_words(carry: str) -> None:
    """J = 1, n = 4: CoOp's start is CLIP's own reading of 'a photo of a NAME.'"""
    student = PromptedCLIP(loaded("gelu"), PromptSettings(towers="text", prompt_depth=1, carry=carry))
    tokens = loaded("gelu").tokenizer([f"a photo of a {name}." for name in NAMES])
    theirs = loaded("gelu").model.encode_text(tokens, normalize=True)
    torch.testing.assert_close(student.class_features(NAMES), theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("tower", ["text", "vision"])
@pytest.mark.parametrize("carry", CARRIES)
@pytest.mark.parametrize("depth", [1, 2, BLOCKS])
def test_used_and_unused_query_prompts(tower: str, carry: str, depth: int) -> None:
    """Design §4: dead means a gradient of exactly zero, alive means one that is not."""
    student = student_of("gelu", tower, prompt_structure="qkv", carry=carry, prompt_depth=depth)
    prompts = student.tower_prompts(tower)
    assert prompts is not None
    if tower == "text":
        features = student.encode_text(student.tokenize_names(NAMES))
    else:
        features = student.encode_image(torch.randn(3, 3, 32, 32))
    gradients(prompts, features)
    unused = unused_query_blocks(student.settings, depth, BLOCKS)
    if carry == "replace":
        assert unused == [*range(1, depth), *([depth] if depth == BLOCKS else [])]
    else:
        assert unused == (
            [BLOCKS] if depth == BLOCKS else []
        )  # the last block's output at the prompts is not used
    assert prompts.q.grad is not None
    for block in range(1, depth + 1):
        size = prompts.q.grad[block - 1].abs().max()
        assert (size == 0) if block in unused else (size > 1e-6)
        for other in (prompts.k, prompts.v):
            assert other.grad is not None
            assert other.grad[block - 1].abs().max() > 1e-6
    assert bool(student.describe_unused()) == bool(unused)


def test_unused_query_prompts_are_unused_in_the_plain_tower_too() -> None:
    student = student_of("gelu", "text", prompt_structure="qkv", carry="replace", prompt_depth=BLOCKS)
    prompts = student.tower_prompts("text")
    assert prompts is not None
    plain = reference.text_features(student.clip, *own_and_start(prompts), student.tokenize_names(NAMES))
    gradients(prompts, plain)
    assert prompts.q.grad is not None
    assert torch.equal(prompts.q.grad, torch.zeros_like(prompts.q))


def test_scaled_cosine_attention_equals_plain() -> None:
    """open_clip cannot run this attention itself in version 3.3; the formula is its own."""
    student = student_of("cosine", "text", prompt_depth=2)
    prompts, tokens = student.tower_prompts("text"), student.tokenize_names(NAMES)
    assert prompts is not None
    plain = reference.text_features(student.clip, *own_and_start(prompts), tokens)
    assert_equal(prompts, student.encode_text(tokens), plain)


@pytest.mark.parametrize(
    ("config", "towers", "named"),
    [
        ("causal-last", "text", "a causal text tower pooled by 'last'"),
        ("resnet", "vision", "ModifiedResNet"),
    ],
)
def test_unsupported_tower_is_named(config: str, towers: str, named: str) -> None:
    with pytest.raises(UnsupportedTowerError, match=rf"{named}.*what works: .*ViT-"):
        PromptedCLIP(loaded(config), PromptSettings(towers=towers))


@pytest.mark.parametrize(("config", "towers"), [("causal-last", "vision"), ("resnet", "text")])
def test_the_other_tower_may_be_of_any_kind(config: str, towers: str) -> None:
    student = PromptedCLIP(loaded(config), PromptSettings(towers=towers))
    images, tokens = torch.randn(2, 3, 32, 32), student.tokenize_names(NAMES)
    image_features, text_features, scale = student(images, tokens)
    assert image_features.shape == (2, 48)
    assert text_features.shape == (len(NAMES), 48)
    assert scale > 0


def test_text_without_room_is_refused_by_row() -> None:
    student = PromptedCLIP(loaded("gelu"), PromptSettings(towers="text"))
    tokens = loaded("gelu").tokenizer(["cat", "word " * 74])
    with pytest.raises(UsageError, match=r"row 1 is too long: 76 tokens and 4 prompts.*77 positions"):
        student.encode_text(tokens)


def test_deeper_than_the_tower_is_refused() -> None:
    with pytest.raises(UsageError, match="depth 4 is more than the 3 blocks of the text tower"):
        PromptedCLIP(loaded("gelu"), PromptSettings(prompt_depth=4))
