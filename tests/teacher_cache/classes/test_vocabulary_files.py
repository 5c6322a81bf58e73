"""Class ids and names from text, CSV and JSON files."""

from pathlib import Path

import pytest

from teacher_cache.classes.vocabulary import Lemma, Vocabulary, load_vocabulary
from teacher_cache.errors import UsageError


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
        ("v.csv", "label,class\n1,dog\n0,cat\n", ("1", "0"), ("dog", "cat")),
        ("v.csv", "name,label\ncat,animal\ndog,animal\n", ("cat", "dog"), ("cat", "dog")),
        ("v.csv", "label\n7\n3\n", ("7", "3"), ("7", "3")),
        ("v.csv", 'id,name\nn01,"big\ncat"\n', ("n01",), ("big cat",)),
        ("v.txt", "cat\u2028dog\x0c\x85owl\n", ("cat\u2028dog\x0c\x85owl",), ("cat\u2028dog\x0c\x85owl",)),
        ("v.tsv", "synset\tname\nn01\tcat, the\n", ("n01",), ("cat, the",)),
        ("v.json", '["cat", "dog"]', ("cat", "dog"), ("cat", "dog")),
        ("v.txt", '["cat",\n "dog"]\n', ("cat", "dog"), ("cat", "dog")),
        ("v.txt", "['cat',\n 'dog',\n]\n", ("cat", "dog"), ("cat", "dog")),
        ("v.txt", "{0: 'cat, tom',\n 1: 'owl'}", ("cat, tom", "owl"), ("cat, tom", "owl")),
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
        ("v.txt", "", "has no class name"),
        ("v.txt", "\n \n", "has no class name"),
        ("v.csv", "", "has no class name"),
        ("v.csv", "id,name\n", "has no class name"),
        ("v.json", "[]", "has no class name"),
        ("v.txt", b"caf\xe9\n", "not UTF-8"),
        ("v.csv", "id,name\nn01,cat\nn02\n", r"row 2 has too few columns: \['n02'\]"),
        ("v.csv", "id,name\nn01,cat\nn02,\n", "class 1 has no name"),
        ("v.csv", "index,title\n0,cat\n", "none of the columns .* is called name or class_name"),
        ("v.csv", "id,name\nn01,cat\nn01,dog\n", "the id 'n01' belongs to several classes"),
        ("v.json", '{"0": "cat"', "not JSON"),
        ("v.json", '{"0": "cat", "2": "dog"}', "indices do not run from 0 to 1"),
        ("v.json", "[1, 2]", "expected a list of names"),
        ("v.json", '"cat"', "expected a list of names"),
        ("v.json", '{"0": ["n01", "cat", "x"]}', "expected a list of names"),
        ("v.json", '["cat", ""]', "class 1 has no name"),
    ],
)
def test_a_broken_file_is_refused_with_place_and_reason(
    file: str, content: str | bytes, reason: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=rf"{file}.*{reason}"):
        _read(tmp_path / file, content)


@pytest.mark.parametrize("source", ["imagenet-2k", "no/such/file.txt", "", "long" * 80])
def test_an_unknown_vocabulary_is_refused_with_the_known_names(source: str) -> None:
    with pytest.raises(UsageError, match=r"no such file, and no known name \(imagenet-21k, "):
        load_vocabulary(source)


# Synsets, numbers and ids before the names

SYNSETS = ("n01440764", "n01443537", "n01484850")
NAMES = ("tench", "goldfish", "great white shark")


@pytest.mark.parametrize("separator", [" ", "\t", ",", ", ", ": ", " : ", ";", "|", " = "])
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("file", ["classnames.txt", "words.names"])
def test_a_synset_before_the_name_is_the_id(separator: str, ending: str, file: str, tmp_path: Path) -> None:
    """CoOp's classnames.txt, DINOv2's labels.txt, WordNet's words.txt, and other forms of them."""
    lines = [f"{s}{separator}{n}" for s, n in zip(SYNSETS, NAMES, strict=True)]
    vocabulary = _read(tmp_path / file, "\ufeff" + ending.join(lines) + ending)
    assert (vocabulary.ids, vocabulary.names) == (SYNSETS, NAMES)
    assert vocabulary.notes == (
        f"the lines of {tmp_path / file} start with a synset: it is the class's id, the rest its name (id "
        "n01440764, name 'tench')",
    )


KAGGLE = (
    "n01440764 tench, Tinca tinca\n"
    "n01443537 goldfish, Carassius auratus\n"
    "n01484850 great white shark, white shark, man-eater, man-eating shark, Carcharodon carcharias\n"
)


def test_names_with_commas_are_reported(tmp_path: Path) -> None:
    vocabulary = _read(tmp_path / "lemmas.txt", "tench, Tinca tinca\ngoldfish, Carassius auratus\ncat\n")
    assert vocabulary.names[0] == "tench, Tinca tinca"
    assert "2 of 3 class names" in vocabulary.notes[0]
    assert "'tench, Tinca tinca'; each is read as one name" in vocabulary.notes[0]


@pytest.mark.parametrize("name", ["v.tsv", "v.csv"])
def test_columns_of_synsets_and_lemmas_without_a_header(name: str, tmp_path: Path) -> None:
    lines = {
        "v.tsv": "n01440764\ttench, Tinca tinca\nn01443537\tgoldfish\n",
        "v.csv": 'n01440764,tench,Tinca tinca\nn01443537,"goldfish, Carassius auratus"\n',
    }
    (tmp_path / name).write_text(lines[name])
    assert load_vocabulary(tmp_path / name).names == ("tench", "goldfish")
    assert load_vocabulary(tmp_path / name, lemma="last").names[0] == "Tinca tinca"


@pytest.mark.parametrize("file", ["LOC_synset_mapping.txt", "LOC_synset_mapping.csv"])
@pytest.mark.parametrize(
    ("lemma", "name"),
    [("first", "great white shark"), ("last", "Carcharodon carcharias"), ("shortest", "man-eater")],
)
def test_commas_behind_a_synset_separate_lemmas(file: str, lemma: Lemma, name: str, tmp_path: Path) -> None:
    (tmp_path / file).write_text(KAGGLE)
    vocabulary = load_vocabulary(tmp_path / file, lemma=lemma)
    assert vocabulary.ids == SYNSETS
    assert vocabulary.names[2] == name


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("v.txt", '"n01440764","tench"\n"n01443537","goldfish"\n"n01484850","great white shark"\n'),
        ("v.csv", "n01440764\ttench\nn01443537\tgoldfish\nn01484850\tgreat white shark\n"),
        ("v.txt", "wnid\tname\nn01440764\ttench\nn01443537\tgoldfish\nn01484850\tgreat white shark\n"),
        ("v.csv", "wnid|name\nn01440764|tench\nn01443537|goldfish\nn01484850|great white shark\n"),
        ("v.json", '["n01440764 tench", "n01443537 goldfish", "n01484850 great white shark"]'),
        (
            "v.json",
            '{"1": "n01443537 goldfish", "0": "n01440764 tench", "2": "n01484850: great white shark"}',
        ),
        ("v.txt", "n01440764\nn01443537\nn01484850\n"),
        ("imagenet21k_wordnet_ids.txt", "n01440764\r\nn01443537\r\nn01484850\r\n"),
        ("map_clsloc.txt", "n01440764 1 tench\nn01443537 2 goldfish\nn01484850 3 great white shark\n"),
        ("v.csv", "LABEL,NAME\nn01440764,tench\nn01443537,goldfish\nn01484850,great white shark\n"),
        ("v.csv", "name,class\ntench,n01440764\ngoldfish,n01443537\ngreat white shark,n01484850\n"),
        (
            "v.txt",
            "{0: ('n01440764', 'tench'), 1: ('n01443537', 'goldfish'),\n"
            " 2: ('n01484850', 'great_white_shark')}",
        ),
        ("v.csv", "n01440764\nn01443537\nn01484850\n"),
        ("v.json", '["n01440764", "n01443537", "n01484850"]'),
    ],
)
def test_other_files_of_synsets_have_their_names(file: str, content: str, tmp_path: Path) -> None:
    vocabulary = _read(tmp_path / file, content)
    assert (vocabulary.ids, vocabulary.names) == (SYNSETS, NAMES)


def test_synsets_alone_have_the_packaged_lemmas_with_a_note(tmp_path: Path) -> None:
    (tmp_path / "v.txt").write_text("n01484850\n")
    vocabulary = load_vocabulary(tmp_path / "v.txt", lemma="last")
    assert vocabulary.names == ("Carcharodon carcharias",)
    assert "their names come from timm's ImageNetInfo" in vocabulary.notes[0]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (
            "n01440764 tench\ngoldfish\nowl\n",
            r"1 of 3 lines start with a synset .*, 2 do not \('goldfish', 'owl'\)",
        ),
        ("n01440764 tench\nn01443537\n", r"1 of 2 lines .*, 1 do not \('n01443537'\)"),
        ("n01440764\ncat\n", r"0 of 2 lines start with a synset"),
        ("n01440764\nn99999999\n", r"ImageNet-21K has no name for 1 of 2 \(n99999999\)"),
        ("n01440764 tench\nn01440764 goldfish\n", "the id 'n01440764' belongs to several classes"),
        (
            "tench n01440764\ngoldfish n01443537\n",
            r"2 of 2 class names contain a synset behind other words \('tench n01440764', 'goldfish n0144",
        ),
        ("tench (n01440764)\nowl\n", r"1 of 2 class names .* \('tench \(n01440764\)'\)"),
    ],
)
def test_synsets_in_some_lines_are_refused(content: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=reason):
        _read(tmp_path / "v.txt", content)


@pytest.mark.parametrize(
    ("content", "ids", "names"),
    [
        ("0\ttench\n1\tgoldfish\n", ("0", "1"), ("tench", "goldfish")),
        ("0: tench\n1: goldfish\n", ("0", "1"), ("tench", "goldfish")),
        ("0 tench\n1 goldfish\n", ("0", "1"), ("tench", "goldfish")),
        ("0,tench\n1,goldfish\n", ("0", "1"), ("tench", "goldfish")),
        ("1. tench\n2. goldfish\n", ("1", "2"), ("tench", "goldfish")),
        ("1\tgoldfish\n0\ttench\n", ("1", "0"), ("goldfish", "tench")),
        ("1 001.ak47\n2 002.american-flag\n", ("001.ak47", "002.american-flag"), ("ak47", "american-flag")),
        ("001.ak47\n002.american-flag\n", ("001.ak47", "002.american-flag"), ("ak47", "american-flag")),
        (
            "n02085620-Chihuahua\nn02086910-papillon\n",
            ("n02085620-Chihuahua", "n02086910-papillon"),
            ("Chihuahua", "papillon"),
        ),
        ("a1\ttench\nb2\tgoldfish\n", ("a1", "b2"), ("tench", "goldfish")),
        ("a1 | tench\nb2 | goldfish\n", ("a1", "b2"), ("tench", "goldfish")),
    ],
)
def test_a_column_of_numbers_or_ids_is_no_part_of_the_name(
    content: str, ids: tuple[str, ...], names: tuple[str, ...], tmp_path: Path
) -> None:
    vocabulary = _read(tmp_path / "v.txt", content)
    assert (vocabulary.ids, vocabulary.names) == (ids, names)
    assert "start with a" in vocabulary.notes[0]


@pytest.mark.parametrize(
    "names",
    [
        ("7 Up", "Fanta"),
        ("1 series", "3 series", "5 series"),
        ("707-320", "727-200"),
        ("2012 Audi A5", "2012 BMW M3"),
        ("0 tench",),
        ("cat, domestic", "dog", "owl"),
        ("n0144 tench", "goldfish"),
        ("n01440764tench",),
        ("[unknown]", "cat"),
        ("{cat}",),
    ],
)
def test_names_that_only_look_like_columns_stay(names: tuple[str, ...], tmp_path: Path) -> None:
    vocabulary = _read(tmp_path / "v.txt", "\n".join(names))
    assert (vocabulary.names, vocabulary.ids, vocabulary.notes) == (names, names, ())


def test_names_in_quotes_are_read_without_them(tmp_path: Path) -> None:
    assert _read(tmp_path / "v.txt", '"cat"\n"dog"\n').names == ("cat", "dog")
    assert _read(tmp_path / "v.txt", "'cat',\n'dog',\n").names == ("cat", "dog")
    assert _read(tmp_path / "v.txt", '"bra"\ndog\n').names == ('"bra"', "dog")


def test_underscores_in_names_are_reported(tmp_path: Path) -> None:
    vocabulary = _read(tmp_path / "v.txt", "cat\ngolden_retriever\ngreat_owl\n")
    assert vocabulary.names[1] == "golden_retriever"
    assert "2 of 3 class names" in vocabulary.notes[0]
    assert "contain underscores, such as 'golden_retriever'" in vocabulary.notes[0]


@pytest.mark.parametrize("name", ["dog\u200b", "hot\u00a0dog", "\ufeffdog", "cafe\u0301"])
def test_invisible_characters_in_names_are_reported(name: str, tmp_path: Path) -> None:
    vocabulary = _read(tmp_path / "v.txt", f"cat\n{name}\nowl")
    assert vocabulary.names[1] == name
    assert f"1 class names in {tmp_path / 'v.txt'} contain invisible characters" in vocabulary.notes[0]
    assert ascii(name) in vocabulary.notes[0]
