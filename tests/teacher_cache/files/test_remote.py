"""Images on other machines: from a web server with byte ranges, and from fsspec's memory."""

import shutil
import sys
from pathlib import Path

import fsspec
import pytest

from teacher_cache.errors import RppError, UsageError
from teacher_cache.files import remote
from teacher_cache.images.decode import UnreadableImageError
from teacher_cache.images.index import index_images
from teacher_cache.images.location import ByteRange
from teacher_cache.images.reader import ImageReader
from teacher_cache.images.sources import absolute_source, expand_source
from tests.teacher_cache.images.conftest import WebServer, upload
from tests.teacher_cache.images.conftest import memory as memory
from tests.teacher_cache.images.conftest import web as web
from tests.teacher_cache.inputs import (
    ANIMAL_VOCABULARY,
    ANIMALS,
    contents,
    indexed,
    jpeg,
    write_folder,
    write_outer_tar,
    write_parquet,
    write_shard,
    write_shards,
)


def parquet_file(path: Path, count: int = 30, rows_a_group: int = 5) -> Path:
    images = [{"bytes": jpeg(n, 200, 150), "path": f"{n}.jpg"} for n in range(count)]
    labels = [n % 5 for n in range(count)]
    return write_parquet(path, images, labels, ANIMALS, rows_a_group, compression="none")


# In memory


def test_a_folder_of_tars_globs_and_braces_work_on_any_file_system(tmp_path: Path, memory: str) -> None:
    upload(write_shards(tmp_path, shards=3, samples=2), memory)
    here = indexed(tmp_path)
    for source in (memory, f"{memory}/*.tar", f"{memory}/shard-{{000..002}}.tar"):
        samples = indexed(source)
        assert samples.digest == here.digest
        assert contents(samples) == contents(here)
    assert expand_source(f"{memory}/shard-00[02].tar") == [
        "memory:///images/shard-000.tar",
        "memory:///images/shard-002.tar",
    ]


def test_an_image_folder_has_the_same_rows_there_as_here(tmp_path: Path, memory: str) -> None:
    write_folder(tmp_path, images=2)
    for name in ("dog/a/0.jpg", "root.jpg", "dog/z.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(jpeg(len(name)))
    upload(tmp_path, memory)
    here, there = indexed(tmp_path), indexed(memory)
    assert there.keys(slice(None)) == here.keys(slice(None))
    assert there.digest == here.digest
    assert contents(there) == contents(here)


def test_parquet_files_have_the_same_rows_there_as_here(tmp_path: Path, memory: str) -> None:
    parquet_file(tmp_path / "a.parquet")
    upload(tmp_path, memory)
    assert indexed(memory).digest == indexed(tmp_path).digest
    assert contents(indexed(memory)) == contents(indexed(tmp_path))


def test_a_missing_image_is_unreadable_and_a_missing_shard_stops(tmp_path: Path, memory: str) -> None:
    upload(write_folder(tmp_path / "folder", images=1), f"{memory}/folder")
    upload(write_shards(tmp_path / "tars", 1, 1), f"{memory}/tars")
    loose = indexed(f"{memory}/folder").locations(slice(0, 1))[0]
    packed = indexed(f"{memory}/tars").locations(slice(0, 1))[0]
    fsspec.filesystem("memory").rm("/images", recursive=True)
    fsspec.filesystem("memory").mkdir("/images")
    with pytest.raises(UnreadableImageError, match="no such file"):
        ImageReader().read(loose)
    with pytest.raises(RppError, match=r"cannot read image shard memory://.*shard-000\.tar: no such file"):
        ImageReader().read(packed)


# In an object store


def test_every_kind_of_source_is_read_from_an_object_store(tmp_path: Path, bucket: str) -> None:
    write_shards(tmp_path / "tars", shards=2, samples=3)
    write_outer_tar(tmp_path / "outer" / "whole.tar", tmp_path / "tars")
    write_folder(tmp_path / "folder", images=1)
    parquet_file(tmp_path / "parquet" / "a.parquet", count=6)
    upload(tmp_path, bucket)
    for kind in ("tars", "outer", "folder", "parquet"):
        here, there = indexed(tmp_path / kind), indexed(f"{bucket}/{kind}")
        assert there.digest == here.digest
        assert contents(there) == contents(here)


def test_a_new_shard_in_an_object_store_is_seen(tmp_path: Path, bucket: str) -> None:
    """Its file system keeps listings for the whole process."""
    upload(write_shards(tmp_path / "first", shards=2, samples=1), bucket)
    known = indexed(bucket)
    assert index_images(bucket, ANIMAL_VOCABULARY, known)[0] is known
    write_shard(tmp_path / "shard-002.tar", [("9.jpg", jpeg(9))])
    others = fsspec.filesystem("s3", skip_instance_cache=True)
    others.put(str(tmp_path / "shard-002.tar"), f"{bucket}/shard-002.tar")
    assert len(index_images(bucket, ANIMAL_VOCABULARY, known)[0]) == 3


# Names


@pytest.mark.parametrize(
    ("source", "package", "extra"),
    [
        ("s3://b/{0..3}.tar", "s3fs", "s3"),
        ("gs://b/*.tar", "gcsfs", "gcs"),
        ("https://h/a.tar", "aiohttp", "http"),
    ],
)
def test_a_missing_package_is_named_with_its_extra(
    source: str, package: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "_filesystems", {})
    imported = sys.modules["fsspec.registry"]._registry
    for protocol in list(imported):
        monkeypatch.delitem(imported, protocol)
    monkeypatch.delitem(sys.modules, "fsspec.implementations.http", raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UsageError, match=rf"needs {package}: pip install 'rpp-clip\[{extra}\]'"):
        index_images(source, ANIMAL_VOCABULARY)


def test_an_unknown_protocol_is_refused() -> None:
    with pytest.raises(UsageError, match=r"nfs4://server/a\.tar"):
        index_images("nfs4://server/a.tar", ANIMAL_VOCABULARY)


def test_a_source_is_recorded_as_an_absolute_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute_source("a/*.tar") == f"{tmp_path}/a/*.tar"
    assert absolute_source("s3://bucket/a/{0..3}.tar") == "s3://bucket/a/{0..3}.tar"


# From a web server


def test_shards_on_a_web_server_are_indexed_and_read_by_ranges(tmp_path: Path, web: WebServer) -> None:
    members = [(f"{n}.jpg", jpeg(n)) for n in range(3)]
    write_shard(
        web.folder / "a-0.tar", [("big.bin", bytes(5_000_000)), *members, ("more.bin", bytes(5_000_000))]
    )
    write_shard(web.folder / "a-1.tar", [("9.jpg", jpeg(9))])
    samples = indexed(f"{web.url}/a-{{0..1}}.tar")
    assert contents(samples) == {**{f"{n}": jpeg(n) for n in range(3)}, "9": jpeg(9)}
    assert web.sent < 5_000_000  # what lies between the headers was not fetched


def test_tars_within_a_tar_on_a_web_server_are_read_in_place(tmp_path: Path, web: WebServer) -> None:
    write_shards(tmp_path / "loose", shards=2, samples=3)
    write_outer_tar(web.folder / "outer.tar", tmp_path / "loose")
    samples = indexed(f"{web.url}/outer.tar")
    assert samples.digest == indexed(tmp_path / "loose").digest
    assert contents(samples) == contents(indexed(tmp_path / "loose"))


def test_rows_of_parquet_in_order_fetch_each_row_group_once(web: WebServer) -> None:
    size = parquet_file(web.folder / "a.parquet").stat().st_size
    samples = indexed(f"{web.url}/a.parquet")
    assert web.sent < size / 2  # no image was fetched to index them
    web.sent = 0
    assert contents(samples) == {f"{n}.jpg": jpeg(n, 200, 150) for n in range(30)}
    assert size * 0.9 < web.sent < size * 1.1 + 100_000


def test_globs_on_a_web_server_are_refused_with_what_to_do(web: WebServer) -> None:
    with pytest.raises(UsageError, match="a web server cannot list files; name them with braces"):
        index_images(f"{web.url}/*.tar", ANIMAL_VOCABULARY)


def test_a_missing_shard_on_a_web_server_is_named(web: WebServer) -> None:
    write_shard(web.folder / "0.tar", [("0.jpg", jpeg(0))])
    with pytest.raises(UsageError, match=r"/1\.tar does not exist"):
        index_images(f"{web.url}/{{0..1}}.tar", ANIMAL_VOCABULARY)


def test_temporary_failures_are_retried(web: WebServer) -> None:
    write_shard(web.folder / "0.tar", [("0.jpg", jpeg(0))])
    web.failures = 2
    samples = indexed(f"{web.url}/0.tar")
    web.failures = 2
    assert contents(samples) == {"0": jpeg(0)}
    assert web.failures == 0


@pytest.mark.parametrize("kind", ["0.tar", "0.parquet"])
def test_lasting_failures_stop_the_build(kind: str, web: WebServer) -> None:
    write_shard(web.folder / "0.tar", [("0.jpg", jpeg(0))])
    parquet_file(web.folder / "0.parquet")
    places = indexed(f"{web.url}/{kind}").locations(slice(0, 1))
    web.failures = 10**6
    with pytest.raises(RppError, match=rf"cannot read {web.url}/{kind} .*503") as caught:
        ImageReader().read(places[0])
    assert not isinstance(caught.value, UsageError)
    with pytest.raises(RppError, match=rf"cannot read {web.url}/{kind} .*503"):
        indexed(f"{web.url}/{kind}")


def test_an_unreachable_server_is_not_a_missing_file(web: WebServer) -> None:
    url = web.url.rpartition(":")[0] + ":9"  # no server
    with pytest.raises(RppError, match=rf"cannot read {url}/0\.tar \(.*[Cc]onnect") as caught:
        index_images(f"{url}/0.tar", ANIMAL_VOCABULARY)
    assert not isinstance(caught.value, UsageError)
    with pytest.raises(RppError, match=rf"cannot read {url}/0\.tar"):
        ImageReader().read(ByteRange(f"{url}/0.tar", 0, 10))


def test_a_server_without_ranges_is_named(web: WebServer) -> None:
    write_shard(web.folder / "0.tar", [("0.bin", bytes(3_000_000)), ("0.jpg", jpeg(0))])
    web.ranges = False
    with pytest.raises(RppError, match="ignores byte ranges"):
        index_images(f"{web.url}/0.tar", ANIMAL_VOCABULARY)


def test_a_shard_that_became_shorter_on_the_server_stops(web: WebServer) -> None:
    shard = write_shard(web.folder / "0.tar", [("0.jpg", jpeg(0))])
    place = indexed(f"{web.url}/0.tar").locations(slice(0, 1))[0]
    shard.write_bytes(shard.read_bytes()[:1000])
    with pytest.raises(RppError, match=r"cannot read http.*0\.tar \(EOFError: 488 of \d+ bytes"):
        ImageReader().read(place)
    shutil.rmtree(web.folder)
    with pytest.raises(RppError, match="no such file"):
        ImageReader().read(place)
