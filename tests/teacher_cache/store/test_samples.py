"""Rows read from `samples.parquet` equal those of the complete table."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import settings as example_settings
from hypothesis import strategies as st

from teacher_cache.errors import CacheDamagedError
from teacher_cache.images.table import SampleTable
from teacher_cache.store import samples
from teacher_cache.store.checksums import file_checksum
from teacher_cache.store.samples import StoredSamples, write_samples

ROWS = 23


def table(path: str = "shard") -> SampleTable:
    """Some rows in three files."""
    return SampleTable(
        pa.table(
            {
                "key": pa.array([f"sample-{row}" for row in range(ROWS)], pa.large_string()),
                "path": pa.array([f"{path}-{row % 3}" for row in range(ROWS)]).dictionary_encode(),
                "offset": pa.array([512 * row for row in range(ROWS)], pa.int64()),
                "length": pa.array([100 + row for row in range(ROWS)], pa.int64()),
                "label": pa.array([row % 5 - 1 for row in range(ROWS)], pa.int32()),
            }
        )
    )


@pytest.fixture(scope="module", autouse=True)
def small_groups() -> None:
    """Row groups of four rows, of which two are kept."""
    patched = pytest.MonkeyPatch()
    patched.setattr(samples, "GROUP_ROWS", 4)
    patched.setattr(samples, "GROUPS_KEPT", 2)
    yield
    patched.undo()


def written(of: SampleTable) -> io.BytesIO:
    file = io.BytesIO()
    checksum = write_samples(of, file)
    assert file_checksum(io.BytesIO(file.getvalue())) == checksum
    return io.BytesIO(file.getvalue())


@example_settings(deadline=None)
@given(rows=st.lists(st.integers(0, ROWS - 1)), bounds=st.tuples(st.integers(0, ROWS), st.integers(0, ROWS)))
def test_any_rows_in_any_order(rows: list[int], bounds: tuple[int, int]) -> None:
    whole, stored = table(), StoredSamples(written(table()))
    for wanted in (np.array(rows, dtype=np.int64), slice(*sorted(bounds)), slice(None)):
        assert stored.keys(wanted) == whole.keys(wanted)
        assert stored.locations(wanted) == whole.locations(wanted)
    part = stored.part(slice(*sorted(bounds)))
    assert (len(part), part.labels.tolist()) == (
        max(bounds) - min(bounds),
        whole.labels[min(bounds) : max(bounds)].tolist(),
    )


def test_length_labels_and_digest() -> None:
    whole, stored = table(), StoredSamples(written(table()))
    assert len(stored) == ROWS
    np.testing.assert_array_equal(stored.labels, whole.labels)
    assert stored.digest == whole.digest


def test_moved_images_are_distinguished() -> None:
    stored = StoredSamples(written(table()))
    assert stored.same_as(table())
    assert stored.same_as(stored)
    noted = SampleTable(table().table.replace_schema_metadata({"made": "of this"}))
    assert not stored.same_as(noted)
    assert StoredSamples(written(noted)).schema.metadata == {b"made": b"of this"}
    assert StoredSamples(written(noted)).same_as(noted)
    assert not stored.same_as(table("moved"))
    assert not stored.same_as(SampleTable(table().table.slice(1)))


def test_only_the_requested_row_groups_are_read(tmp_path: Path) -> None:
    file = written(table())
    stored = StoredSamples(file)
    before = bytearray(file.getbuffer())
    group = stored._parquet.metadata.row_group(3).column(0)
    start = group.dictionary_page_offset or group.data_page_offset
    before[start : start + group.total_compressed_size] = bytes(group.total_compressed_size)
    damaged = StoredSamples(io.BytesIO(bytes(before)))
    assert damaged.keys(slice(0, 12)) == table().keys(slice(0, 12))
    with pytest.raises(CacheDamagedError, match=r"samples\.parquet is not readable"):
        damaged.keys(slice(12, 13))
