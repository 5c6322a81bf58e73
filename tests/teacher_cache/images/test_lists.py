"""Files that list images: CoOp's splits, FGVC Aircraft's text files."""

import json
from pathlib import Path
from typing import Any

import pytest

from teacher_cache.classes.vocabulary import Vocabulary, load_vocabulary
from teacher_cache.errors import UsageError
from teacher_cache.images.index import index_images
from teacher_cache.images.reader import ImageReader
from tests.teacher_cache.inputs import jpeg

PARTS = {
    "train": [["british_shorthair/1.jpg", 1, "british_shorthair"], ["abyssinian/1.jpg", 0, "abyssinian"]],
    "val": [["abyssinian/2.jpg", 0, "abyssinian"]],
    "test": [
        ["beagle/9.jpg", 2, "beagle"],
        ["abyssinian/3.jpg", 0, "abyssinian"],
        ["gone/0.jpg", 2, "beagle"],
    ],
}


def write_split(folder: Path, data: Any = PARTS, images: str = "images") -> Path:
    """A split file and, in a folder of its data set, all of its images except those of `gone`."""
    for number, (place, *_) in enumerate(item for items in PARTS.values() for item in items):
        if not place.startswith("gone"):
            path = folder / images / place
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(jpeg(number, 8, 8))
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    path = folder / "split_zhou_Pets.json"
    path.write_text(json.dumps(data))
    return path


@pytest.mark.parametrize("images", ["images", "."])
def test_a_part_of_a_split_is_an_image_source_in_its_order(tmp_path: Path, images: str) -> None:
    path = write_split(tmp_path, images=images)
    vocabulary = load_vocabulary(path)
    samples, notes = index_images(f"{path}#test", vocabulary)
    assert samples.keys(slice(None)) == ["beagle/9.jpg", "abyssinian/3.jpg", "gone/0.jpg"]
    assert samples.labels.tolist() == [2, 0, 2]
    assert ImageReader().read(samples.locations(slice(1, 2))[0]) == jpeg(4, 8, 8)
    assert notes == ["1 of 3 classes have no sample"]
    train, _ = index_images(f"{path}#train", vocabulary)
    assert train.labels.tolist() == [1, 0]


def test_the_classes_of_a_split_are_in_the_order_of_its_labels_and_read_without_underscores(
    tmp_path: Path,
) -> None:
    vocabulary = load_vocabulary(write_split(tmp_path))
    assert vocabulary.names == ("abyssinian", "british shorthair", "beagle")
    assert vocabulary.ids == ("abyssinian", "british_shorthair", "beagle")


def test_a_splits_labels_are_looked_up_by_name_in_another_vocabulary(tmp_path: Path) -> None:
    others = ("beagle", "poodle", "Abyssinian")
    samples, notes = index_images(f"{write_split(tmp_path)}#test", Vocabulary(others, others))
    assert samples.labels.tolist() == [0, 2, 0]
    assert notes == ["1 of 3 classes have no sample"]


def test_names_that_are_numbers_or_occur_twice_stay_with_their_labels(tmp_path: Path) -> None:
    items = [[f"{c}.jpg", c, name] for c, name in enumerate(("3", "crane", "1", "crane"))]
    for place, *_ in items:
        (tmp_path / place).write_bytes(jpeg(0, 8, 8))
    path = tmp_path / "split_zhou_Odd.json"
    path.write_text(json.dumps({"train": [], "val": [], "test": items}))
    vocabulary = load_vocabulary(path)
    assert vocabulary.names == ("3", "crane", "1", "crane")
    assert index_images(f"{path}#test", vocabulary)[0].labels.tolist() == [0, 1, 2, 3]


def test_lists_of_images_without_suffix_and_classes_with_spaces(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for name in ("0034309", "0034958"):
        (tmp_path / "images" / f"{name}.jpg").write_bytes(jpeg(0, 8, 8))
    (tmp_path / "variants.txt").write_text("707-320\nCessna 172\nDC-3\n")
    (tmp_path / "images_variant_test.txt").write_text("0034309 Cessna 172\n0034958 707-320\n")
    vocabulary = load_vocabulary(tmp_path / "variants.txt")
    samples, _ = index_images(str(tmp_path / "images_variant_test.txt"), vocabulary)
    assert samples.keys(slice(None)) == ["0034309.jpg", "0034958.jpg"]
    assert samples.labels.tolist() == [1, 0]
    assert len(ImageReader().read(samples.locations(slice(0, 1))[0])) > 100


def refused(path: Path | str, match: str) -> None:
    with pytest.raises(UsageError, match=match) as error:
        index_images(str(path), Vocabulary(("abyssinian",), ("abyssinian",)))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "part", "said"),
    [
        ({}, "", r"contains several parts; name one: split_zhou_Pets.json#train, .*#val, .*#test"),
        ({}, "#valid", "has no part 'valid'"),
        ({"test": [["/etc/passwd.jpg", 0, "abyssinian"]]}, "#test", "is outside the list's folder"),
        ({"test": [["../x.jpg", 0, "abyssinian"]]}, "#test", "is outside the list's folder"),
        ({"test": [["x.sh", 0, "abyssinian"]]}, "#test", "is not an image"),
        ({"test": [["x.jpg", 0, "beagle"]]}, "#test", "label 0 is both 'abyssinian' and 'beagle'"),
        ({"test": [["x.jpg", 7, "lion"]]}, "#test", "labels do not run from 0"),
        ({"test": [["x.jpg", True, "lion"]]}, "#test", "test, entry 0: expected"),
        ({"test": ["x.jpg"]}, "#test", "test, entry 0: expected"),
        ({"test": []}, "#test", "lists no image for test"),
        ({"test": {"x.jpg": 0}}, "#test", "test, entry 0: expected"),
        ({"test": [["nowhere/0.jpg", 0, "abyssinian"]]}, "#test", "nowhere/0.jpg is neither in"),
    ],
)
def test_wrong_splits_are_refused_in_one_line(
    tmp_path: Path, change: dict[str, Any], part: str, said: str
) -> None:
    refused(f"{write_split(tmp_path, PARTS | change)}{part}", said)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\xff\xfe", "is not UTF-8"),
        (b"0034309\n", "line 1: expected 'IMAGE CLASS NAME', found '0034309'"),
        (b"\n\n", "lists no image"),
        (b"../x 707\n", "is outside the list's folder"),
    ],
)
def test_wrong_text_lists_are_refused_in_one_line(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "list.txt").write_bytes(content)
    refused(tmp_path / "list.txt", said)


def test_a_missing_remote_or_malformed_list_is_refused(tmp_path: Path) -> None:
    (tmp_path / "names.json").write_text('["cat"]')
    refused(f"{tmp_path / 'names.json'}#test", "is not a split file")
    (tmp_path / "broken.json").write_text("{")
    refused(f"{tmp_path / 'broken.json'}#test", "is not JSON")
    refused(f"{tmp_path / 'absent.json'}#test", "absent.json does not exist")
    refused("memory://x/split.json#test", "read from a local disk")
