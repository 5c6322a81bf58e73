"""All kinds of sources give the same samples; unchanged sources are not read again."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as example_settings
from hypothesis import strategies as st

from teacher_cache.classes.vocabulary import Vocabulary
from teacher_cache.errors import UsageError
from teacher_cache.images.decode import UnreadableImageError, decode_image
from teacher_cache.images.index import index_images
from teacher_cache.images.reader import ImageReader
from teacher_cache.images.table import SampleTable
from tests.teacher_cache.images.conftest import WebServer, upload
from tests.teacher_cache.inputs import (
    ANIMAL_VOCABULARY,
    ANIMALS,
    SYNSETS,
    encoded,
    indexed,
    jpeg,
    picture,
    write_folder,
    write_outer_tar,
    write_parquet,
    write_shard,
    write_shards,
)

Picture = tuple[int, bytes]  # class index, file


def as_shards(folder: Path, pictures: list[Picture]) -> Path:
    for number, (label, content) in enumerate(pictures):
        members = [(f"{number}.cls", str(label).encode()), (f"{number}.jpg", content)]
        write_shard(folder / f"{number}.tar", members)
    return folder


def as_synset_tars(folder: Path, pictures: list[Picture]) -> Path:
    for c, synset in enumerate(SYNSETS.ids):
        members = [
            (f"{synset}_{n}.JPEG", content) for n, (label, content) in enumerate(pictures) if label == c
        ]
        write_shard(folder / f"{synset}.tar", members)
    return folder


def as_outer_tar(folder: Path, pictures: list[Picture]) -> Path:
    return write_outer_tar(folder / "whole.tar", as_synset_tars(folder / "loose", pictures))


def as_folder(folder: Path, pictures: list[Picture]) -> Path:
    for number, (label, content) in enumerate(pictures):
        path = folder / SYNSETS.ids[label] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def as_parquet(folder: Path, pictures: list[Picture]) -> Path:
    images = [{"bytes": content, "path": None} for _, content in pictures]
    labels = [label for label, _ in pictures]
    return write_parquet(folder / "train.parquet", images, labels, SYNSETS.ids, rows_a_group=2)


KINDS: list[Callable[[Path, list[Picture]], Path]] = [
    as_shards,
    as_synset_tars,
    as_outer_tar,
    as_folder,
    as_parquet,
]


def seen(source: Path) -> list[Any]:
    """Label and pixels of every row, or the reason why it has none, sorted."""
    samples, reader = indexed(source, SYNSETS), ImageReader()
    found: list[Any] = []
    for label, place in zip(samples.labels.tolist(), samples.locations(slice(None)), strict=True):
        try:
            image = decode_image(reader.read(place))
            found.append((label, image.shape, image.tobytes()))
        except UnreadableImageError as error:
            found.append((label, (0, 0, 0), str(error).encode()))
    return sorted(found)


@given(
    st.lists(
        st.tuples(
            st.integers(0, 2),
            st.integers(0, 10**6),
            st.integers(1, 40),
            st.integers(1, 40),
            st.sampled_from(["JPEG", "PNG"]),
        ),
        min_size=1,
        max_size=7,
    )
)
@example_settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_kind_of_source_gives_the_same_labels_and_pixels(
    tmp_path_factory: pytest.TempPathFactory, drawn: list[tuple[int, int, int, int, str]]
) -> None:
    folder = tmp_path_factory.mktemp("same")
    pictures = [(label, encoded(picture(seed, w, h), kind)) for label, seed, w, h, kind in drawn]
    expected = sorted(
        (label, decode_image(content).shape, decode_image(content).tobytes()) for label, content in pictures
    )
    for kind in KINDS:
        assert seen(kind(folder / kind.__name__, pictures)) == expected, kind.__name__


FAULTS = {"empty": b"", "cut": jpeg(1)[:300], "text": b"<html>", "zeros": bytes(4000)}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fault", FAULTS)
def test_an_unreadable_image_affects_only_its_row(
    kind: Callable[[Path, list[Picture]], Path], fault: str, tmp_path: Path
) -> None:
    pictures = [(n % 3, jpeg(n)) for n in range(6)]
    whole = seen(kind(tmp_path / "whole", pictures))
    faulty = [*pictures[:3], (pictures[3][0], FAULTS[fault]), *pictures[4:]]
    found = seen(kind(tmp_path / "faulty", faulty))
    assert len(found) == len(whole)
    assert len(set(found) & set(whole)) == len(whole) - 1
    assert sum(size == (0, 0, 0) for _, size, _ in found) == 1


def test_files_of_two_kinds_are_refused(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.tar", [("0.jpg", jpeg(0))])
    write_parquet(tmp_path / "b.parquet", [{"bytes": jpeg(0), "path": None}])
    with pytest.raises(UsageError, match=r"several kinds \(parquet, tars\)"):
        indexed(f"{tmp_path}/*")


def test_the_name_of_a_link_decides_the_kind_of_its_file(tmp_path: Path) -> None:
    """The hub's local caches contain links to blobs without suffixes."""
    (tmp_path / "blobs").mkdir()
    blob = write_parquet(tmp_path / "blobs" / "3fa9", [{"bytes": jpeg(0), "path": None}], [1], ANIMALS)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train-0.parquet").symlink_to(blob)
    shard = write_shard(tmp_path / "blobs" / "77aa", [("0.jpg", jpeg(0))])
    (tmp_path / "n01443537.tar").symlink_to(shard)
    assert indexed(tmp_path / "data").labels.tolist() == [1]
    assert indexed(tmp_path / "n01443537.tar", SYNSETS).labels.tolist() == [1]


# Indexed once


def written(samples: SampleTable, path: Path) -> SampleTable:
    """The table after it was written to a cache and read again."""
    pq.write_table(samples.table, path)
    return SampleTable(pq.read_table(path, read_dictionary=["path"]))


def hollow_out(path: Path) -> None:
    """Replace a file's content by zeros without a trace in its size and time."""
    stat = path.stat()
    path.write_bytes(bytes(stat.st_size))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


@pytest.mark.parametrize("kind", [as_shards, as_synset_tars, as_outer_tar, as_parquet])
def test_an_unchanged_source_is_not_opened_again(
    kind: Callable[[Path, list[Picture]], Path], tmp_path: Path
) -> None:
    source = kind(tmp_path / "data", [(n % 2, jpeg(n)) for n in range(6)])
    samples, notes = index_images(str(source), SYNSETS)
    assert notes == ["1 of 3 classes have no sample"]
    known = written(samples, tmp_path / "samples.parquet")
    for path in (tmp_path / "data").rglob("*"):
        if path.is_file():
            hollow_out(path)
    again, notes_again = index_images(str(source), SYNSETS, known)
    assert again is known
    assert notes_again == notes
    with pytest.raises(UsageError):  # it would have been seen, had it been opened
        index_images(str(source), SYNSETS)


@pytest.mark.parametrize("change", ["size", "time", "one more", "one less", "vocabulary", "version"])
def test_a_changed_source_is_read_again(change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_shards(tmp_path / "data", shards=3, samples=2)
    known = indexed(tmp_path / "data")
    shard, vocabulary = tmp_path / "data" / "shard-001.tar", ANIMAL_VOCABULARY
    if change == "size":
        stat = shard.stat()
        write_shard(shard, [("new.jpg", jpeg(7, 200, 200))])
        os.utime(shard, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    elif change == "time":
        os.utime(shard, ns=(0, time.time_ns() + 10**9))
    elif change == "one more":
        write_shard(tmp_path / "data" / "shard-003.tar", [("new.jpg", jpeg(7))])
    elif change == "one less":
        shard.unlink()
    elif change == "vocabulary":
        vocabulary = Vocabulary(ANIMALS[::-1], ANIMALS[::-1])
    else:
        monkeypatch.setattr("teacher_cache.images.index.INDEX_VERSION", 10**6)
    again, _ = index_images(str(tmp_path / "data"), vocabulary, known)
    assert again is not known
    assert again.digest == indexed(tmp_path / "data", vocabulary).digest
    assert index_images(str(tmp_path / "data"), vocabulary, again)[0] is again


def test_an_image_folder_is_listed_again_when_one_of_its_folders_changed(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "images", images=2)
    (root / "cat" / "none" / "yet").mkdir(parents=True)
    os.mkdir(bytes(root) + b"/caf\xe9")  # no UTF-8, but without images no matter
    known = written(indexed(root), tmp_path / "samples.parquet")
    assert index_images(str(root), ANIMAL_VOCABULARY, known)[0] is known
    (root / "cat" / "none" / "yet" / "new.jpg").write_bytes(jpeg(5))
    again, _ = index_images(str(root), ANIMAL_VOCABULARY, known)
    assert len(again) == len(known) + 1
    (root / "dog" / "0.jpg").unlink()
    assert len(index_images(str(root), ANIMAL_VOCABULARY, again)[0]) == len(known)


def test_a_table_without_an_origin_is_never_reused(tmp_path: Path) -> None:
    known = indexed(write_shards(tmp_path, shards=1))
    bare = SampleTable(known.table.replace_schema_metadata(None))
    assert index_images(str(tmp_path), ANIMAL_VOCABULARY, bare)[0] is not bare


def test_an_unchanged_shard_on_a_web_server_is_not_fetched_again(web: WebServer) -> None:
    write_shards(web.folder, shards=2, samples=2)
    source = f"{web.url}/shard-{{000..001}}.tar"
    known = indexed(source)
    web.requests.clear()
    assert index_images(source, ANIMAL_VOCABULARY, known)[0] is known
    assert web.gets() == []
    write_shard(web.folder / "shard-001.tar", [("9.jpg", jpeg(9))])
    assert len(index_images(source, ANIMAL_VOCABULARY, known)[0]) == 3
    assert "shard-001.tar" in web.gets()


def test_a_remote_image_folder_is_listed_each_time(tmp_path: Path, memory: str) -> None:
    upload(write_folder(tmp_path, images=1), memory)
    known = indexed(memory)
    upload(write_folder(tmp_path / "more", classes=["cat"], images=3), memory)
    assert len(index_images(memory, ANIMAL_VOCABULARY, known)[0]) == len(known) + 2


def test_rows_do_not_depend_on_which_shard_is_read_first(tmp_path: Path) -> None:
    """The first shard is much larger than the others, so that it is read to its end after them."""
    write_shard(tmp_path / "0.tar", [(f"a{n}.jpg", b"x") for n in range(3000)])
    for number in range(1, 20):
        write_shard(tmp_path / f"{number:02d}.tar", [(f"b{number}.jpg", b"x")])
    keys = indexed(tmp_path).keys(slice(None))
    assert keys == [f"a{n}" for n in range(3000)] + [f"b{n}" for n in range(1, 20)]
    places = np.array([offset for _, offset, _ in indexed(tmp_path).locations(slice(0, 3000))])
    assert (np.diff(places) == 1024).all()
