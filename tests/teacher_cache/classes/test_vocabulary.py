"""Class names by ImageNet's name or from files, lemmas, doubled names, labels, templates."""

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as example_settings
from hypothesis import strategies as st
from open_clip import OPENAI_IMAGENET_TEMPLATES, SIMPLE_IMAGENET_TEMPLATES
from timm.data import ImageNetInfo

from teacher_cache.classes.vocabulary import Duplicates, Lemma, Vocabulary, load_templates, load_vocabulary
from teacher_cache.errors import UsageError


@pytest.mark.parametrize(
    ("name", "classes"),
    [
        ("imagenet-1k", 1_000),
        ("imagenet-12k", 11_821),
        ("imagenet-21k", 21_841),
        ("imagenet-22k", 21_841),
        ("ImageNet-21K", 21_841),
        ("imagenet-21k-p", 11_221),
        ("imagenet-21k-goog", 21_843),
    ],
)
def test_imagenets_have_their_number_of_classes_and_a_synset_each(name: str, classes: int) -> None:
    vocabulary = load_vocabulary(name)
    assert len(vocabulary) == len(vocabulary.ids) == len(set(vocabulary.ids)) == classes
    assert all(identity[0] == "n" and len(identity) == 9 for identity in vocabulary.ids)
    assert all(name == name.strip() and name for name in vocabulary.names)


def test_imagenet_1k_is_in_the_order_that_classifiers_use() -> None:
    vocabulary = load_vocabulary("imagenet-1k")
    assert vocabulary.ids == tuple(ImageNetInfo("imagenet-1k").label_names())
    assert vocabulary.ids == tuple(sorted(vocabulary.ids))
    assert (vocabulary.names[0], vocabulary.names[207], vocabulary.names[999]) == (
        "tench",
        "golden retriever",
        "toilet tissue",
    )


@pytest.mark.parametrize(
    ("lemma", "name"),
    [
        ("first", "great white shark"),
        ("last", "Carcharodon carcharias"),
        ("shortest", "man-eater"),
        ("all", "great white shark, white shark, man-eater, man-eating shark, Carcharodon carcharias"),
    ],
)
def test_the_lemma_of_a_synset_can_be_chosen(lemma: Lemma, name: str) -> None:
    assert load_vocabulary("imagenet-1k", lemma=lemma, duplicates="keep").names[2] == name


def test_a_doubled_name_takes_its_next_free_lemma_and_keeps_its_name_without_one() -> None:
    """ImageNet-1K has two maillots, of which one is also a tank suit, and two cranes with one lemma each."""
    kept = load_vocabulary("imagenet-1k", duplicates="keep")
    assert kept.duplicate_names == {"crane": 2, "maillot": 2}
    vocabulary = load_vocabulary("imagenet-1k")
    changed = [c for c in range(1000) if vocabulary.names[c] != kept.names[c]]
    assert [(vocabulary.ids[c], vocabulary.names[c]) for c in changed] == [("n03710721", "tank suit")]
    assert vocabulary.duplicate_names == {"crane": 2}


@pytest.mark.parametrize("name", ["imagenet-1k", "imagenet-21k"])
def test_definitions_tell_all_classes_apart(name: str) -> None:
    vocabulary = load_vocabulary(name, duplicates="definition")
    assert vocabulary.duplicate_names == {}
    lemmas = load_vocabulary(name)
    assert all(
        mine == other or mine.startswith(f"{other}, ")
        for mine, other in zip(vocabulary.names, lemmas.names, strict=True)
    )


def test_doubled_names_can_be_refused() -> None:
    with pytest.raises(UsageError, match=r"occur twice: 'crane' \(2 classes\), 'maillot' \(2 classes\)"):
        load_vocabulary("imagenet-1k", duplicates="error")


@given(
    st.lists(st.lists(st.sampled_from("abcde"), min_size=1, max_size=3, unique=True), min_size=1, max_size=8),
    st.sampled_from(["lemma", "definition", "keep"]),
)
@example_settings(deadline=None)
def test_a_name_is_always_one_of_its_own_lemmas(lemmas: list[list[str]], duplicates: Duplicates) -> None:
    from teacher_cache.classes.vocabulary import _choose_names

    ids = [str(c) for c in range(len(lemmas))]
    names = _choose_names(ids, lemmas, {}, "first", duplicates)
    assert all(name in options for name, options in zip(names, lemmas, strict=True))
    first = {options[0]: c for c, options in reversed(list(enumerate(lemmas)))}
    assert all(names[c] == name for name, c in first.items())  # the first class of a name keeps it
    if duplicates == "lemma":
        for c, name in enumerate(names):
            if name in names[:c]:  # it is doubled only because every lemma of its own was taken
                assert set(lemmas[c]) <= {options[0] for options in lemmas} | set(names)


# Files


def _read(path: Path, content: str | bytes) -> Vocabulary:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return load_vocabulary(path)


@pytest.mark.parametrize(
    ("file", "content", "ids", "names"),
    [
        ("v.txt", "cat\n\n  great horned owl \n", ("cat", "great horned owl"), ("cat", "great horned owl")),
        ("v.txt", "\ufeffcat\r\ndog\r\n", ("cat", "dog"), ("cat", "dog")),
        ("v.names", "Kätzchen\n犬\n", ("Kätzchen", "犬"), ("Kätzchen", "犬")),
        ("v.txt", "cat\ndog\ncat\n", ("cat#0", "dog", "cat#2"), ("cat", "dog", "cat")),
        ("v.csv", "n01,cat\nn02,dog\n", ("n01", "n02"), ("cat", "dog")),
        ("v.csv", "cat\ndog\n", ("cat", "dog"), ("cat", "dog")),
        ("v.csv", "Name,other,WNID\ncat,1,n01\ndog,2,n02\n", ("n01", "n02"), ("cat", "dog")),
        ("v.csv", "name\ncat\n", ("cat",), ("cat",)),
        ("v.csv", 'id,name\nn01,"cat, domestic"\n', ("n01",), ("cat, domestic",)),
        ("v.csv", "id,name\nn01,cat\nn02,cat\n", ("n01", "n02"), ("cat", "cat")),
        ("v.csv", "index,label\n0,cat\n1,dog\n", ("0", "1"), ("cat", "dog")),
        ("v.csv", "class_id;name\n7;cat\n3;dog\n", ("7", "3"), ("cat", "dog")),
        ("v.csv", 'id,name\nn01,"big\ncat"\n', ("n01",), ("big cat",)),
        ("v.txt", "cat\u2028dog\x0c\x85owl\n", ("cat\u2028dog\x0c\x85owl",), ("cat\u2028dog\x0c\x85owl",)),
        ("v.tsv", "synset\tname\nn01\tcat, the\n", ("n01",), ("cat, the",)),
        ("v.json", '["cat", "dog"]', ("cat", "dog"), ("cat", "dog")),
        ("v.json", '{"1": "dog", "0": "cat"}', ("cat", "dog"), ("cat", "dog")),
        ("v.json", '{"n02": "dog", "n01": "cat"}', ("n02", "n01"), ("dog", "cat")),
        ("v.json", '{"0": ["n01", "great_owl"], "1": ["n02", "dog"]}', ("n01", "n02"), ("great owl", "dog")),
        ("v.json", '{"' + '", "'.join(f'{c}": "x{c}' for c in range(11)) + '"}', None, None),
    ],
)
def test_files_are_read_in_their_order(
    file: str, content: str, ids: tuple[str, ...] | None, names: tuple[str, ...] | None, tmp_path: Path
) -> None:
    vocabulary = _read(tmp_path / file, content)
    expected = tuple(f"x{c}" for c in range(11))
    assert vocabulary.ids == (ids or expected)
    assert vocabulary.names == (names or expected)


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("v.txt", "", "holds no class name"),
        ("v.txt", "\n \n", "holds no class name"),
        ("v.csv", "", "holds no class name"),
        ("v.csv", "id,name\n", "holds no class name"),
        ("v.json", "[]", "holds no class name"),
        ("v.txt", b"caf\xe9\n", "not UTF-8"),
        ("v.csv", "id,name\nn01,cat\nn02\n", r"row 2 has too few columns: \['n02'\]"),
        ("v.csv", "id,name\nn01,cat\nn02,\n", "class 1 has no name"),
        ("v.csv", "index,title\n0,cat\n", "none of the columns .* is called name or class_name"),
        ("v.csv", "id,name\nn01,cat\nn01,dog\n", "the id 'n01' stands for several classes"),
        ("v.json", '{"0": "cat"', "not JSON"),
        ("v.json", '{"0": "cat", "2": "dog"}', "indices do not run from 0 to 1"),
        ("v.json", "[1, 2]", "expected a list of names"),
        ("v.json", '"cat"', "expected a list of names"),
        ("v.json", '{"0": ["n01", "cat", "x"]}', "expected a list of names"),
        ("v.json", '["cat", ""]', "class 1 has no name"),
    ],
)
def test_a_broken_file_is_refused_saying_where_and_why(
    file: str, content: str | bytes, reason: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=rf"{file}.*{reason}"):
        _read(tmp_path / file, content)


@pytest.mark.parametrize("source", ["imagenet-2k", "no/such/file.txt", "", "long" * 80])
def test_an_unknown_vocabulary_is_refused_with_the_known_names(source: str) -> None:
    with pytest.raises(UsageError, match=r"no such file, and no known name \(imagenet-21k, "):
        load_vocabulary(source)


# Labels


def test_labels_are_found_by_id_and_by_name_whatever_their_case() -> None:
    vocabulary = Vocabulary(("Great Owl", "tench"), ("n01", "n02"))
    asked = ("n01", "N02", "great_owl", " TENCH ", "great  owl", "heron", "")
    assert [vocabulary.index_of(label) for label in asked] == [0, 1, 0, 1, 0, None, None]


def test_an_id_goes_before_another_classes_name() -> None:
    assert Vocabulary(("b", "c"), ("a", "b")).index_of("b") == 1


def test_a_name_of_several_classes_stands_for_none_of_them() -> None:
    vocabulary = Vocabulary(("crane", "crane", "maillot"), ("n01", "n02", "n03"))
    assert vocabulary.index_of("crane") is None
    assert [vocabulary.index_of(identity) for identity in vocabulary.ids] == [0, 1, 2]


def test_names_that_differ_by_case_alone_are_told_apart_as_written_alone() -> None:
    vocabulary = Vocabulary(("China", "china"), ("n01", "n02"))
    assert [vocabulary.index_of(label) for label in ("China", "china", "CHINA")] == [0, 1, None]


def test_ids_that_differ_by_case_alone_are_told_apart_as_written_alone() -> None:
    vocabulary = Vocabulary(("Turkey", "turkey", "cat"), ("Turkey", "turkey", "cat"))
    assert [vocabulary.index_of(label) for label in ("Turkey", "turkey", "TURKEY", "CAT")] == [0, 1, None, 2]


def test_a_whole_number_is_a_class_index_unless_the_ids_are_whole_numbers() -> None:
    named = Vocabulary(("dog", "cat", "bird"), ("n2", "n0", "n1"))
    numbered = Vocabulary(("dog", "cat", "bird"), ("2", "0", "17"))
    assert [named.index_of_number(n) for n in (0, 1, 2, 3, -1)] == [0, 1, 2, None, None]
    assert [numbered.index_of_number(n) for n in (0, 2, 17, 1)] == [1, 0, 2, None]


words = st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), min_size=1, max_size=12)


@given(st.lists(words, min_size=1, max_size=12, unique_by=lambda word: " ".join(word.split()).casefold()))
@example_settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_names_survive_a_json_file_and_the_record_and_are_found_again(
    tmp_path: Path, names: list[str]
) -> None:
    names = [name for name in names if name.strip()]
    if not names:
        return
    vocabulary = _read(tmp_path / "v.json", json.dumps(names))
    assert vocabulary.names == tuple(names)
    read = Vocabulary.from_json(json.loads(json.dumps(vocabulary.to_json())))
    assert read == vocabulary
    folded = [" ".join(name.replace("_", " ").split()).casefold() for name in names]
    for c, name in enumerate(names):
        if folded.count(folded[c]) == 1:
            assert read.index_of(name) == c


# Templates


@pytest.mark.parametrize(
    ("name", "functions"),
    [("imagenet", OPENAI_IMAGENET_TEMPLATES), ("imagenet-simple", SIMPLE_IMAGENET_TEMPLATES)],
)
def test_open_clips_own_templates_are_its_texts(name: str, functions: list) -> None:
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
def test_an_empty_template_file_is_called_so(file: str, content: str, tmp_path: Path) -> None:
    (tmp_path / file).write_text(content)
    with pytest.raises(UsageError, match=rf"^the template file .*{file} is empty"):
        load_templates(str(tmp_path / file))


def test_clips_own_names_of_imagenet_1k_stand_beside_the_synsets() -> None:
    vocabulary = load_vocabulary("imagenet-1k-clip")
    assert vocabulary.ids == load_vocabulary("imagenet-1k").ids
    assert (vocabulary.names[1], vocabulary.names[134], vocabulary.names[517]) == (
        "goldfish",
        "crane bird",
        "construction crane",
    )
