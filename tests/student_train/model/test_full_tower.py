"""Text towers without a causal mask and CoCa's, against hooks on the untouched model."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from student_train.model.full_texts import FullTexts, lay_out_texts
from student_train.model.full_tower import encode_full_text
from student_train.model.settings import PromptSettings
from student_train.model.student import PromptedCLIP
from student_train.model.text_plan import TextPlan
from teacher_cache.errors import UnsupportedTowerError, UsageError
from teacher_cache.teacher.openclip import LoadedModel
from teacher_cache.teacher.text_towers import text_parts
from tests.models import loaded
from tests.pairwise import pairwise_cases
from tests.student_train import hooked_text, reference
from tests.student_train.model.test_towers import (
    BLOCKS,
    CARRIES,
    NAMES,
    STRUCTURES,
    assert_equal,
    own_and_start,
)

FULL = ("siglip", "siglip2", "clipa", "full-first", "mobileclip", "full-eos")
# forms that no published configuration has, made from these configurations
OTHER_FORMS = {
    "coca-correct": "coca",
    "siglip2-padding-hidden": "siglip2",
    "mobileclip-padding-hidden": "mobileclip",
}
FAMILIES = (*FULL, "coca", *OTHER_FORMS)
START = {"siglip": 0, "siglip2": 0, "siglip2-padding-hidden": 0}  # 1 in the others


def base_of(family: str) -> LoadedModel:
    if family not in OTHER_FORMS:
        return loaded(family)
    base = loaded(OTHER_FORMS[family])
    model = copy.deepcopy(base.model)
    if family == "coca-correct":
        model.text.correct_cls_mask = True
    else:
        model.text.use_pad_mask = True
    return replace(base, model=model)


def student_of(family: str, **settings: Any) -> PromptedCLIP:
    """A student whose prompts are all different and of the size of real ones."""
    student = PromptedCLIP(base_of(family), PromptSettings(**{"towers": "text", **settings}), seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in student.prompts.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return student


def plain(student: PromptedCLIP, tokens: Tensor, family: str) -> Tensor:
    prompts = student.tower_prompts("text")
    assert prompts is not None
    return hooked_text.text_features(student.clip, *own_and_start(prompts), tokens, START.get(family, 1))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("structure", "carry", "depth"), pairwise_cases(STRUCTURES, CARRIES, (1, 2, BLOCKS)))
def test_prompts_equal_hooks(family: str, structure: str, carry: str, depth: int) -> None:
    student = student_of(family, prompt_structure=structure, carry=carry, prompt_depth=depth, prompt_length=3)
    prompts = student.tower_prompts("text")
    assert prompts is not None
    tokens = student.tokenize_names([*NAMES, "yahoo!!", "ox"])
    assert_equal(prompts, student.encode_text(tokens), plain(student, tokens, family))


@pytest.mark.parametrize("family", FAMILIES)
def test_depth_0_is_open_clip(family: str) -> None:
    base = base_of(family)
    student = PromptedCLIP(base, PromptSettings(prompt_depth=0))
    tokens = base.tokenizer([*[f"a photo of a {name}" for name in NAMES], "cat " * 90])
    theirs = base.model.encode_text(tokens, normalize=False)
    ours = student.encode_text(tokens)
    torch.testing.assert_close(ours, theirs, atol=1e-5 * theirs.abs().max().item(), rtol=0)
    packed = student.pack_texts(tokens)
    torch.testing.assert_close(
        student.encode_text(packed), theirs, atol=1e-5 * theirs.abs().max().item(), rtol=0
    )
    assert theirs.std(dim=0).mean() > 0.1
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    theirs = base.model.encode_image(images, normalize=False)
    torch.testing.assert_close(student.encode_image(images), theirs)


@pytest.mark.parametrize("family", ["siglip2", "mobileclip", "mobileclip-padding-hidden"])
@pytest.mark.parametrize("carry", CARRIES)
@pytest.mark.parametrize(("recomputed", "segment"), [(0, 0), (2, 1), (3, 2), (3, BLOCKS)])
def test_chunks_and_recomputation_change_nothing(
    family: str, carry: str, recomputed: int, segment: int
) -> None:
    student = student_of(family, carry=carry, prompt_depth=2)
    prompts, tokens = student.tower_prompts("text"), student.tokenize_names(NAMES)
    assert prompts is not None
    packed = student.pack_texts(tokens)
    assert isinstance(packed, FullTexts)
    plan = TextPlan(chunks=3, recomputed=recomputed, segment=segment, peak_bytes=0)
    features = encode_full_text(text_parts(student.clip), prompts, packed, plan)
    assert_equal(prompts, features, plain(student, tokens, family))


@pytest.mark.parametrize("family", ["siglip", "siglip2", "clipa", "mobileclip", "coca"])
@pytest.mark.parametrize("carry", CARRIES)
def test_text_starts_as_the_model_with_the_first_words(family: str, carry: str) -> None:
    """J = 1 starts as the model's own reading of 'a photo of a NAME.', at its own positions."""
    base = base_of(family)
    words = len(PromptedCLIP(base, PromptSettings(prompt_depth=0))._word_tokens("a photo of a"))
    settings = PromptSettings(towers="text", prompt_depth=1, prompt_length=words, carry=carry)
    student = PromptedCLIP(base, settings)
    theirs = base.model.encode_text(
        base.tokenizer([f"a photo of a {name}." for name in NAMES]), normalize=True
    )
    torch.testing.assert_close(student.class_features(NAMES), theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("carry", CARRIES)
@pytest.mark.parametrize("depth", [1, 2, BLOCKS])
def test_vision_prompts_of_coca(carry: str, depth: int) -> None:
    """Its image tower is pooled by attention; the prompts take no part in it."""
    student = student_of("coca", towers="vision", carry=carry, prompt_depth=depth)
    prompts = student.tower_prompts("vision")
    assert prompts is not None
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    theirs = reference.image_features(student.clip, *own_and_start(prompts), images)
    assert_equal(prompts, student.encode_image(images), theirs)


def test_equal_texts_run_once_and_keep_their_places() -> None:
    student = student_of("siglip")
    texts = student.pack_texts(student.tokenize_names(["ox", "cat", "ox", "tie", "cat"]))
    assert isinstance(texts, FullTexts)
    assert len(texts.ids) == 3
    features = student.encode_text(texts)
    assert torch.equal(features[0], features[2])
    alone = student.encode_text(student.tokenize_names(["tie"]))
    torch.testing.assert_close(features[3], alone[0])


def test_texts_of_another_form_are_refused() -> None:
    student = student_of("siglip", prompt_length=3)
    tokens = student.base.tokenizer(["cat", "ox " * 30])
    with pytest.raises(UsageError, match=r"row 1 is too long: 20 tokens and 3 prompts.*has 20 positions"):
        student.encode_text(tokens)
    with pytest.raises(UsageError, match=r"expected tokens \[B, 20\], found \[2, 17\].*attends to padding"):
        student.encode_text(tokens[:, :17])
    texts = student.pack_texts(tokens[:1])
    with pytest.raises(UsageError, match="packed for 3 prompts, but the tower has 4"):
        student_of("siglip").encode_text(texts)
    with pytest.raises(UsageError, match="row 0 does not begin with the start-of-text token 1"):
        student_of("clipa").encode_text(tokens)
    hidden = student_of("siglip2-padding-hidden")
    with pytest.raises(UsageError, match="row 1 has only padding"):
        hidden.encode_text(torch.stack([hidden.tokenize_names(["ox"])[0], torch.zeros(20, dtype=torch.long)]))


def test_without_prompts_another_length_is_the_models_own() -> None:
    student = PromptedCLIP(loaded("siglip"), PromptSettings(towers="vision"))
    tokens = loaded("siglip").tokenizer(NAMES, context_length=9)
    assert torch.equal(student.encode_text(tokens), loaded("siglip").model.encode_text(tokens))


def test_prompts_at_the_pooled_position_are_refused() -> None:
    base = loaded("siglip")
    model = copy.deepcopy(base.model)
    model.text.pool_type = "first"
    with pytest.raises(UnsupportedTowerError, match=r"pooled at its first position.*no start-of-text token"):
        PromptedCLIP(replace(base, model=model), PromptSettings(towers="text"))


def test_a_full_context_holds_a_name_and_its_prompts() -> None:
    """A name that is too long loses its last tokens and keeps its end; the context does not grow."""
    for family, end in [("siglip", 1), ("siglip2", 1), ("clipa", 0), ("mobileclip", 49407)]:
        student = student_of(family, prompt_length=3)
        room = student.context_length - 3
        tokens_T = student.tokenize_names(["ox " * 90])[0]
        assert tokens_T.shape == (student.context_length,)
        assert tokens_T[room - 1] == end
        assert set(tokens_T[room:].tolist()) == {student._frame.pad}
        texts = lay_out_texts(text_parts(student.clip), tokens_T[None], 3, student._frame)
        positions = sorted(texts.positions[0].tolist())
        prompts = range(START.get(family, 1), START.get(family, 1) + 3)
        assert positions == [p for p in range(student.context_length) if p not in prompts]
    with pytest.raises(UsageError, match=r"length 18 leaves no room for a name; .* holds at most 17"):
        student_of("clipa", prompt_length=18)


def test_the_tokenizer_of_a_student_reads_templates_and_pads_as_the_models() -> None:
    student = student_of("siglip", prompt_length=3)
    tokens = student.tokenizer([f"a photo of a {name}." for name in NAMES])
    assert torch.equal(tokens, student.tokenize_names(NAMES))
    assert set(student.tokenizer(["cat"], context_length=24)[0, -4:].tolist()) == {student._frame.pad} == {1}
    with pytest.raises(UsageError, match=r"'ox ox .* is too long: there is room for 16 tokens"):
        student.tokenizer(["ox " * 30])
