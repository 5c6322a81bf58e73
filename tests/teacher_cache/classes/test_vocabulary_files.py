"""Class ids and names from text, CSV and JSON files."""

from pathlib import Path

import pytest

from teacher_cache.classes.vocabulary import Vocabulary, load_vocabulary
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
