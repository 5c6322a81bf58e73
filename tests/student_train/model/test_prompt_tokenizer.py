"""Students in open_clip's zero-shot classifier: which name a text holds, and what the student reads of it."""

import copy
from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip import (
    OPENAI_IMAGENET_TEMPLATES,
    SIMPLE_IMAGENET_TEMPLATES,
    build_zero_shot_classifier,
    build_zero_shot_classifier_legacy,
)

from student_train.model.prompt_tokenizer import KNOWN, Template, names_in, parse_templates
from student_train.model.settings import PromptSettings
from student_train.model.student import PromptedCLIP
from teacher_cache.errors import UsageError
from tests.models import loaded
from tests.student_train.model.test_student import changed

NAMES = [
    "cat",
    "Schmetterling, ein großer",
    "蝴蝶",
    "кошка",
    "large white butterfly",  # 'a photo of the large {}.' and 'a photo of a large {}.' are templates
    "weird",
    "painting of the {}",
    "{}",
    "{c} {0}",
    "St. Bernard Jr.",
    'a "quoted" thing, isn\'t it',
    "cat",
    "plane in a video game",
    ".",
    "word " * 59 + "end",
    "word " * 90 + "end",  # more than the text tower holds, with prompts or without
    "two\nlines",
]
SETS = {
    "openai": OPENAI_IMAGENET_TEMPLATES,
    "simple": SIMPLE_IMAGENET_TEMPLATES,
    "one": ["a photo of a {}."],
}
Templates = Sequence[str | Callable[[str], str]]


def student_with(towers: str, length: int = 4) -> PromptedCLIP:
    prompts = PromptSettings(towers=towers, prompt_depth=2, prompt_length=length)
    return changed(PromptedCLIP(loaded("gelu"), prompts)).eval()


def fill(template: str | Callable[[str], str], name: str) -> str:
    return template.format(name) if isinstance(template, str) else template(name)


def texts_of(names: Sequence[str], templates: Templates) -> list[str]:
    return [fill(template, name) for name in names for template in templates]


@pytest.mark.parametrize("templates", SETS.values(), ids=SETS)
@pytest.mark.parametrize("towers", ["text", "both"])
def test_open_clips_classifier_is_the_students_class_features(towers: str, templates: Templates) -> None:
    student = student_with(towers)
    expected = student.class_features(NAMES)
    found = build_zero_shot_classifier(student, student.tokenizer, NAMES, templates, num_classes_per_batch=5)
    torch.testing.assert_close(found.T, expected, atol=1e-5, rtol=0)
    legacy = build_zero_shot_classifier_legacy(student, student.tokenizer, NAMES[:5], templates)
    torch.testing.assert_close(legacy.T, expected[:5], atol=1e-5, rtol=0)
    assert (expected[0] - expected[1]).abs().max() > 0.01


@pytest.mark.parametrize("templates", SETS.values(), ids=SETS)
def test_without_text_prompts_it_is_the_frozen_models_classifier(templates: Templates) -> None:
    student = student_with("vision")
    found = build_zero_shot_classifier(student, student.tokenizer, NAMES, templates)
    frozen = build_zero_shot_classifier(student.clip, student.base.tokenizer, NAMES, templates)
    torch.testing.assert_close(found, frozen, atol=1e-5, rtol=0)
    assert student.tokenizer.for_templates(["no name"]) is not None, "nothing is read out of templates"


def test_templates_that_are_named_are_known_and_no_others(caplog: pytest.LogCaptureFixture) -> None:
    student, names = student_with("text"), ["large", "large cat", "cat"]
    templates = ["ein {c}, der {c}", "a big {c}", "a {c}", "{c}"]
    tokenizer = student.tokenizer.for_templates(templates)
    texts = [template.format(c=name) for name in names for template in templates]
    expected = student.tokenize_names(names).repeat_interleave(4, dim=0)
    assert torch.equal(tokenizer(texts), expected)
    assert not caplog.text
    only = student.tokenizer.for_templates(["ein {c}, der {c}", "a big {c}"])
    assert torch.equal(only(["a photo of a cat."]), student.base.tokenizer(["a photo of a cat."]))
    assert "1 of 1 texts match none of the templates" in caplog.text


@pytest.mark.parametrize("text", ["cat.", "a photo of the cat", "", "an emu in the rain"])
def test_a_text_that_no_template_made_is_read_as_it_stands(text: str) -> None:
    student = student_with("text")
    assert torch.equal(student.tokenizer(text), student.base.tokenizer([text]))
    mixed = student.tokenizer([text, "the origami cat.", text])
    assert torch.equal(mixed, student.base.tokenizer([text, "cat.", text]))
    nothing_known = student.tokenizer.for_templates([])
    assert torch.equal(nothing_known(["a photo of a cat."]), student.base.tokenizer(["a photo of a cat."]))


def test_a_text_alone_goes_to_the_template_of_most_characters() -> None:
    (openai, simple, one) = KNOWN
    assert [len(templates) for templates in KNOWN] == [80, 7, 1]
    texts = ["a photo of the large cat.", "the plushie dog.", "no template"]
    assert names_in(texts, [openai, simple, one]) == ["cat", "dog", None]
    assert names_in(["a photo of a large cat."] * 2, [openai]) == ["cat", "cat"]
    # all of them can be of the set of one template: then the names hold all that it leaves
    assert names_in(["a photo of a large cat."], [openai, one]) == ["large cat"]


def test_texts_of_one_class_that_disagree_are_no_whole_set() -> None:
    templates = parse_templates(["a photo of a {}.", "a photo of a big {}."])
    assert names_in(["a photo of a big cat.", "a photo of a big big cat."], [templates]) == ["big cat"] * 2
    assert names_in(["a photo of a big cat.", "a photo of a big dog."], [templates]) == ["cat", "dog"]


# all that names can hold, and often what templates hold
names = st.lists(
    st.one_of(st.text(max_size=12), st.text("abig .{}'photf\n", max_size=20), st.sampled_from(NAMES)),
    min_size=1,
    max_size=12,
)
literals = st.text("a big.{}\n", max_size=6)


@settings(max_examples=200, deadline=None)
@given(names=names, templates=st.sampled_from(list(SETS.values())))
def test_the_name_that_is_read_is_the_name_that_was_put_in(names: list[str], templates: Templates) -> None:
    expected = [name for name in names for _ in templates]
    assert names_in(texts_of(names, templates), KNOWN) == expected


@settings(max_examples=200, deadline=None)
@given(
    names=names,
    pieces=st.lists(st.lists(literals, min_size=2, max_size=4), min_size=1, max_size=5),
    style=st.sampled_from(["{}", "{c}", "function"]),
)
def test_the_names_of_any_templates_come_back(names: list[str], pieces: list[list[str]], style: str) -> None:
    templates: list[str | Callable[[str], str]]
    if style == "function":
        templates = [lambda name, pieces=own: name.join(pieces) for own in pieces]
    else:
        escaped = [[piece.replace("{", "{{").replace("}", "}}") for piece in own] for own in pieces]
        templates = [style.join(own[: 2 if style == "{}" else None]) for own in escaped]
    parsed = parse_templates(templates)
    texts = [
        t.format(*[name] if style == "{}" else [], c=name) if isinstance(t, str) else t(name)
        for name in names
        for t in templates
    ]
    assert names_in(texts, [parsed]) == [name for name in names for _ in templates]


def test_the_name_of_a_text_is_the_only_one() -> None:
    template = Template.parse("{c} or {c}")
    assert template.name_in("a or a or a or a") == "a or a"
    assert template.name_in("a or b") is None
    assert template.name_in("or") is None
    assert Template.parse("a {}.").name_in("a.") is None, "the ends of the template may not overlap"


@pytest.mark.parametrize("template", ["a photo.", "", "a {name}.", "{} and {}", "a {", "{c.x}", "{c[x]}"])
def test_templates_without_a_place_for_the_name_are_refused(template: str) -> None:
    with pytest.raises(UsageError, match="the template '"):
        student_with("text").tokenizer.for_templates(["a photo of a {}.", template])


def test_a_long_name_is_cut_as_in_training_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    student = student_with("text")
    tokens = student.tokenizer(texts_of(["cat", "word " * 80], OPENAI_IMAGENET_TEMPLATES))
    assert caplog.text.count("1 of 2 class names are too long") == 1
    assert torch.equal(tokens[80:], student.tokenize_names(["word " * 80]).expand(80, -1))


@pytest.mark.parametrize("towers", ["text", "both"])
def test_a_long_text_that_stands_as_it_is_is_refused(towers: str) -> None:
    student = student_with(towers)  # 77 positions: SOT, 4 prompts, 71 tokens of a text, EOT
    fits = " ".join(["word"] * 71)
    assert student.encode_text(student.tokenizer([fits])).isfinite().all()
    for words in (72, 73, 76, 200):
        with pytest.raises(
            UsageError, match=r"'word word .*\.\.\.' is too long: there is room for 71 tokens"
        ):
            student.tokenizer(["cat.", " ".join(["word"] * words)])
    without = student_with("vision")
    assert torch.equal(
        without.tokenizer([f"{fits} word word"]), without.base.tokenizer([f"{fits} word word"])
    )


@pytest.mark.parametrize("towers", ["text", "vision"])
def test_one_text_is_no_list_of_templates(towers: str) -> None:
    with pytest.raises(UsageError, match=r"a list of texts: \['a photo of a \{\}\.'\]"):
        student_with(towers).tokenizer.for_templates("a photo of a {}.")


def test_the_context_length_that_a_tool_asks_for() -> None:
    student = student_with("text")
    texts = ["a photo of a cat.", "emu"]
    assert torch.equal(student.tokenizer(texts, context_length=77), student.tokenizer(texts))
    short, long = student.tokenizer(texts, 8), student.tokenizer(texts, context_length=100)
    assert short.shape == (2, 8)
    assert long.shape == (2, 100)
    assert torch.equal(long[:, :8], short)
    assert torch.equal(student.tokenizer(["emu"], 20), student.base.tokenizer(["emu"], context_length=20))
    for text in ("the origami big big cat.", "a big big cat."):
        with pytest.raises(UsageError, match="room for 3 tokens"):
            student.tokenizer([text], context_length=5)
    assert student.tokenizer([]).shape == (0, 77)


def test_it_is_open_clips_tokenizer_in_all_else() -> None:
    student = student_with("text")
    base = student.base.tokenizer
    for tokenizer in (student.tokenizer, copy.deepcopy(student.tokenizer), student_with("vision").tokenizer):
        assert tokenizer.encode("grand piano") == base.encode("grand piano")
        assert (tokenizer.context_length, tokenizer.vocab_size) == (77, base.vocab_size)
        with pytest.raises(AttributeError):
            _ = tokenizer.no_such_thing


def test_images_or_texts_alone_as_open_clips_evaluation_gives_them() -> None:
    student = student_with("both")
    images, tokens = torch.randn(2, 3, 32, 32), student.tokenizer(["cat.", "emu."])
    features, nothing, scale = student(image=images)
    assert torch.equal(features, student.encode_image(images, normalize=True))
    assert nothing is None
    assert scale == student.logit_scale.exp()
    nothing, features, _ = student(text=tokens)
    assert torch.equal(features, student.encode_text(tokens, normalize=True))
    assert nothing is None
