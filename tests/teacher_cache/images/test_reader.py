"""The bytes of a sample, also after its file changed."""

import os
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from teacher_cache.errors import RppError
from teacher_cache.images.decode import UnreadableImageError
from teacher_cache.images.reader import MAX_OPEN_FILES, ImageReader
from tests.teacher_cache.inputs import (
    indexed,
    jpeg,
    write_folder,
    write_shard,
)


def test_many_threads_read_more_files_than_stay_open(tmp_path: Path) -> None:
    count = MAX_OPEN_FILES + 20
    for number in range(count):
        (tmp_path / f"{number:03d}.jpg").write_bytes(bytes([number]) * 100)
    samples = indexed(tmp_path)
    reader = ImageReader()
    rows = random.Random(0).choices(range(count), k=600)
    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(lambda row: reader.read(samples.locations(slice(row, row + 1))[0]), rows))
    assert read == [bytes([row]) * 100 for row in rows]
    assert len(os.listdir("/proc/self/fd")) < 2 * MAX_OPEN_FILES + 60


def test_an_image_file_that_was_overwritten_is_unreadable(tmp_path: Path) -> None:
    write_folder(tmp_path, ["cat"], images=1)
    place = indexed(tmp_path).locations(slice(None))[0]
    (tmp_path / "cat" / "0.jpg").write_bytes(jpeg(5, 300, 300))
    with pytest.raises(UnreadableImageError, match="file is longer than the"):
        ImageReader().read(place)


def test_a_shorter_file_is_unreadable_and_a_missing_shard_raises(tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "s.tar", [("0.jpg", jpeg(0))])
    place = indexed(shard).locations(slice(None))[0]
    shard.write_bytes(shard.read_bytes()[:1000])
    with pytest.raises(UnreadableImageError, match=r"ends after 488 of \d+ bytes"):
        ImageReader().read(place)
    shard.unlink()
    with pytest.raises(RppError, match=r"cannot read image shard .*s\.tar"):
        ImageReader().read(place)
