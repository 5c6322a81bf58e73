"""Class indices from the labels of a source."""

import itertools
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from teacher_cache.classes.vocabulary import Vocabulary, load_vocabulary
from teacher_cache.errors import UsageError
from teacher_cache.images.index import index_images
from teacher_cache.images.statements import LabelChoice
from tests.teacher_cache.inputs import (
    ANIMAL_VOCABULARY,
    SYNSETS,
    indexed,
    jpeg,
    write_folder,
    write_parquet,
    write_shard,
)


@pytest.mark.parametrize(
    ("name", "content", "label"),
    [
        ("cls", b"3", 3),
        ("cls", b" 4\n", 4),
        ("cls", b"\xef\xbb\xbf4\r\n", 4),
        ("cls", b"dog", 1),
        ("cls", b"Great_Horned  OWL", 2),
        ("cls", b"-1", -1),
        ("cls", b"-7", -1),
        ("cls", b"", -1),
        ("json", b'{"label": 2}', 2),
        ("json", b'\xef\xbb\xbf{"label": 2}', 2),
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


def chosen(source: Path, labels: LabelChoice, vocabulary: Vocabulary = SYNSETS) -> list[int]:
    """The hard labels with this choice among contradictory ones."""
    found: list[int] = index_images(str(source), vocabulary, labels=labels)[0].labels.tolist()
    return found


def test_a_label_file_takes_precedence_over_the_synset_in_the_name(tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "s.tar", [("n01484850_1.jpg", jpeg(2)), ("n01484850_1.cls", b"0")])
    with pytest.raises(UsageError, match=r"labels of 1 of 1 samples contradict.*: cls 0, name n01484850"):
        indexed(shard, SYNSETS)
    assert [chosen(shard, labels) for labels in ("first", "cls", "name", "none")] == [[0], [0], [2], [-1]]


# Several labels of one sample


@pytest.mark.parametrize("order", list(itertools.permutations(("jpg", "cls", "json"))))
def test_cls_goes_before_json_in_any_order(order: tuple[str, ...], tmp_path: Path) -> None:
    contents = {"jpg": jpeg(0), "cls": b"1", "json": b'{"label": 4}'}
    shard = write_shard(tmp_path / "s.tar", [(f"7.{kind}", contents[kind]) for kind in order])
    with pytest.raises(UsageError, match=r"1 of 1 samples contradict one another \(7: cls 1, json label 4\)"):
        indexed(shard)
    assert chosen(shard, "first", ANIMAL_VOCABULARY) == [1]
    assert chosen(shard, "json", ANIMAL_VOCABULARY) == [4]


@pytest.mark.parametrize(
    ("members", "label"),
    [
        ({"cls": b"1", "json": b'{"label": 1}'}, 1),
        ({"cls": b"1", "json": b'{"label": "Goldfish", "synset": "n01443537"}'}, 1),
        ({"cls": b"1", "json": b'{"synset": "n09999999", "caption": "a shark"}'}, 1),
        ({"json": b'{"label": 1, "class_name": "goldfish"}'}, 1),
        ({"json": b'{"label": "Goldfisch", "wnid": "n01443537"}'}, 1),
        ({"cls": b"", "json": b'{"label": 1}'}, 1),
        ({"cls": b"-1", "json": b'{"label": -1}'}, -1),
        ({"json": b'{"label": 1.0}'}, 1),
        ({"json": b'{"label": NaN}'}, -1),
        ({"json": b'{"class_id": 2}'}, 2),
        ({"json": b'{"class_id": 17, "label": 1}'}, 1),
        ({"json": b'{"class_id": 2, "class_name": "tench"}'}, 0),
    ],
)
def test_labels_that_mean_one_class_or_none_agree(
    members: dict[str, bytes], label: int, tmp_path: Path
) -> None:
    named = [(f"0.{kind}", content) for kind, content in members.items()]
    shard = write_shard(tmp_path / "s.tar", [("0.jpg", jpeg(0)), *named])
    assert indexed(shard, SYNSETS).labels.tolist() == [label]


@pytest.mark.parametrize("content", [b"[[0, 0, 5, 5]]", b"{", b"\xff", b'{"label": [1, 2]}'])
def test_a_json_that_is_no_label_beside_a_cls_is_left_out(content: bytes, tmp_path: Path) -> None:
    for members in ([("0.json", content), ("0.cls", b"1")], [("0.cls", b"1"), ("0.json", content)]):
        shard = write_shard(tmp_path / "s.tar", [("0.jpg", jpeg(0)), *members])
        assert indexed(shard).labels.tolist() == [1]


@pytest.mark.parametrize(
    ("name", "members", "said"),
    [
        ("0", {"json": b'{"label": 1, "class_name": "tench"}'}, "0: json label 1, json class_name tench"),
        ("0", {"json": b'{"label": 1, "cls": 2}'}, "0: json label 1, json cls 2"),
        ("n01440764/n01443537_5", {}, "n01440764/n01443537_5: folder n01440764, name n01443537"),
        ("n01440764_1", {"json": b'{"synset": "n01443537"}'}, "json synset n01443537, name n01440764"),
    ],
)
def test_contradictory_labels_are_refused_with_both(
    name: str, members: dict[str, bytes], said: str, tmp_path: Path
) -> None:
    named = [(f"{name}.{kind}", content) for kind, content in members.items()]
    shard = write_shard(tmp_path / "s.tar", [(f"{name}.jpg", jpeg(0)), *named])
    with pytest.raises(UsageError, match=said):
        indexed(shard, SYNSETS)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("0.cls", "0.cls"), "1 of 1 samples contradict one another .0: cls 1, cls 2"),
        (("0.coarse.cls", "0.fine.cls"), "0: cls 1, cls 2"),
        (("0.json", "0.meta.json"), "0: json label 1, json label 2"),
    ],
)
def test_two_label_files_of_one_sample_are_compared(
    names: tuple[str, str], said: str, tmp_path: Path
) -> None:
    contents = (b"1", b"2") if names[0].endswith("cls") else (b'{"label": 1}', b'{"label": 2}')
    members = [("0.jpg", jpeg(0)), *zip(names, contents, strict=True)]
    with pytest.raises(UsageError, match=said):
        indexed(write_shard(tmp_path / "s.tar", members), SYNSETS)
    same = [(name, contents[0]) for name in names]
    shard = write_shard(tmp_path / "same.tar", [("0.jpg", jpeg(0)), *same])
    assert indexed(shard, SYNSETS).labels.tolist() == [1]


@pytest.mark.parametrize(
    ("labels", "notes"),
    [
        (
            {"goldfish/0": b"0", "tench/1": b"0", "train/2": b"1"},
            ["the folders of 1 samples name another class than the label, which counts (goldfish/0)"],
        ),
        (
            {"goldfish/0": None, "tench/1": None, "tench/2": b"0"},
            [
                "the folders of 2 samples name a class, but only an image folder's folders are labels "
                "(goldfish/0, tench/1)"
            ],
        ),
        ({"tench/0": b"1", "train/1": b"0"}, []),  # one folder only, which may be of another meaning
        ({"0/0": b"1", "1/1": b"0", "2": b"0"}, []),
    ],
)
def test_folders_in_a_tar_are_compared_with_labels(
    labels: dict[str, bytes | None], notes: list[str], tmp_path: Path
) -> None:
    members = [(f"{name}.jpg", jpeg(0)) for name in labels]
    members += [(f"{name}.cls", label) for name, label in labels.items() if label is not None]
    shard = write_shard(tmp_path / "s.tar", sorted(members))
    table, found = index_images(str(shard), SYNSETS)
    assert [note for note in found if note.startswith("the folders of")] == notes
    assert table.labels.tolist() == [-1 if label is None else int(label) for label in labels.values()]


def test_a_choice_decides_only_where_it_has_a_label(tmp_path: Path) -> None:
    members = [("n01440764_1.jpg", jpeg(0)), ("n01440764_1.cls", b"1")]
    shard = write_shard(tmp_path / "s.tar", members)
    with pytest.raises(UsageError, match="choose with --labels which one counts: cls, name, first"):
        chosen(shard, "json")


def test_contradictions_of_many_samples_are_counted_with_the_first_three(tmp_path: Path) -> None:
    for shard in range(3):
        members = [m for n in range(4) for m in ((f"{shard}{n}.jpg", jpeg(n)), (f"{shard}{n}.cls", b"1"))]
        members += [(f"{shard}9.jpg", jpeg(9)), (f"{shard}9.json", b'{"label": 4}'), (f"{shard}9.cls", b"0")]
        write_shard(tmp_path / f"{shard}.tar", members)
    with pytest.raises(UsageError, match=r"labels of 3 of 15 samples .*\(09: .*; 19: .*; 29: "):
        indexed(tmp_path)
    samples, notes = index_images(str(tmp_path), ANIMAL_VOCABULARY, labels="json")
    assert samples.labels.tolist() == [1, 1, 1, 1, 4] * 3
    report = samples.label_report
    assert report is not None
    assert (report.contradictory, report.first_contradictory) == (3, ["09", "19", "29"])
    assert (report.labelled, report.unlabelled, report.choice, report.notes) == (15, 0, "json", notes)
    assert any(note.endswith("; that in json counts") for note in notes)


def test_a_file_name_is_compared_with_its_class_folder(tmp_path: Path) -> None:
    for place in ("tench/n01440764_1.jpg", "tench/n01440764_2.jpg", "goldfish/n01484850_3.jpg"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        (tmp_path / place).write_bytes(jpeg(0))
    with pytest.raises(UsageError, match=r"labels of 1 of 3 .*: folder goldfish, name n01484850"):
        indexed(tmp_path, SYNSETS)
    assert chosen(tmp_path, "folder") == [1, 0, 0]
    assert chosen(tmp_path, "name") == [2, 0, 0]


def test_columns_and_paths_of_parquet_are_compared(tmp_path: Path) -> None:
    images = [{"bytes": jpeg(n), "path": f"n01440764_{n}.JPEG"} for n in range(3)]
    path = write_parquet(tmp_path / "a.parquet", images, [0, 0, 1], SYNSETS.ids)
    with pytest.raises(UsageError, match=r"of 1 of 3 .*: column label n01443537, name n01440764"):
        indexed(path, SYNSETS)
    assert chosen(path, "column") == [0, 0, 1]
    table = pq.read_table(path).append_column("class_name", pa.array(["tench", "goldfish", "tench"]))
    pq.write_table(table, path)
    with pytest.raises(UsageError, match="labels of 2 of 3 samples"):
        indexed(path, SYNSETS)


def test_a_list_is_compared_with_its_folders(tmp_path: Path) -> None:
    (tmp_path / "n01440764").mkdir()
    for name in ("1", "2"):
        (tmp_path / "n01440764" / f"{name}.jpg").write_bytes(jpeg(0))
    (tmp_path / "list.txt").write_text("n01440764/1.jpg tench\nn01440764/2.jpg goldfish\n")
    with pytest.raises(UsageError, match=r"of 1 of 2 .*: list goldfish, folder n01440764"):
        indexed(tmp_path / "list.txt", SYNSETS)
    assert chosen(tmp_path / "list.txt", "list") == [0, 1]


def test_a_label_of_minus_one_stays_none_with_a_note(tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "s.tar", [("n01440764_1.jpg", jpeg(0)), ("n01440764_1.cls", b"-1")])
    samples, notes = index_images(str(shard), SYNSETS)
    assert samples.labels.tolist() == [-1]
    assert notes[0].startswith("1 samples have the label -1, which means none, beside a class")


def test_another_numbering_under_class_id_is_reported(tmp_path: Path) -> None:
    record = json.dumps({"class_id": 2, "label": 1}).encode()
    shard = write_shard(tmp_path / "s.tar", [("0.jpg", jpeg(0)), ("0.json", record)])
    samples, notes = index_images(str(shard), SYNSETS)
    assert samples.labels.tolist() == [1]
    assert "have a class_id that is not their class" in notes[0]


def test_class_id_fills_in_only_in_the_same_numbering(tmp_path: Path) -> None:
    def labels(*records: dict[str, Any]) -> list[int]:
        members = [
            m
            for n, r in enumerate(records)
            for m in ((f"{n}.jpg", jpeg(n)), (f"{n}.json", json.dumps(r).encode()))
        ]
        found: list[int] = indexed(write_shard(tmp_path / "s.tar", members), SYNSETS).labels.tolist()
        return found

    unknown = {"class_id": 2, "class_name": "Hai"}
    assert labels({"class_id": 0, "class_name": "tench"}, unknown) == [0, 2]
    assert labels({"class_id": 1, "class_name": "tench"}, unknown) == [0, -1]


def test_samples_without_a_label_are_counted(tmp_path: Path) -> None:
    members = [(f"{n}.jpg", jpeg(n)) for n in range(5)] + [("5.jpg", jpeg(5)), ("5.cls", b"1")]
    samples, notes = index_images(str(write_shard(tmp_path / "s.tar", members)), ANIMAL_VOCABULARY)
    assert notes[0] == "5 of 6 samples have no label (0, 1, 2, ...)"
    report = samples.label_report
    assert report is not None
    assert (report.labelled, report.unlabelled, report.first_unlabelled) == (1, 5, ["0", "1", "2"])


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("cafe\u0301", "caf\u00e9"),
        ("\uff54ench", "tench"),
        ("tench\u200b", "tench"),
        ("\ufefftench", "Tench"),
    ],
)
def test_spellings_that_differ_in_unicode_form_match_with_a_note(
    written: str, read: str, tmp_path: Path
) -> None:
    (tmp_path / "images" / written).mkdir(parents=True)
    (tmp_path / "images" / written / "0.jpg").write_bytes(jpeg(0))
    samples, notes = index_images(str(tmp_path / "images"), Vocabulary((read, "owl"), ("a", "b")))
    assert samples.labels.tolist() == [0]
    assert any("1 samples differ from the vocabulary only in Unicode form" in note for note in notes)
    shard = write_shard(tmp_path / "s.tar", [("0.jpg", jpeg(0)), ("0.cls", read.encode())])
    samples, _ = index_images(str(shard), Vocabulary((written, "owl"), ("a", "b")))
    assert samples.labels.tolist() == [0]


def test_a_source_that_names_another_number_of_classes_is_reported(tmp_path: Path) -> None:
    images = [{"bytes": jpeg(0), "path": None}]
    path = write_parquet(tmp_path / "a.parquet", images, [0], ("tench", "goldfish"))
    _, notes = index_images(str(path), SYNSETS)
    assert notes[0] == "the source names 2 classes, 2 of them in the vocabulary, which has 3"


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


def test_labels_that_may_count_from_1_are_refused_with_what_to_do(tmp_path: Path) -> None:
    members = [
        (f"{n}.{kind}", jpeg(n) if kind == "jpg" else b"%d" % n) for n in (1, 2) for kind in ("jpg", "cls")
    ]
    shard = write_shard(tmp_path / "s.tar", members)
    (tmp_path / "v.txt").write_text("tench\ngoldfish\n")
    with pytest.raises(
        UsageError, match=r"write '1: NAME', '2: NAME', \.\.\. in it if the labels count from 1"
    ):
        indexed(shard, load_vocabulary(tmp_path / "v.txt"))
    (tmp_path / "v.txt").write_text("1: tench\n2: goldfish\n")
    assert indexed(shard, load_vocabulary(tmp_path / "v.txt")).labels.tolist() == [0, 1]


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
