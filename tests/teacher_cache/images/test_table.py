"""The sample table: written, read, told from others."""

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from teacher_cache.images.table import SampleTable
from tests.teacher_cache.inputs import (
    indexed,
    jpeg,
    write_shard,
    write_shards,
)


def test_the_table_survives_being_written_and_read(tmp_path: Path) -> None:
    samples = indexed(write_shards(tmp_path / "shards", shards=2, samples=3))
    pq.write_table(samples.table, tmp_path / "samples.parquet")
    read = SampleTable(pq.read_table(tmp_path / "samples.parquet", read_dictionary=["path"]))
    assert read.digest == samples.digest
    assert read.keys(slice(None)) == samples.keys(slice(None))
    assert read.locations(slice(None)) == samples.locations(slice(None))
    np.testing.assert_array_equal(read.labels, samples.labels)


def test_the_digest_does_not_depend_on_how_the_columns_are_cut() -> None:
    keys = ["", "a", "über", "b" * 300, "", "名前"]

    def table(kind: pa.DataType) -> pa.Table:
        numbers = pa.array(range(6), pa.int64())
        return pa.table({"key": pa.array(keys, kind), "length": numbers, "label": numbers.cast(pa.int32())})

    whole = table(pa.large_string())
    pieces = [whole.slice(0, 1), whole.slice(1, 3), whole.slice(4, 0), whole.slice(4)]
    digests = {SampleTable(pa.concat_tables(pieces)).digest, SampleTable(table(pa.string())).digest}
    assert digests == {SampleTable(whole).digest}
    plain = hashlib.blake2b(digest_size=16)
    plain.update(np.array([len(key.encode()) for key in keys], dtype=np.int64).tobytes())
    plain.update("".join(keys).encode() + np.arange(6).tobytes() + np.arange(6, dtype=np.int32).tobytes())
    assert digests == {f"blake2b:{plain.hexdigest()}"}


def test_the_digest_covers_keys_lengths_and_labels_but_not_paths(tmp_path: Path) -> None:
    members = [("0.cls", b"1"), ("0.jpg", jpeg(0)), ("1.cls", b"2"), ("1.jpg", jpeg(1))]
    digest = indexed(write_shard(tmp_path / "a" / "s.tar", members)).digest
    assert indexed(write_shard(tmp_path / "b" / "other.tar", members)).digest == digest
    renamed = [(name.replace("0.", "9."), content) for name, content in members]
    longer = [*members[:1], ("0.jpg", jpeg(0) + b"\0"), *members[2:]]
    relabelled = [("0.cls", b"3"), *members[1:]]
    swapped = members[2:] + members[:2]
    for number, changed in enumerate((renamed, longer, relabelled, swapped, members[:2])):
        assert indexed(write_shard(tmp_path / f"{number}.tar", changed)).digest != digest
