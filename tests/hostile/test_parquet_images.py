"""Parquet files of images with paths to other folders, and footers that do not match the file."""

from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from teacher_cache.errors import UsageError
from teacher_cache.images import parquet
from teacher_cache.images.decode import UnreadableImageError
from teacher_cache.images.index import index_images
from teacher_cache.images.reader import ImageReader
from tests.hostile.conftest import fuzzed
from tests.hostile.contract import bounded, is_one_line, tried
from tests.hostile.mutations import damaged
from tests.teacher_cache.inputs import ANIMAL_VOCABULARY, ANIMALS, jpeg, write_parquet


@lru_cache
def valid_files(base: Path) -> list[bytes]:
    """With numbers and a list of classes, with names, compressed and not."""
    images = [{"bytes": jpeg(number, 16, 12), "path": f"{number}.jpg"} for number in range(6)]
    made = [
        write_parquet(base / "numbers.parquet", images, [0, 1, 2, 3, 4, 0], ANIMALS, compression="none"),
        write_parquet(base / "names.parquet", images, [*"abcde", "cat"], rows_a_group=2),
        write_parquet(
            base / "paths.parquet", [{"bytes": None, "path": "numbers.parquet"}, None, *images[:2]]
        ),
    ]
    return [path.read_bytes() for path in made]


@st.composite
def hostile_parquets(draw: st.DrawFn, base: Path) -> bytes:
    content = draw(st.sampled_from(valid_files(base)))
    tail = draw(st.integers(0, 1))  # the footer decides the most
    if not tail:
        return draw(damaged(content))
    length = int.from_bytes(content[-8:-4], "little")
    footer = draw(damaged(content[-8 - length : -8]))
    return content[: -8 - length] + footer + len(footer).to_bytes(4, "little") + b"PAR1"


@given(data=st.data())
@fuzzed(100)
def test_fuzz_parquet_images(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    base = tmp_path_factory.getbasetemp()
    path = base / "hostile.parquet"
    path.write_bytes(data.draw(hostile_parquets(base)))

    def read() -> None:
        samples, notes = index_images(str(path), ANIMAL_VOCABULARY)
        assert all(map(is_one_line, notes)), notes
        reader = ImageReader()
        for place in samples.locations(slice(None)):
            with suppress(UnreadableImageError):
                reader.read(place)

    tried(read)


@pytest.mark.parametrize(
    "name", ["../outside.jpg", "/etc/passwd", "a/../../b.jpg", "file:///etc/passwd", "a\0b"]
)
def test_a_path_in_a_row_is_not_followed(name: str, tmp_path: Path) -> None:
    (tmp_path / "outside.jpg").write_bytes(jpeg(0))
    path = write_parquet(tmp_path / "in" / "a.parquet", [{"bytes": None, "path": name}])
    samples, _ = index_images(str(path), ANIMAL_VOCABULARY)
    with pytest.raises(UnreadableImageError, match="is outside the Parquet file's folder") as refused:
        ImageReader().read(samples.locations(slice(None))[0])
    assert is_one_line(str(refused.value))


def test_more_rows_than_bytes_are_refused(tmp_path: Path) -> None:
    """Three million empty rows take 12 KB in the file, but much memory when read."""
    path = write_parquet(tmp_path / "a.parquet", [None] * 3_000_000, rows_a_group=3_000_000)
    assert path.stat().st_size < 100_000
    with bounded(), pytest.raises(UsageError, match=r"3,000,000 rows in [\d,]+ bytes"):
        index_images(str(path), ANIMAL_VOCABULARY)


def test_a_row_group_that_would_fill_the_memory_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet, "LARGEST_GROUP", 100_000)
    images = [{"bytes": bytes(size), "path": "a.jpg"} for size in (60_000, 60_000, 200)]
    path = write_parquet(tmp_path / "a.parquet", images, rows_a_group=2, use_dictionary=False)
    samples, _ = index_images(str(path), ANIMAL_VOCABULARY)
    places = samples.locations(slice(None))
    with pytest.raises(UnreadableImageError, match=r"its row group has 120,\d+ bytes, more than 100,000"):
        ImageReader().read(places[0])
    assert len(ImageReader().read(places[2])) == 200
