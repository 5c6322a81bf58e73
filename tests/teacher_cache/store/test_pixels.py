"""Rendered views on disk: tars that other tools read, their index, damage, and the spool."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from teacher_cache.errors import CacheDamagedError, RppError
from teacher_cache.images.decode import decode_image
from teacher_cache.images.reader import ImageReader
from teacher_cache.images.view_codecs import pixel_difference, stored_view
from teacher_cache.store import pixels as pixels_module
from teacher_cache.store.cache_store import folder_at
from teacher_cache.store.header import CacheHeader
from teacher_cache.store.pixels import EncodedViews, PixelRecord, StoredPixels, one_codec, view_key
from tests.teacher_cache.inputs import picture

HEADER = CacheHeader(
    samples=7,
    part_size=4,
    embedding=8,
    classes=2,
    encoding={"name": "factored"},
    teacher={},
    view_policy={"views": 3},
    vocabulary="animals",
    vocabulary_digest="",
    sample_table_digest="",
    images="",
    software="",
    passes=[2, 3],
)


def view(row: int, number: int) -> np.ndarray:
    """Pixels of a view, different in every view."""
    return np.asarray(picture(100 * number + row, 16, 16))


def keep(views: EncodedViews, position: int, place: int, pixels: np.ndarray) -> None:
    content, found = stored_view(pixels, views.codec)
    views.store(position, place, content, pixel_difference(found, pixels))


def encoded(part: int, codec: str = "png", left_out: int | None = None) -> EncodedViews:
    """The views of a part, added from the last to the first."""
    rows, views = HEADER.rows(part), HEADER.views_of(part)
    count = rows.stop - rows.start
    found = EncodedViews(count, len(views), codec, (16, 16))
    for position in range(count)[::-1]:
        for place in range(len(views))[::-1]:
            keep(found, position, place, view(rows.start + position, views[place]))
    found.keep(np.arange(count) != left_out)
    return found


@pytest.fixture(params=["local", "s3"])
def stored(request: pytest.FixtureRequest, tmp_path: Path) -> StoredPixels:
    """All parts of the header, in a folder or in an object store; row 1 is unreadable."""
    place = tmp_path if request.param == "local" else request.getfixturevalue("bucket")
    found = StoredPixels(folder_at(place), HEADER)
    for part in range(HEADER.parts):
        found.write(part, encoded(part, left_out=1 if part % 2 == 0 else None), seen_by_teacher=False)
    return found


def test_each_view_is_found_by_its_row(stored: StoredPixels) -> None:
    rows, views = np.array([6, 0, 3, 0, 5, 2]), np.array([0, 2, 1, 0, 2, 2])
    reader = ImageReader()
    for row, number, place in zip(rows, views, stored.locations(rows, views), strict=True):
        np.testing.assert_array_equal(decode_image(reader.read(place)), view(row, number))


def test_a_view_that_is_not_stored_is_refused(stored: StoredPixels) -> None:
    with pytest.raises(CacheDamagedError, match=r"pixels/000000\.npy .*rpp-cache render writes it again"):
        stored.locations(np.array([0, 1]), np.array([0, 0]))


def test_records_and_damage(stored: StoredPixels) -> None:
    assert stored.committed() == [0, 1, 2, 3]
    assert [record.stored_views for record in stored.records()] == [6, 6, 3, 3]
    assert {record.difference for record in stored.records()} == {0.0}
    assert all(stored.is_intact(part) for part in range(4))
    stored.require_complete(stored.records())
    stored.withdraw(2)
    assert stored.committed() == [0, 1, 3]
    assert not stored.is_intact(2)


@pytest.mark.parametrize("suffix", ["tar", "npy", "json"])
@pytest.mark.parametrize("share", [0.02, 0.4, 0.9])
def test_a_flipped_bit_is_found(suffix: str, share: float, tmp_path: Path) -> None:
    stored = StoredPixels(folder_at(tmp_path), HEADER)
    stored.write(0, encoded(0), seen_by_teacher=False)
    file = tmp_path / "pixels" / f"000000.{suffix}"
    content = bytearray(file.read_bytes())
    content[int(share * len(content))] ^= 1
    file.write_bytes(content)
    assert not StoredPixels(folder_at(tmp_path), HEADER).is_intact(0)


def test_a_tar_that_is_cut_or_missing_is_refused(tmp_path: Path) -> None:
    stored = StoredPixels(folder_at(tmp_path), HEADER)
    record = stored.write(0, encoded(0), seen_by_teacher=False)
    tar = tmp_path / "pixels" / "000000.tar"
    assert tar.stat().st_size == record.tar_bytes
    tar.write_bytes(tar.read_bytes()[:-512])
    with pytest.raises(CacheDamagedError, match=r"000000\.tar"):
        stored.require_complete([record])
    tar.unlink()
    with pytest.raises(CacheDamagedError, match=r"000000\.tar"):
        stored.require_complete([record])


def test_tarfile_and_webdataset_read_the_tars(tmp_path: Path) -> None:
    """Each view is a sample; views come one after the other, rows in order."""
    stored = StoredPixels(folder_at(tmp_path), HEADER)
    stored.write(0, encoded(0, left_out=1), seen_by_teacher=False)
    tar = tmp_path / "pixels" / "000000.tar"
    expected = [(row, number) for number in range(2) for row in (0, 2, 3)]
    with tarfile.open(tar) as members:
        assert [member.name for member in members] == [f"{view_key(*place)}.png" for place in expected]
        for member, place in zip(members, expected, strict=True):
            content = members.extractfile(member)
            assert content is not None
            np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(content.read()))), view(*place))
    webdataset = pytest.importorskip("webdataset")
    found = list(webdataset.WebDataset(str(tar), shardshuffle=False).decode("rgb8"))
    assert [sample["__key__"] for sample in found] == [view_key(*place) for place in expected]
    for sample, place in zip(found, expected, strict=True):
        np.testing.assert_array_equal(sample["png"], view(*place))


def test_the_bytes_do_not_depend_on_order_or_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = StoredPixels(folder_at(tmp_path / "a"), HEADER).write(0, encoded(0, "jpeg95"), False)
    monkeypatch.setattr(pixels_module, "SPOOL_BYTES", 100)
    rows, views = HEADER.rows(0), HEADER.views_of(0)
    others = EncodedViews(4, 2, "jpeg95", (16, 16))
    for place in range(2):
        for position in range(4):
            keep(others, position, place, view(rows.start + position, views[place]))
    second = StoredPixels(folder_at(tmp_path / "b"), HEADER).write(0, others, False)
    assert (first.tar, first.index, first.difference) == (second.tar, second.index, second.difference)
    assert first.difference
    assert first.difference > 0


def test_several_codecs_are_refused() -> None:
    record = PixelRecord(0, (0, 1), (0, 1), "png", (1, 1), "", "", 1, 1, None, False)
    other = PixelRecord(1, (0, 1), (0, 1), "jpeg95", (1, 1), "", "", 1, 1, None, False)
    assert one_codec([], "x") is None
    assert one_codec([record, record], "x") == "png"
    with pytest.raises(RppError, match="several codecs"):
        one_codec([record, other], "x")


def test_a_record_of_a_newer_version_is_read() -> None:
    record = PixelRecord(0, (0, 1), (0, 1), "png", (1, 1), "", "", 1, 1, None, False)
    assert PixelRecord.from_bytes(record.to_bytes(), "x") == record
