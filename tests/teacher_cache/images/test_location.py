"""Locations of images, and the numbers that stand for them in the table of samples."""

import pytest

from teacher_cache.images.location import ByteRange, Location, ParquetRow, WholeFile, stored_location


@pytest.mark.parametrize(
    ("path", "offset", "length", "key", "location"),
    [
        ("a.tar", 512, 100, "cat/0", ByteRange("a.tar", 512, 100)),
        ("images", -1, 100, "cat/0.jpg", WholeFile("images/cat/0.jpg", 100)),
        ("a.parquet", 7, -1, "0.jpg", ParquetRow("a.parquet", 7)),
    ],
)
def test_a_row_of_the_table_is_a_location(
    path: str, offset: int, length: int, key: str, location: Location
) -> None:
    assert stored_location(path, offset, length, key) == location


def test_locations_of_a_source_sort_in_reading_order() -> None:
    places: list[Location] = [ByteRange("b", 0, 5), ByteRange("a", 512, 1), ByteRange("a", 0, 9)]
    assert sorted(places) == [ByteRange("a", 0, 9), ByteRange("a", 512, 1), ByteRange("b", 0, 5)]
