"""Caches in an object store (a local S3 server) have the guarantees of those on a disk, without a rename."""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
import zarr

from teacher_cache import open_cache
from teacher_cache.build import build_cache
from teacher_cache.command_settings import ExtendSettings, RelabelSettings
from teacher_cache.errors import CacheBusyError, CacheUnreachableError, UsageError
from teacher_cache.extend import extend_cache
from teacher_cache.files import owner_record
from teacher_cache.relabel import relabel_cache
from teacher_cache.store.cache_store import CacheStore, folder_at
from teacher_cache.store.remote_folder import RemoteFolder
from teacher_cache.store.verify import verify_store
from tests.processes import ForkServer
from tests.teacher_cache.inputs import decoded_arrays, settings

KILLED_BUILD = """
import os, signal, time
from teacher_cache.store.parts import StoredParts
write_record = StoredParts.write_record

def kill_before_record(self, record):
    if record.part == 2:
        while not {0, 1} <= {*self.committed()}:  # the part before may still be on its way
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)
    write_record(self, record)

StoredParts.write_record = kill_before_record
from teacher_cache.cli import main
main()
"""


def objects() -> Any:
    """The store as another program sees it."""
    return fsspec.filesystem("s3", use_listings_cache=False)


def assert_equals(remote: str, local: Path) -> None:
    """A cache in the store holds what one on a disk holds, read by zarr alone."""
    group = zarr.open_group(remote, mode="r")
    for name, values in decoded_arrays(local).items():
        np.testing.assert_array_equal(np.asarray(group[name][:]), values, err_msg=name)


def test_a_killed_build_is_resumed(
    processes: ForkServer, bucket: str, cache: Path, teacher: Path, shards: Path, names: Path
) -> None:
    asked = settings(shards, names, f"{bucket}/zarr", teacher)
    options = ("images", "classes", "out", "teacher", "part_size", "batch_size", "threads", "device")
    arguments = [f"--{name.replace('_', '-')}={getattr(asked, name)}" for name in options]
    killed = processes.call("python", "-c", KILLED_BUILD, "build", *arguments)
    assert killed.code == -signal.SIGKILL, killed.err
    store = CacheStore.open(asked.out)
    committed = store.parts.committed()
    assert committed in ([0, 1], [0, 1, 3])  # the part behind the killed one may have been faster
    with pytest.raises(UsageError, match=rf"not complete: {4 - len(committed)} of 4 parts"):
        open_cache(asked.out)
    assert objects().exists(f"{asked.out}/build.lock")
    assert build_cache(asked).parts_computed == 4 - len(
        committed
    )  # the lock of a process that is gone is taken over at once
    assert not objects().exists(f"{asked.out}/build.lock")
    assert build_cache(asked).parts_computed == 0
    assert_equals(asked.out, cache)


@pytest.fixture(scope="module")
def remote(s3_server: str, teacher: Path, shards: Path, names: Path) -> str:
    """The cache of `conftest.py`, built in the store; who changes it copies it."""
    build_cache(settings(shards, names, "s3://bucket/shared", teacher))
    return "s3://bucket/shared"


@pytest.fixture
def copy(remote: str, bucket: str) -> str:
    """A cache in the store that a test may change."""
    objects().cp(remote, bucket, recursive=True)
    return bucket


def test_a_flipped_bit_is_found_and_repaired(
    copy: str, cache: Path, teacher: Path, shards: Path, names: Path
) -> None:
    assert not verify_store(CacheStore.open(copy))
    for key in ("image_features/c/2/0/0", "samples.parquet", "crops/zarr.json"):
        content = bytearray(objects().cat_file(f"{copy}/{key}"))
        content[len(content) // 3] ^= 1
        objects().pipe_file(f"{copy}/{key}", bytes(content))
    store = CacheStore.open(copy)
    damage = verify_store(store)
    assert (damage.parts, damage.tables) == ([2], ["crops/zarr.json", "samples.parquet"])
    store.parts.withdraw(2)
    assert store.parts.missing() == [2]
    assert build_cache(settings(shards, names, copy, teacher)).parts_computed == 1
    assert not verify_store(CacheStore.open(copy))
    assert_equals(copy, cache)


def test_reads_equal_those_from_a_disk(remote: str, cache: Path) -> None:
    there, here = open_cache(remote), open_cache(cache)
    torch.testing.assert_close(there.logits([7, 1]), here.logits([7, 1]))
    np.testing.assert_array_equal(there.labels, here.labels)
    np.testing.assert_array_equal(there.crops([3]), here.crops([3]))
    assert there.samples.keys(slice(None)) == here.samples.keys(slice(None))
    assert CacheStore.open(remote).parts.bytes_per_view() > 0


def test_views_and_vocabularies_are_added(copy: str, tmp_path: Path) -> None:
    (tmp_path / "german.txt").write_text("Katze\nHund\n")
    relabel_cache(copy, RelabelSettings(name="german", classes=str(tmp_path / "german.txt"), device="cpu"))
    assert extend_cache(copy, ExtendSettings(views=2, device="cpu")).parts_computed == 4
    found = open_cache(copy, "german")
    assert (found.num_views, found.logits([0], view=1).shape) == (2, (1, 2))
    assert not verify_store(CacheStore.open(copy))


def test_an_interrupted_creation_is_repeated(
    bucket: str, cache: Path, teacher: Path, shards: Path, names: Path, monkeypatch: Any
) -> None:
    asked = settings(shards, names, bucket, teacher)
    write = RemoteFolder.write

    def cut(self: RemoteFolder, key: str, content: bytes) -> None:
        if key == "zarr.json":
            raise RuntimeError("cut")
        write(self, key, content)

    with monkeypatch.context() as patched:
        patched.setattr(RemoteFolder, "write", cut)
        with pytest.raises(RuntimeError, match="cut"):
            build_cache(asked)
    assert not CacheStore.exists(bucket)
    with pytest.raises(UsageError, match="no cache at s3://"):
        open_cache(bucket)
    assert build_cache(asked).parts_computed == 4
    assert_equals(bucket, cache)
    objects().pipe_file(f"{bucket}-other/somebodys.txt", b"hello")
    with pytest.raises(UsageError, match=r"-other exists and is not a cache; choose another --out"):
        build_cache(asked.model_copy(update={"out": f"{bucket}-other"}))


def test_an_object_whose_writing_fails_does_not_appear(bucket: str) -> None:
    folder = folder_at(bucket)

    def write_some() -> None:
        with folder.writing("table") as file:
            file.write(bytes(100))
            raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        write_some()
    assert folder.entries() == {}


def held_by(copy: str, **holder: Any) -> None:
    """Put a lock there."""
    record = {"owner": "somebody", "host": "elsewhere", "pid": 7, "time": time.time()} | holder
    objects().pipe_file(f"{copy}/build.lock", json.dumps(record).encode())


def test_the_second_of_two_builds_is_refused(copy: str) -> None:
    store = CacheStore.open(copy, writable=True)
    with store.locked():
        busy = rf"another build is writing {copy}; .* \(process {os.getpid()} on .*, last seen 0:00:0\d ago\)"
        with pytest.raises(CacheBusyError, match=busy), CacheStore.open(copy).locked():
            pass
        assert objects().exists(f"{copy}/build.lock")
    with store.locked():
        pass
    assert not objects().exists(f"{copy}/build.lock")


def test_an_expired_lock_is_taken_over(copy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owner_record, "SETTLE_SECONDS", 0.0)
    store = CacheStore.open(copy, writable=True)
    held_by(copy, time=time.time() - owner_record.DEAD_AFTER_SECONDS / 2)
    with (
        pytest.raises(CacheBusyError, match=r"process 7 on elsewhere, last seen 0:02:3\d ago"),
        store.locked(),
    ):
        pass
    held_by(copy, time=time.time() - owner_record.DEAD_AFTER_SECONDS - 1)
    with store.locked():
        assert json.loads(objects().cat_file(f"{copy}/build.lock"))["pid"] == os.getpid()
        held_by(copy)  # who was taken over in turn leaves the other's lock alone
    assert json.loads(objects().cat_file(f"{copy}/build.lock"))["host"] == "elsewhere"


def test_a_lock_is_renewed_during_a_build(copy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owner_record, "RENEW_SECONDS", 0.02)

    def renewed() -> float:
        return float(json.loads(objects().cat_file(f"{copy}/build.lock"))["time"])

    with CacheStore.open(copy, writable=True).locked():
        first, until = renewed(), time.monotonic() + 5
        while renewed() == first:
            assert time.monotonic() < until


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("s3://bucket/none", "no cache at s3://bucket/none"),
        ("s3://no-bucket/none", "no cache at s3://no-bucket/none"),
        ("teapot://bucket/none", "cannot open teapot://bucket/none: "),
        ("adl://bucket/none", "adl://bucket/none needs a package that is not installed"),
    ],
)
@pytest.mark.usefixtures("s3_server")
def test_places_without_a_cache(url: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        open_cache(url)


def test_a_missing_bucket_is_refused(s3_server: str, teacher: Path, shards: Path, names: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot write s3://no-bucket/zarr: .*bucket does not exist"):
        build_cache(settings(shards, names, "s3://no-bucket/zarr", teacher))


def test_a_store_that_does_not_answer_is_not_damage(copy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`verify` withdraws damaged parts: a network error must not count as damage."""
    store = CacheStore.open(copy)

    async def lost(*_: Any, **__: Any) -> bytes:
        raise ConnectionResetError("connection reset by peer")

    monkeypatch.setattr(type(store.parts._zarr.fs), "_cat_file", lost)
    lines = r"cannot reach .* \(ConnectionResetError: connection reset by peer\); what is committed is safe"
    with pytest.raises(CacheUnreachableError, match=lines):
        verify_store(store)
    with pytest.raises(CacheUnreachableError, match=lines):
        store.parts.array("crops")[:]
