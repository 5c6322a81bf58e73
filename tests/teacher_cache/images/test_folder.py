"""Image folders -> rows."""

import os
import random
from pathlib import Path

import pytest

from teacher_cache.classes.vocabulary import Vocabulary
from teacher_cache.errors import UsageError
from teacher_cache.images.decode import UnreadableImageError
from teacher_cache.images.reader import ImageReader
from tests.teacher_cache.inputs import (
    indexed,
    jpeg,
    write_folder,
)


def test_rows_of_a_folder_are_sorted_regardless_of_the_order_of_writing(tmp_path: Path) -> None:
    names = [f"{folder}/{number}.jpg" for folder in ("dog", "cat") for number in range(5)]
    random.Random(0).shuffle(names)
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(jpeg(0, 8, 8))
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    assert indexed(tmp_path).keys(slice(None)) == sorted(names)
    deeper = ["cow/0.jpg", *(f"cow/{folder}/0.jpg" for folder in ("a", "a/a", "a/b", "b", "c"))]
    for name in reversed(deeper):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(jpeg(0, 8, 8))
    expected = [*sorted(names)[:5], *deeper, *sorted(names)[5:]]
    animals = Vocabulary(("cat", "cow", "dog"), ("cat", "cow", "dog"))
    assert indexed(tmp_path, animals).keys(slice(None)) == expected


def test_the_first_folder_is_the_class_and_images_in_the_root_have_none(tmp_path: Path) -> None:
    for name in ("cat/a/b/0.png", "root.jpg", "dog/1.JPG"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(jpeg(0))
    samples = indexed(tmp_path)
    assert dict(zip(samples.keys(slice(None)), samples.labels.tolist(), strict=True)) == {
        "root.jpg": -1,
        "cat/a/b/0.png": 0,
        "dog/1.JPG": 1,
    }


def test_a_broken_link_keeps_its_row(tmp_path: Path) -> None:
    write_folder(tmp_path, classes=["cat"], images=2)
    (tmp_path / "cat" / "5.jpg").symlink_to(tmp_path / "gone.jpg")
    samples = indexed(tmp_path)
    assert samples.keys(slice(None)) == ["cat/0.jpg", "cat/1.jpg", "cat/5.jpg"]
    with pytest.raises(UnreadableImageError, match="No such file"):
        ImageReader().read(samples.locations(slice(2, 3))[0])


def test_a_file_name_that_is_not_utf8_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    Path(os.fsdecode(bytes(tmp_path / "cat") + b"/caf\xe9.jpg")).write_bytes(jpeg(0))
    with pytest.raises(UsageError, match=r"^the name 'cat/caf\\xe9\.jpg' is not UTF-8; rename it$"):
        indexed(tmp_path)


def test_a_link_to_a_folder_above_is_not_followed_and_one_beside_is(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "images", ("cat", "dog"))
    (source / "cat" / "loop").symlink_to(source)
    (source / "cat" / "self").symlink_to(source / "cat")
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "9.jpg").write_bytes(jpeg(9))
    (source / "dog" / "linked").symlink_to(tmp_path / "more")
    keys = indexed(source).keys(slice(None))
    assert keys == ["cat/0.jpg", "cat/1.jpg", "dog/0.jpg", "dog/1.jpg", "dog/linked/9.jpg"]
