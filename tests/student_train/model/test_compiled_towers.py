"""Compiled towers against uncompiled ones, and how often torch compiles.

What dynamo makes of a tower does not depend on the compiler behind it: most tests run the graphs as they are.
Inductor takes seconds for each.
"""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from student_train.model import packing, towers
from student_train.model.settings import PromptSettings
from student_train.model.student import PromptedCLIP
from student_train.model.text_plan import TextPlan
from teacher_cache.compat import dynamo
from teacher_cache.teacher.teacher import Teacher
from teacher_cache.teacher.text_towers import text_parts
from tests.models import loaded
from tests.student_train.model.test_towers import CONFIGS, MANY, NAMES, gradients, student_of

IMAGES = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    """Compile anew in each test."""
    dynamo.require_compiler(torch.device("cpu"))
    torch._dynamo.reset()
    dynamo.compiled.cache_clear()
    counters.clear()
    yield
    dynamo.compiled.cache_clear()
    torch._dynamo.reset()


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the graphs without a compiler."""
    monkeypatch.setattr(dynamo, "BACKEND", "eager")


def compiled_and_not(student: PromptedCLIP, texts: list[str], plan: TextPlan | None = None) -> list[Tensor]:
    """Features and gradients of both towers, compiled behind uncompiled."""
    tokens, parts = student.tokenize_names(texts), text_parts(student.clip)
    found = []
    for compile_blocks in (False, True):
        text, vision = student.tower_prompts("text"), student.tower_prompts("vision")
        assert text is not None
        features = towers.encode_text(parts, text, tokens, plan, compile_blocks=compile_blocks)
        found.append([features, *gradients(text, features)])
        if vision is not None:
            features = towers.encode_image(student.clip.visual, vision, IMAGES, compile_blocks=compile_blocks)
            found[-1] += [features, *gradients(vision, features)]
    return [x for pair in zip(*found, strict=True) for x in pair]


def assert_close(pairs: list[Tensor], bar: float = 1e-5) -> None:
    assert pairs
    for plain, ours in zip(pairs[::2], pairs[1::2], strict=True):
        assert (plain - ours).norm() <= bar * plain.norm()


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize(("config", "carry"), zip(CONFIGS, ("replace", "residual") * 2, strict=True))
def test_every_kind_of_block_is_one_graph(config: str, carry: str) -> None:
    student = student_of(config, "both", carry=carry, prompt_depth=2)
    assert_close(compiled_and_not(student, NAMES))
    graphs = counters["stats"]["unique_graphs"]
    assert_close(compiled_and_not(student, NAMES))
    assert counters["stats"]["unique_graphs"] == graphs, "nothing new is compiled for the same shapes"
    # text: prefix with and without own prompts, rows, last rows; vision: likewise
    assert graphs <= 10
    assert not counters["graph_break"]


@pytest.mark.usefixtures("traced")
def test_twelve_blocks_with_nine_prompted_are_few_graphs() -> None:
    """Compiled for the first block, whose input has no gradient, for those behind it, and for the last."""
    assert_close(compiled_and_not(student_of("deep", "both", prompt_depth=9), NAMES))
    assert counters["stats"]["unique_graphs"] <= 14


@pytest.mark.parametrize("segment", [1, 2])
def test_recomputed_chunks_run_compiled(segment: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The graphs are those of a compiler here, with what they keep for the backward pass."""
    monkeypatch.setattr(dynamo, "BACKEND", "aot_eager")
    monkeypatch.setattr(packing, "PACK_ROWS", 8)
    student = student_of("quickgelu", "text", prompt_depth=2)
    assert_close(compiled_and_not(student, MANY, TextPlan(3, 2, segment, 0)))


@pytest.mark.usefixtures("traced")
def test_sampled_names_are_compiled_for_few_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    """After some steps the sizes of packs are variables, and other numbers of names compile nothing."""
    monkeypatch.setattr(packing, "PACK_ROWS", 8)
    student = student_of("gelu", "text", prompt_depth=2)
    counts = []
    for names in (MANY[:13], MANY[3:], MANY[5:22], MANY[:17], MANY[9:], MANY[4:23], MANY[1:]):
        assert_close(compiled_and_not(student, names))
        counts.append(counters["stats"]["unique_graphs"])
    assert counts[-1] == counts[-3] <= 12


@pytest.mark.usefixtures("traced")
def test_a_tower_runs_under_autocast_without_gradients_and_with_frozen_prompts() -> None:
    student = student_of("gelu", "both", prompt_depth=2)
    student.compiles = True
    tokens = student.tokenize_names(NAMES)

    def features() -> list[Tensor]:
        return [student.encode_text(tokens).float(), student.encode_image(IMAGES).float()]

    for dtype in (None, torch.bfloat16):
        for mode in (torch.no_grad, torch.inference_mode, torch.enable_grad):
            found = []
            for compiles in (False, True):
                student.compiles = compiles
                with mode(), torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
                    found.append(features())
            pairs = [x for pair in zip(*found, strict=True) for x in pair]
            assert_close(pairs, 1e-5 if dtype is None else 0.02)
    student.prompts.requires_grad_(False)
    assert_close([features()[0], student.encode_text(tokens)])


@pytest.mark.usefixtures("traced")
def test_an_image_tower_without_prompts_is_compiled_too() -> None:
    model = loaded("gelu")
    student = PromptedCLIP(model, PromptSettings(towers="text"))
    plain = student.encode_image(IMAGES)
    student.compile_towers()
    assert_close([plain, student.encode_image(IMAGES)])
    assert counters["stats"]["unique_graphs"] == 1
    assert student.base.model is student.clip is not model.model


@pytest.mark.timeout(600)
def test_towers_compiled_by_inductor_equal_the_plain_ones() -> None:
    """Features to 1e-5, gradients to 1e-4: the bounds of the uncompiled towers against plain ones."""
    student = student_of("two-blocks", "both", prompt_depth=2)
    pairs = compiled_and_not(student, NAMES)
    for plain, ours in zip(pairs[::2], pairs[1::2], strict=True):
        if plain.ndim == 2:  # features
            torch.testing.assert_close(ours, plain, atol=1e-5 * plain.abs().max().item(), rtol=0)
        assert_close([plain, ours], 1e-4)
    pixels = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    teacher = Teacher(loaded("two-blocks"), torch.device("cpu"))
    plain = teacher.image_features(pixels)
    assert teacher.compile(4) > 0
    assert teacher.compile(4) == 0
    torch.testing.assert_close(teacher.image_features(pixels), plain, atol=1e-5, rtol=0)
    uncompiled = Teacher(loaded("two-blocks"), torch.device("cpu")).image_features(pixels[:3])
    assert torch.equal(teacher.image_features(pixels[:3]), uncompiled), "smaller batches run uncompiled"
