"""Parquet in the layout of Hugging Face image data sets -> rows, labels and bytes."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from teacher_cache.errors import RppError, UsageError
from teacher_cache.images.decode import UnreadableImageError
from teacher_cache.images.index import index_images
from teacher_cache.images.reader import ImageReader
from tests.teacher_cache.inputs import (
    ANIMALS,
    SYNSETS,
    contents,
    indexed,
    jpeg,
    write_parquet,
)


def rows(count: int, first: int = 0) -> list[dict[str, Any]]:
    """Images as `datasets` stores them: bytes, and the original file name."""
    return [{"bytes": jpeg(first + n), "path": f"{first + n}.jpg"} for n in range(count)]


def test_rows_of_several_files_are_read_from_their_locations(tmp_path: Path) -> None:
    for name, first in (("train-00000-of-00002", 0), ("train-00001-of-00002", 10)):
        write_parquet(tmp_path / f"{name}.parquet", rows(10, first), [n % 5 for n in range(10)], ANIMALS)
    for source in (
        tmp_path,
        tmp_path / "train-*.parquet",
        tmp_path / "train-{00000..00001}-of-00002.parquet",
    ):
        samples = indexed(source)
        assert samples.keys(slice(None)) == [f"{n}.jpg" for n in range(20)]
        assert samples.labels.tolist() == [n % 5 for n in range(10)] * 2
        assert contents(samples) == {f"{n}.jpg": jpeg(n) for n in range(20)}


def test_images_without_a_path_are_named_by_file_and_row(tmp_path: Path) -> None:
    images = [{"bytes": jpeg(n), "path": None} for n in range(3)]
    samples = indexed(write_parquet(tmp_path / "val.parquet", images, [0, 1, 2]))
    assert contents(samples) == {f"val/{n}": jpeg(n) for n in range(3)}


@pytest.mark.parametrize("column", ["image", "img", "picture"])
def test_the_column_of_images_is_found(column: str, tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", rows(2), [0, 1], columns=(column, "label"))
    table = pq.read_table(path)
    table = table.add_column(0, "caption", pa.array(["x", "y"]))
    if column != "picture":
        table = table.add_column(0, "mask", pa.array([{"bytes": b"mask", "path": "mask.png"}] * 2))
    pq.write_table(table, path)
    assert contents(indexed(path)) == {"0.jpg": jpeg(0), "1.jpg": jpeg(1)}


def test_a_file_without_images_is_refused_with_its_columns(tmp_path: Path) -> None:
    pq.write_table(pa.table({"url": ["a"], "label": [0]}), tmp_path / "a.parquet")
    with pytest.raises(UsageError, match=r"a\.parquet has no column of images.*its columns are url, label"):
        indexed(tmp_path)


@pytest.mark.parametrize(
    ("labels", "classes", "column", "found"),
    [
        ([2, 0, -1], None, "label", [2, 0, -1]),
        ([2, 0, None], None, "labels", [2, 0, -1]),
        (["dog", "Cat", "3"], None, "fine_label", [1, 0, 3]),
        ([1, 0, 2], ["axolotl", "cat", "unicorn"], "label", [0, 3, -1]),
        ([1, 0, 2], ["axolotl", "cat", "sea_urchin"], "animal", [0, 3, 4]),
        (None, None, "label", [-1, -1, -1]),
    ],
)
def test_labels_are_numbers_or_names(
    labels: list[Any] | None, classes: list[str] | None, column: str, found: list[int], tmp_path: Path
) -> None:
    path = write_parquet(tmp_path / "a.parquet", rows(3), labels, classes, columns=("image", column))
    assert indexed(path).labels.tolist() == found


def test_classes_with_other_names_in_the_vocabulary_are_matched_by_number(tmp_path: Path) -> None:
    """As in the hub's ImageNet-1K, whose names are all lemmas of a synset: few equal a class name here."""
    classes = ["tench, Tinca tinca", "goldfish", "great white shark, white shark"]
    path = write_parquet(tmp_path / "a.parquet", rows(3), [2, 1, 0], classes)
    samples, notes = index_images(str(path), SYNSETS)
    assert samples.labels.tolist() == [2, 1, 0]
    assert notes == ["classes were matched to the vocabulary by number: not all of their names are in it"]


def test_classes_in_another_order_are_never_matched_by_number(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", rows(3), [2, 1, 0], ["goldfish", "tench", "hammerhead"])
    samples, notes = index_images(str(path), SYNSETS)
    assert samples.labels.tolist() == [-1, 0, 1]
    assert any("1 samples of 1 classes outside the vocabulary (hammerhead)" in note for note in notes)


def test_other_classes_of_another_number_are_refused_naming_both(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", rows(2), [0, 1], ["ant", "bee", "wasp", "fly"])
    with pytest.raises(UsageError, match=r"has 4 classes \(ant, bee, wasp, \.\.\.\), the vocabulary 3"):
        indexed(path, SYNSETS)


def test_files_that_name_different_classes_are_refused_naming_both(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", rows(2), [0, 1], ["cat", "dog"])
    write_parquet(tmp_path / "b.parquet", rows(2), [0, 1], ["dog", "cat"])
    with pytest.raises(UsageError, match=r"a\.parquet and .*b\.parquet name different classes"):
        indexed(tmp_path)


@pytest.mark.parametrize(
    ("labels", "classes"), [([[0], [1]], None), ([0.5, 1.0], None), ([0, 5], ["cat", "dog"])]
)
def test_an_invalid_label_is_refused_with_its_row(
    labels: list[Any], classes: list[str] | None, tmp_path: Path
) -> None:
    path = write_parquet(tmp_path / "a.parquet", rows(2), labels, classes)
    with pytest.raises(UsageError, match=r"a\.parquet: row [01]: the label"):
        indexed(path)


def test_images_given_by_path_are_read_beside_the_file(tmp_path: Path) -> None:
    (tmp_path / "data" / "pictures").mkdir(parents=True)
    (tmp_path / "data" / "pictures" / "0.jpg").write_bytes(jpeg(0))
    (tmp_path / "secret.jpg").write_bytes(b"not yours")
    names = ["pictures/0.jpg", "pictures/1.jpg", "../secret.jpg", str(tmp_path / "secret.jpg"), None]
    images: list[Any] = [{"bytes": None, "path": name} for name in names]
    samples = indexed(write_parquet(tmp_path / "data" / "a.parquet", [*images, None], [0] * 6))
    places, reader = samples.locations(slice(None)), ImageReader()
    assert reader.read(places[0]) == jpeg(0)
    reasons = [
        r"cannot read .*1\.jpg: No such",
        "is outside the Parquet",
        "is outside the Parquet",
        "neither bytes nor",
        "no image",
    ]
    for place, reason in zip(places[1:], reasons, strict=True):
        with pytest.raises(UnreadableImageError, match=reason):
            reader.read(place)


def test_a_damaged_file_is_refused_by_name(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", rows(3), [0, 1, 2])
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UsageError, match=r"a\.parquet is not a readable Parquet file"):
        indexed(path)


def test_a_damaged_row_group_affects_only_its_rows(tmp_path: Path) -> None:
    images = [{"bytes": jpeg(n) * 3, "path": f"{n}.jpg"} for n in range(9)]
    path = write_parquet(tmp_path / "a.parquet", images, [0] * 9, rows_a_group=3, compression="zstd")
    samples = indexed(path)
    column = pq.ParquetFile(path).metadata.row_group(1).column(0)
    content = bytearray(path.read_bytes())
    start = column.dictionary_page_offset or column.data_page_offset
    content[start : start + 40] = bytes(40)
    path.write_bytes(content)
    reader = ImageReader()
    for row, place in enumerate(samples.locations(slice(None))):
        if 3 <= row < 6:
            with pytest.raises(UnreadableImageError, match="its row group is damaged"):
                reader.read(place)
        else:
            assert reader.read(place) == images[row]["bytes"]


def test_a_missing_or_shorter_file_raises(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", rows(6), [0] * 6)
    places = indexed(path).locations(slice(None))
    write_parquet(path, rows(2), [0] * 2)
    with pytest.raises(RppError, match="changed since it was indexed"):
        ImageReader().read(places[5])
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(RppError, match=r"cannot read .*a\.parquet: "):
        ImageReader().read(places[0])
    path.unlink()
    with pytest.raises(RppError, match=r"cannot read .*a\.parquet: "):
        ImageReader().read(places[0])


def test_the_digest_covers_keys_and_labels_but_not_the_file(tmp_path: Path) -> None:
    digest = indexed(write_parquet(tmp_path / "a.parquet", rows(3), [0, 1, 2])).digest
    assert indexed(write_parquet(tmp_path / "b.parquet", rows(3), [0, 1, 2])).digest == digest
    assert indexed(write_parquet(tmp_path / "a.parquet", rows(3, 1), [0, 1, 2])).digest != digest
    assert indexed(write_parquet(tmp_path / "a.parquet", rows(3), [0, 1, 1])).digest != digest
