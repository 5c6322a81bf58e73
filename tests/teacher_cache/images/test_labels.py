"""Class indices from the labels of a source."""

import json
from pathlib import Path

import pytest

from teacher_cache.classes.vocabulary import Vocabulary
from teacher_cache.errors import UsageError
from teacher_cache.images.index import index_images
from tests.teacher_cache.inputs import (
    ANIMAL_VOCABULARY,
    SYNSETS,
    indexed,
    jpeg,
    write_folder,
    write_shard,
)


@pytest.mark.parametrize(
    ("name", "content", "label"),
    [
        ("cls", b"3", 3),
        ("cls", b" 4\n", 4),
        ("cls", b"dog", 1),
        ("cls", b"Great_Horned  OWL", 2),
        ("cls", b"-1", -1),
        ("cls", b"-7", -1),
        ("cls", b"", -1),
        ("json", b'{"label": 2}', 2),
        ("json", b'{"cls": "4"}', 4),
        ("json", b'{"class_name": "axolotl", "width": 5}', 3),
        ("json", b'{"caption": "a dog"}', -1),
        ("json", b'{"label": null, "class": 1}', 1),
        ("json", b'{"label": null}', -1),
        ("txt", b"1", -1),
    ],
)
def test_labels_are_read_from_cls_and_json(name: str, content: bytes, label: int, tmp_path: Path) -> None:
    shard = write_shard(
        tmp_path / "s.tar",
        [("0.jpg", jpeg(0)), (f"0.{name}", content), ("1.cls", b"0"), ("1.jpg", jpeg(1))],
    )
    assert indexed(shard).labels.tolist() == [label, 0]


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"[1, 2", b"5"])
def test_an_unreadable_label_names_its_member(content: bytes, tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "s.tar", [("0.json", content), ("0.jpg", jpeg(0))])
    with pytest.raises(UsageError, match=r"s\.tar:0\.json: cannot read the label"):
        indexed(shard)


def test_the_synset_in_a_members_or_shards_name_is_its_label(tmp_path: Path) -> None:
    write_shard(tmp_path / "n01443537.tar", [("n01443537_10.JPEG", jpeg(0)), ("other.JPEG", jpeg(1))])
    write_shard(
        tmp_path / "train-0.tar",
        [("n01484850/1.jpg", jpeg(2)), ("n01440764_2.jpg", jpeg(3)), ("plain.jpg", jpeg(4))],
    )
    samples = indexed(tmp_path, SYNSETS)
    assert samples.labels.tolist() == [1, 1, 2, 0, -1]


def test_a_label_file_takes_precedence_over_the_synset_in_the_name(tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "s.tar", [("n01484850_1.jpg", jpeg(2)), ("n01484850_1.cls", b"0")])
    assert indexed(shard, SYNSETS).labels.tolist() == [0]


def test_folders_are_classes_by_id_or_name(tmp_path: Path) -> None:
    write_folder(tmp_path, classes=["n01484850", "Tench", "n01443537"], images=1)
    samples = indexed(tmp_path, SYNSETS)
    assert samples.keys(slice(None)) == ["Tench/0.jpg", "n01443537/0.jpg", "n01484850/0.jpg"]
    assert samples.labels.tolist() == [0, 1, 2]


def test_unknown_folder_names_of_the_right_number_are_matched_in_sorted_order(tmp_path: Path) -> None:
    write_folder(tmp_path, classes=["class_c", "class_a", "class_b"], images=1)
    samples, notes = index_images(str(tmp_path), SYNSETS)
    assert samples.labels.tolist() == [0, 1, 2]
    assert any("sorted order" in note for note in notes)


def test_a_vocabulary_of_another_number_of_classes_is_refused_naming_both(tmp_path: Path) -> None:
    write_folder(tmp_path, classes=["u", "v"], images=1)
    with pytest.raises(UsageError, match=r"has 2 classes \(u, v, \.\.\.\), the vocabulary 3 \(n01440764"):
        indexed(tmp_path, SYNSETS)


@pytest.mark.parametrize("label", ["3", "40000"])
def test_label_indices_beyond_the_vocabulary_are_refused(label: str, tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "s.tar", [("0.cls", label.encode()), ("0.jpg", jpeg(0))])
    with pytest.raises(
        UsageError, match=rf"has the label {label}, but the vocabulary has 3 classes \(0 to 2\)"
    ):
        indexed(shard, SYNSETS)


def test_a_label_too_large_for_a_class_index_names_its_member(tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "s.tar", [("0.cls", b"99999999999999999999"), ("0.jpg", jpeg(0))])
    with pytest.raises(UsageError, match=r"s\.tar:0\.cls: the label 9+ is too large for a class index"):
        indexed(shard)


def test_classes_outside_the_vocabulary_and_without_samples_are_counted(tmp_path: Path) -> None:
    write_folder(tmp_path, classes=["tench", "heron"], images=3)
    samples, notes = index_images(str(tmp_path), SYNSETS)
    assert samples.labels.tolist() == [-1, -1, -1, 0, 0, 0]
    assert notes == [
        "3 samples of 1 classes outside the vocabulary (heron) have no hard label",
        "2 of 3 classes have no sample",
    ]


def test_a_source_without_labels_is_indexed_with_a_note(tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "s.tar", [("0.jpg", jpeg(0)), ("1.jpg", jpeg(1))])
    samples, notes = index_images(str(shard), ANIMAL_VOCABULARY)
    assert samples.labels.tolist() == [-1, -1]
    assert notes == ["no sample has a hard label"]


def test_a_json_label_of_a_large_record_is_found(tmp_path: Path) -> None:
    record = {"caption": "x" * 20_000, "synset": "n01484850"}
    shard = write_shard(tmp_path / "s.tar", [("0.jpg", jpeg(0)), ("0.json", json.dumps(record).encode())])
    assert indexed(shard, SYNSETS).labels.tolist() == [2]


def test_folders_named_by_numbers_are_class_indices_and_not_in_sorted_order(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "images", [str(c) for c in range(12)], images=1)
    vocabulary = Vocabulary(*[tuple(f"class {c}" for c in range(12))] * 2)
    table, notes = index_images(str(source), vocabulary)
    assert [int(key.partition("/")[0]) for key in table.keys(slice(None))] == table.labels.tolist()
    assert notes == []
    (source / "11").rename(source / "12")  # counted from 1, perhaps: all would be off by one
    with pytest.raises(UsageError, match="has the label 12, but the vocabulary has 12 classes \\(0 to 11\\)"):
        index_images(str(source), vocabulary)


def test_an_integer_label_is_the_id_if_ids_are_integers(tmp_path: Path) -> None:
    vocabulary = Vocabulary(("dog", "cat", "bird"), ("2", "0", "90"))
    members = [
        member for n in (0, 2, 90) for member in ((f"{n}.cls", str(n).encode()), (f"{n}.jpg", jpeg(n)))
    ]
    shard = write_shard(tmp_path / "s.tar", members)
    assert index_images(str(shard), vocabulary)[0].labels.tolist() == [1, 0, 2]
    write_shard(tmp_path / "s.tar", [("0.cls", b"1"), ("0.jpg", jpeg(0))])
    with pytest.raises(
        UsageError, match=r"has the label 1, but the vocabulary has 3 classes .numbered 2, 0, 90"
    ):
        index_images(str(shard), vocabulary)


def test_unknown_names_of_a_shard_are_not_matched_by_their_order(tmp_path: Path) -> None:
    shard = write_shard(
        tmp_path / "s.tar", [("0.cls", b"kot"), ("0.jpg", jpeg(0)), ("1.cls", b"pies"), ("1.jpg", jpeg(1))]
    )
    with pytest.raises(UsageError, match="they share no id or name"):
        index_images(str(shard), Vocabulary(("cat", "dog"), ("cat", "dog")))
