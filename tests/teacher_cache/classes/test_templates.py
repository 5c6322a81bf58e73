"""Templates: open_clip's sets, texts, files, and what is refused."""

from pathlib import Path

import pytest
from open_clip import OPENAI_IMAGENET_TEMPLATES, SIMPLE_IMAGENET_TEMPLATES

from teacher_cache.classes.templates import load_templates
from teacher_cache.errors import UsageError


@pytest.mark.parametrize(
    ("name", "functions"),
    [("imagenet", OPENAI_IMAGENET_TEMPLATES), ("imagenet-simple", SIMPLE_IMAGENET_TEMPLATES)],
)
def test_sets_of_open_clip_give_its_texts(name: str, functions: list) -> None:
    texts = load_templates(name)
    assert [text.format("sea urchin") for text in texts] == [function("sea urchin") for function in functions]


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("t.txt", "a {}.\n\nthe {c} here\n"),
        ("t.json", '["a {}.", "the {c} here"]'),
    ],
)
def test_templates_are_read_from_files(file: str, content: str, tmp_path: Path) -> None:
    (tmp_path / file).write_text(content)
    assert load_templates(str(tmp_path / file)) == ("a {}.", "the {} here")


def test_one_text_is_a_template() -> None:
    assert load_templates("a photo of a {}.") == ("a photo of a {}.",)
    assert load_templates("{c}") == ("{}",)


@pytest.mark.parametrize(
    ("templates", "reason"),
    [
        ("a photo " * 40, "not a text with {}, not a file, not one of imagenet, imagenet-simple"),
        ("a photo", "not a text with {}, not a file, not one of imagenet, imagenet-simple"),
        ("{} and {}", "exactly one {}"),
        ("a {0}", "exactly one {}"),
        ("a {} of {place}", "exactly one {}"),
        ("a {} {", "exactly one {}"),
    ],
)
def test_a_broken_template_is_refused(templates: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        load_templates(templates)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("t.txt", b"no place for the name\n"),
        ("t.txt", b"caf\xe9 {}\n"),
        ("t.json", b'["a {}"'),
        ("t.json", b"[1, 2]"),
        ("t.json", b'{"a {}": 1}'),
    ],
)
def test_a_broken_template_file_is_refused(file: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / file).write_bytes(content)
    with pytest.raises(UsageError, match="template"):
        load_templates(str(tmp_path / file))


@pytest.mark.parametrize(("file", "content"), [("t.txt", ""), ("t.txt", "\n \n"), ("t.json", "[]")])
def test_an_empty_template_file_is_named(file: str, content: str, tmp_path: Path) -> None:
    (tmp_path / file).write_text(content)
    with pytest.raises(UsageError, match=rf"^the template file .*{file} is empty"):
        load_templates(str(tmp_path / file))
