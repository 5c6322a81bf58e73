"""Vocabularies, templates and lists of images with broken JSON and CSV, odd numbers and invalid texts."""

import json
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.recipe import load_recipe
from teacher_cache.classes.templates import load_templates
from teacher_cache.classes.vocabulary import load_vocabulary
from teacher_cache.errors import RppError, UsageError
from teacher_cache.images.index import index_images
from teacher_cache.images.reader import ImageReader
from teacher_cache.store.vocabularies import vocabulary_digest
from tests.hostile.conftest import fuzzed
from tests.hostile.contract import bounded, is_one_line, tried
from tests.hostile.mutations import DEEP, damaged, damaged_json
from tests.teacher_cache.inputs import ANIMAL_VOCABULARY, ANIMALS, jpeg

CSV = 'id,name\nn01440764,"tench, Tinca"\nn01443537,goldfish\n7,"a ""b"""\n'
SPLIT = {
    "train": [["cat/0.jpg", 0, "cat"], ["dog/1.jpg", 1, "dog"]],
    "val": [],
    "test": [["cat/2.jpg", 0, "cat"]],
}
JSONS = [
    list(ANIMALS),
    {str(c): name for c, name in enumerate(ANIMALS)},
    {f"n{c:08d}": name for c, name in enumerate(ANIMALS)},
    {str(c): [f"n{c:08d}", name] for c, name in enumerate(ANIMALS)},
    SPLIT,
]
LINES = "cat/0.jpg cat\ndog/1.jpg great horned owl\n0034309 707-320\n"
TEMPLATES = ["a photo of a {}.", "{} in {{braces}}", "art of the {c}"]


def read_vocabulary(path: Path) -> None:
    vocabulary = load_vocabulary(path)
    vocabulary_digest(vocabulary)
    for label in (*vocabulary.names[:3], *vocabulary.ids[:3]):
        vocabulary.index_of(label)
    vocabulary.index_of_number(1)
    assert all(template.format(name) for template in vocabulary.templates for name in vocabulary.names[:3])


@st.composite
def vocabularies(draw: st.DrawFn) -> tuple[str, bytes]:
    """Suffix and content."""
    suffix = draw(st.sampled_from([".txt", ".csv", ".tsv", ".json", ".json"]))
    if suffix == ".json":
        return suffix, draw(st.sampled_from(JSONS).flatmap(damaged_json))
    text = "\n".join(ANIMALS) if suffix == ".txt" else CSV.replace(",", "\t" if suffix == ".tsv" else ",")
    return suffix, draw(damaged(text.encode()))


@given(form=vocabularies())
@fuzzed(100)
def test_fuzz_vocabularies(tmp_path_factory: pytest.TempPathFactory, form: tuple[str, bytes]) -> None:
    path = tmp_path_factory.getbasetemp() / f"vocabulary{form[0]}"
    path.write_bytes(form[1])
    tried(lambda: read_vocabulary(path))


@given(
    content=st.sampled_from([json.dumps(TEMPLATES), "\n".join(TEMPLATES)]).flatmap(
        lambda t: damaged(t.encode())
    )
)
@fuzzed(80)
def test_fuzz_templates(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / ("templates.json" if content[:1] == b"[" else "templates.txt")
    path.write_bytes(content)

    def read() -> None:
        for template in load_templates(str(path)):
            assert len(template.format("cat")) < len(template) + 4

    tried(read)


@lru_cache
def image_folder(base: Path) -> Path:
    for place in ("cat/0.jpg", "dog/1.jpg", "cat/2.jpg", "0034309.jpg"):
        (base / "lists" / place).parent.mkdir(parents=True, exist_ok=True)
        (base / "lists" / place).write_bytes(jpeg(0))
    return base / "lists"


@st.composite
def lists(draw: st.DrawFn) -> tuple[str, bytes]:
    if draw(st.booleans()):
        return "split.json", draw(damaged_json(SPLIT))
    return "images.txt", draw(damaged(LINES.encode()))


@given(form=lists())
@fuzzed(100)
def test_fuzz_lists(tmp_path_factory: pytest.TempPathFactory, form: tuple[str, bytes]) -> None:
    folder = image_folder(tmp_path_factory.getbasetemp())
    (folder / form[0]).write_bytes(form[1])

    def read() -> None:
        source = f"{folder / form[0]}" + ("#train" if form[0] == "split.json" else "")
        samples, notes = index_images(source, ANIMAL_VOCABULARY)
        assert all(map(is_one_line, notes)), notes
        reader = ImageReader()
        for location in samples.locations(slice(None)):
            assert Path(location.path).resolve().is_relative_to(folder)
            reader.read(location)

    tried(read)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        (
            "a.json",
            b'["cat", "' + b"\\ud800" + b'"]',
            "the name or id of class 1 has a zero byte",
        ),
        (
            "a.json",
            b'{"n\\u0000": "cat"}',
            "the name or id of class 0 has a zero byte",
        ),
        ("a.json", b'{"a": "cat", "b": ' + DEEP.encode(), "is not JSON: it is nested too deeply"),
        ("a.json", b"[" + b"9" * 5000 + b"]", "is not JSON"),
        ("a.json", b'{"train": [["a.jpg", 1e400, "cat"]]}', r"entry 0: expected \[image path"),
        ("a.csv", b'id,name\n1,"' + b"x" * 200_000 + b'"', "is not CSV: field larger than"),
        ("a.txt", b"cat\ndo\0g", "the name or id of class 1 has a zero byte"),
        ("a.txt", b"cat\n\xff", "is not UTF-8"),
    ],
)
def test_an_invalid_vocabulary_is_refused_in_one_line(
    name: str, content: bytes, reason: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=reason) as refused:
        load_vocabulary(tmp_path / name)
    assert is_one_line(str(refused.value))


def test_ids_of_thousands_of_digits_are_names(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(f"id,name\n{'9' * 5000},cat\n1,dog\n")
    vocabulary = load_vocabulary(tmp_path / "a.csv")
    assert vocabulary.index_of_number(1) == 1
    assert vocabulary.index_of("9" * 5000) == 0


@pytest.mark.parametrize(
    "template", ["{:{}}", "{:>999999999}{{}}", "{!r}{{}}", "{0.__class__}", "{} {}", "{", "a \ud800 {}"]
)
def test_a_template_has_only_places_for_the_name(template: str, tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text(json.dumps([template]))
    with pytest.raises(UsageError, match=r"exactly one \{\}|unpaired surrogate") as refused:
        load_templates(str(tmp_path / "t.json"))
    assert is_one_line(str(refused.value))


@pytest.mark.parametrize("place", ["../outside.jpg", "/etc/passwd.jpg", "a/../../b.jpg", "a\0b.jpg"])
def test_a_list_names_no_image_outside_its_folder(place: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "outside.jpg").write_bytes(jpeg(0))
    (tmp_path / "in" / "cat.jpg").write_bytes(jpeg(0))
    (tmp_path / "in" / "split.json").write_text(
        json.dumps({"test": [["cat.jpg", 0, "cat"], [place, 0, "cat"]]})
    )
    (tmp_path / "in" / "list.txt").write_text(f"cat.jpg cat\n{place} cat\n")
    for source in ("split.json#test", "list.txt"):
        with pytest.raises(UsageError, match="is outside the list's folder") as refused:
            index_images(f"{tmp_path}/in/{source}", ANIMAL_VOCABULARY)
        assert is_one_line(str(refused.value))


def test_a_class_of_a_split_is_a_text(tmp_path: Path) -> None:
    (tmp_path / "split.json").write_text(json.dumps({"test": [["cat.jpg", 0, "\ud800"]]}))
    with pytest.raises(UsageError, match=r"the class name '\\ud800' is not valid text"):
        index_images(f"{tmp_path}/split.json#test", ANIMAL_VOCABULARY)


@pytest.mark.parametrize("long", ["x" * 300, "y/" * 3000 + "x"])
def test_a_path_that_is_too_long_is_not_an_image(long: str, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text(f"{long}.jpg cat\n")
    with pytest.raises(UsageError, match="is neither in"):
        index_images(f"{tmp_path}/list.txt", ANIMAL_VOCABULARY)


@pytest.mark.parametrize(
    ("name", "read", "message"),
    [
        ("names.txt", load_vocabulary, "cannot read the vocabulary .*: it has more than 256 MB"),
        ("texts.txt", lambda path: load_templates(str(path)), "template file .*: it has more than 256 MB"),
        ("recipe.toml", load_recipe, "cannot read the recipe .*: it has more than 256 MB"),
    ],
)
def test_an_endless_file_is_not_read_to_its_end(
    name: str, read: Callable[[Path], object], message: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    with open(path, "wb") as file:
        file.truncate(1 << 40)
    with bounded(), pytest.raises(UsageError, match=message):
        read(path)


def test_a_list_has_a_limit_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "images.txt").write_text("cat/0.jpg cat\n" * 100_000)
    monkeypatch.setattr("teacher_cache.images.lists.MOST_LIST_BYTES", 1 << 20)
    with pytest.raises(RppError, match=r"cannot read .*images\.txt: it has more than 1 MB"):
        index_images(str(tmp_path / "images.txt"), ANIMAL_VOCABULARY)


def test_lines_end_as_any_editor_ends_them(tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    path.write_bytes("\ufeffcat\r\ndog\rfox\n".encode())
    assert load_vocabulary(path).names == ("cat", "dog", "fox")
