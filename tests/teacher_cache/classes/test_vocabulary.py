"""Class names of ImageNets, lemmas, repeated names, and labels that are looked up."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as example_settings
from hypothesis import strategies as st
from timm.data import ImageNetInfo

from teacher_cache.classes.vocabulary import Duplicates, Lemma, Vocabulary, load_vocabulary
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


def test_a_repeated_name_takes_its_next_free_lemma_or_stays() -> None:
    """ImageNet-1K has two maillots, of which one is also a tank suit, and two cranes with one lemma each."""
    kept = load_vocabulary("imagenet-1k", duplicates="keep")
    assert kept.duplicate_names == {"crane": 2, "maillot": 2}
    vocabulary = load_vocabulary("imagenet-1k")
    changed = [c for c in range(1000) if vocabulary.names[c] != kept.names[c]]
    assert [(vocabulary.ids[c], vocabulary.names[c]) for c in changed] == [("n03710721", "tank suit")]
    assert vocabulary.duplicate_names == {"crane": 2}


@pytest.mark.parametrize("name", ["imagenet-1k", "imagenet-21k"])
def test_definitions_make_all_names_different(name: str) -> None:
    vocabulary = load_vocabulary(name, duplicates="definition")
    assert vocabulary.duplicate_names == {}
    lemmas = load_vocabulary(name)
    assert all(
        mine == other or mine.startswith(f"{other}, ")
        for mine, other in zip(vocabulary.names, lemmas.names, strict=True)
    )


def test_repeated_names_can_be_refused() -> None:
    with pytest.raises(UsageError, match=r"more than once: 'crane' \(2 classes\), 'maillot' \(2 classes\)"):
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


def test_names_of_clip_have_the_synsets_of_imagenet_1k() -> None:
    vocabulary = load_vocabulary("imagenet-1k-clip")
    assert vocabulary.ids == load_vocabulary("imagenet-1k").ids
    assert (vocabulary.names[1], vocabulary.names[134], vocabulary.names[517]) == (
        "goldfish",
        "crane bird",
        "construction crane",
    )


def test_labels_are_found_by_id_and_by_name_whatever_their_case() -> None:
    vocabulary = Vocabulary(("Great Owl", "tench"), ("n01", "n02"))
    asked = ("n01", "N02", "great_owl", " TENCH ", "great  owl", "heron", "")
    assert [vocabulary.index_of(label) for label in asked] == [0, 1, 0, 1, 0, None, None]


def test_an_id_goes_before_another_classes_name() -> None:
    assert Vocabulary(("b", "c"), ("a", "b")).index_of("b") == 1


def test_a_name_of_several_classes_is_unknown() -> None:
    vocabulary = Vocabulary(("crane", "crane", "maillot"), ("n01", "n02", "n03"))
    assert vocabulary.index_of("crane") is None
    assert [vocabulary.index_of(identity) for identity in vocabulary.ids] == [0, 1, 2]


def test_names_that_differ_in_case_only_need_an_exact_match() -> None:
    vocabulary = Vocabulary(("China", "china"), ("n01", "n02"))
    assert [vocabulary.index_of(label) for label in ("China", "china", "CHINA")] == [0, 1, None]


def test_ids_that_differ_in_case_only_need_an_exact_match() -> None:
    vocabulary = Vocabulary(("Turkey", "turkey", "cat"), ("Turkey", "turkey", "cat"))
    assert [vocabulary.index_of(label) for label in ("Turkey", "turkey", "TURKEY", "CAT")] == [0, 1, None, 2]


@pytest.mark.parametrize(
    "other", ["caf\u00e9 au lait", "cafe\u0301_au lait", "CAF\u00c9 AU LAIT", "\uff43afe\u0301 au\u200b lait"]
)
def test_a_name_is_found_in_any_unicode_form(other: str) -> None:
    vocabulary = Vocabulary(("caf\u00e9 au lait", "tench"), ("a", "b"))
    assert vocabulary.index_of(other) == 0
    assert Vocabulary((other, "tench"), ("a", "b")).index_of("cafe\u0301 au lait") == 0


def test_names_that_differ_in_form_only_need_an_exact_match_and_are_reported() -> None:
    vocabulary = Vocabulary(("caf\u00e9", "cafe\u0301", "China", "china", "owl"), ("a", "b", "c", "d", "e"))
    assert [vocabulary.index_of(name) for name in ("caf\u00e9", "cafe\u0301", "CAF\u00c9")] == [0, 1, 0]
    assert vocabulary.index_of("cafe\u0301\u200b") is None
    assert vocabulary.similar_names == [("caf\u00e9", "cafe\u0301"), ("China", "china")]
    assert vocabulary.remarks == [
        "the names of 4 classes differ from another name only in case, spaces, underscores or Unicode form, "
        "such as 'caf\u00e9' and 'cafe\\u0301'; 'China' and 'china'; text towers may read them alike"
    ]
    assert Vocabulary(("owl", "cat"), ("owl", "cat")).remarks == []


def test_a_whole_number_is_a_class_index_unless_the_ids_are_whole_numbers() -> None:
    named = Vocabulary(("dog", "cat", "bird"), ("n2", "n0", "n1"))
    numbered = Vocabulary(("dog", "cat", "bird"), ("2", "0", "17"))
    assert [named.index_of_number(n) for n in (0, 1, 2, 3, -1)] == [0, 1, 2, None, None]
    assert [numbered.index_of_number(n) for n in (0, 2, 17, 1)] == [1, 0, 2, None]


words = st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), min_size=1, max_size=12)


@given(st.lists(words, min_size=1, max_size=12, unique_by=lambda word: " ".join(word.split()).casefold()))
@example_settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_names_survive_a_json_file_and_the_record_and_are_found(tmp_path: Path, names: list[str]) -> None:
    names = [name for name in names if name.strip()]
    if not names:
        return
    (tmp_path / "v.json").write_text(json.dumps(names))
    vocabulary = load_vocabulary(tmp_path / "v.json")
    assert vocabulary.names == tuple(names)
    read = Vocabulary.from_json(json.loads(json.dumps(vocabulary.to_json())))
    assert read == vocabulary
    folded = [" ".join(name.replace("_", " ").split()).casefold() for name in names]
    for c, name in enumerate(names):
        if folded.count(folded[c]) == 1:
            assert read.index_of(name) == c


def test_names_may_be_given_as_a_list() -> None:
    names = ["cat", "grand piano", "crane", "crane"]
    for listed in (names, tuple(names), np.array(names), iter(names)):
        vocabulary = load_vocabulary(listed, "a photo of a {}.")
        assert vocabulary.names == tuple(names)
        assert vocabulary.ids == ("cat", "grand piano", "crane#2", "crane#3")
    for wrong, message in ((["cat", " "], "must not be empty"), (["cat", 3], "1 of 2 are not"), ([], "none")):
        with pytest.raises(UsageError, match=message):
            load_vocabulary(wrong)
