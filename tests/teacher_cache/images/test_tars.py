"""Tar shards -> rows: order, places of bytes, and what damaged shards do."""

import io
import random
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as example_settings
from hypothesis import strategies as st

from teacher_cache.errors import UsageError
from teacher_cache.images.index import index_images
from tests.teacher_cache.inputs import (
    ANIMAL_VOCABULARY,
    SYNSETS,
    contents,
    indexed,
    jpeg,
    webdataset_members,
    write_outer_tar,
    write_shard,
)


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_offsets_and_lengths_give_each_images_bytes(tar_format: int, tmp_path: Path) -> None:
    long = "deep/" * 20 + "x" * 90
    members = [(f"{long}-{number}.jpg", jpeg(number)) for number in range(3)]
    members += [(f"nested/{number}.png", jpeg(number, 20 + number)) for number in range(3)]
    if tar_format != tarfile.USTAR_FORMAT:
        members.append(("Übergröße/名前.webp", jpeg(7)))
        members.append(("y" * 300 + ".jpeg", jpeg(8)))
    shard = write_shard(tmp_path / "shard.tar", members, format=tar_format)
    expected = {name.rsplit(".", 1)[0]: content for name, content in members}
    assert contents(indexed(shard)) == expected


@given(
    st.lists(
        st.tuples(st.sampled_from(["", "a/", "a/b/", "./"]), st.integers(0, 3000), st.booleans()),
        min_size=1,
        max_size=12,
    )
)
@example_settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_tar_is_indexed_to_its_members_bytes(tmp_path: Path, shapes: list[tuple[str, int, bool]]) -> None:
    members = []
    for number, (folder, size, labelled) in enumerate(shapes):
        if labelled:
            members.append((f"{folder}{number:03d}.cls", b"1"))
        members.append((f"{folder}{number:03d}.jpg", random.Random(number).randbytes(size)))
        members.append((f"{folder}{number:03d}.txt", b"caption"))
    samples = indexed(write_shard(tmp_path / "any.tar", members))
    assert list(contents(samples).values()) == [content for name, content in members if name[-3:] == "jpg"]
    assert samples.labels.tolist() == [1 if labelled else -1 for _, _, labelled in shapes]


def test_rows_are_in_the_order_of_shards_and_members(tmp_path: Path) -> None:
    write_shard(tmp_path / "1.tar", webdataset_members(50, 3))
    write_shard(tmp_path / "0.tar", list(reversed(webdataset_members(0, 3))))
    samples = indexed(tmp_path)
    expected = [f"{number:06d}" for number in (2, 1, 0, 50, 51, 52)]
    assert samples.keys(slice(None)) == expected
    assert samples.keys(slice(2, 4)) == expected[2:4]
    assert samples.keys(np.array([5, 0])) == [expected[5], expected[0]]
    assert samples.labels.tolist() == [2, 1, 0, 0, 1, 2]


def test_a_sample_takes_one_image_among_other_members(tmp_path: Path) -> None:
    members = [
        ("s/a.json", b'{"label": 3}'),
        ("s/a.txt", b"caption"),
        ("s/a.jpg", jpeg(0)),
        ("s/a.mask.png", jpeg(1)),
        ("s/b.seg.PNG", jpeg(2)),
        ("s/b.cls", b"2"),
        ("t/b.jpeg", jpeg(3)),
        ("readme.md", b"text"),
    ]
    samples = indexed(write_shard(tmp_path / "s.tar", members))
    assert contents(samples) == {"s/a": jpeg(0), "s/b": jpeg(2), "t/b": jpeg(3)}
    assert samples.labels.tolist() == [3, 2, -1]


def test_folders_and_links_in_a_tar_are_not_images(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "links.tar", "w") as tar:
        folder, link = tarfile.TarInfo("folder.jpg"), tarfile.TarInfo("link.jpg")
        folder.type, link.type, link.linkname = tarfile.DIRTYPE, tarfile.SYMTYPE, "0.jpg"
        tar.addfile(folder)
        tar.addfile(link)
        member = tarfile.TarInfo("0.jpg")
        member.size = len(jpeg(0))
        tar.addfile(member, io.BytesIO(jpeg(0)))
    assert contents(indexed(tmp_path / "links.tar")) == {"0": jpeg(0)}


@pytest.mark.parametrize("left_out", [600, 1200, 20_000 + 100])
def test_a_truncated_tar_keeps_complete_members_with_a_note(left_out: int, tmp_path: Path) -> None:
    members = [(f"{number}.jpg", random.Random(number).randbytes(5000)) for number in range(8)]
    shard = write_shard(tmp_path / "cut.tar", members)
    content = shard.read_bytes()
    end = max(place + size for _, place, size in indexed(shard).locations(slice(None)))
    shard.write_bytes(content[: end - left_out])
    samples, notes = index_images(str(shard), ANIMAL_VOCABULARY)
    kept = contents(samples)
    assert 0 < len(kept) < 8
    assert kept == {name[0]: content for name, content in members[: len(kept)]}
    assert len(kept) == (end - left_out) // (5120 + 512)
    assert any("cut.tar" in note and "the rest is left out" in note for note in notes)


def test_of_images_that_share_a_name_the_first_is_taken_with_a_note(tmp_path: Path) -> None:
    members = [("a.jpg", jpeg(0)), ("a.png", jpeg(1)), ("a.jpg", jpeg(2)), ("b.jpg", jpeg(3))]
    samples, notes = index_images(str(write_shard(tmp_path / "twice.tar", members)), ANIMAL_VOCABULARY)
    assert contents(samples) == {"a": jpeg(0), "b": jpeg(3)}
    assert any("twice.tar: 2 images share a sample's name" in note for note in notes)


def test_a_file_that_is_not_a_tar_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "fake.tar").write_bytes(b"not a tar at all" * 100)
    with pytest.raises(UsageError, match=r"fake\.tar is not an uncompressed tar"):
        indexed(tmp_path)


def test_a_compressed_tar_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "s.tar", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("a.jpg"), io.BytesIO())
    with pytest.raises(UsageError, match="decompress it first"):
        indexed(tmp_path)


def test_an_image_name_that_is_not_utf8_is_indexed(tmp_path: Path) -> None:
    shard = write_shard(
        tmp_path / "latin1.tar", [("caf\xe9.jpg", jpeg(0))], format=tarfile.GNU_FORMAT, encoding="latin-1"
    )
    samples = indexed(shard)
    assert contents(samples) == {"caf\\udce9": jpeg(0)}


def test_the_rest_after_a_damaged_header_is_left_out_with_a_note(tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "bad.tar", [(f"{number}.jpg", bytes(700)) for number in range(6)])
    content = bytearray(shard.read_bytes())
    content[4 * 1536 + 130] ^= 1
    shard.write_bytes(content)
    samples, notes = index_images(str(shard), ANIMAL_VOCABULARY)
    assert samples.keys(slice(None)) == ["0", "1", "2", "3"]
    assert any(
        f"bad.tar: no valid header at byte {4 * 1536}" in note and "the rest" in note for note in notes
    )


def test_names_in_a_tar_are_keys_and_never_paths(tmp_path: Path) -> None:
    outside = tmp_path / "outside.jpg"
    outside.write_bytes(b"not yours")
    names = ["../outside.jpg", str(outside), "a/../../outside.png"]
    shard = write_shard(tmp_path / "in" / "s.tar", [(name, jpeg(n)) for n, name in enumerate(names)])
    assert list(contents(indexed(shard)).values()) == [jpeg(0), jpeg(1), jpeg(2)]
    assert {path for path, _, _ in indexed(shard).locations(slice(None))} == {str(shard)}


# A tar a synset, and all of them in one outer tar


def write_synsets(folder: Path) -> Path:
    """Three tars of plain images, as ImageNet-21K is published; returns the folder."""
    for number, synset in enumerate(SYNSETS.ids):
        images = [(f"{synset}_{10 * number + i}.JPEG", jpeg(10 * number + i)) for i in range(number + 1)]
        write_shard(folder / f"{synset}.tar", images)
    return folder


def test_tars_inside_an_outer_tar_give_the_same_samples_as_files(tmp_path: Path) -> None:
    loose = indexed(write_synsets(tmp_path / "loose"), SYNSETS)
    outer = write_outer_tar(tmp_path / "winter21_whole.tar", tmp_path / "loose")
    nested, notes = index_images(str(outer), SYNSETS)
    assert notes == []
    assert nested.digest == loose.digest
    assert nested.labels.tolist() == [0, 1, 1, 2, 2, 2]
    assert contents(nested) == contents(loose)
    assert {path for path, _, _ in nested.locations(slice(None))} == {str(outer)}


def test_a_synset_comes_from_the_nearest_tars_name_and_never_from_a_folders(tmp_path: Path) -> None:
    plain = write_shard(
        tmp_path / "plain.tar", [("a.jpg", jpeg(0)), ("b/n01484850_7.jpg", jpeg(1))]
    ).read_bytes()
    members = [("n01440764/n01443537.tar", plain), ("n01440764/other.tar", plain)]
    outer = write_shard(tmp_path / "n01440764" / "whole.tar", members)
    samples, _ = index_images(str(outer), SYNSETS, labels="name")
    assert samples.labels.tolist() == [1, 2, -1, 2]


def test_images_beside_tars_in_an_outer_tar_come_first(tmp_path: Path) -> None:
    inner = (write_synsets(tmp_path / "loose") / "n01443537.tar").read_bytes()
    members = [("n01443537.tar", inner), ("n01484850_1.jpg", jpeg(50)), ("again/n01443537.tar", inner)]
    samples = indexed(write_shard(tmp_path / "mixed.tar", members), SYNSETS)
    assert samples.keys(slice(None)) == ["n01484850_1", *2 * ["n01443537_10", "n01443537_11"]]


def test_a_truncated_outer_tar_keeps_the_complete_images_of_its_last_tar(tmp_path: Path) -> None:
    write_synsets(tmp_path / "loose")
    outer = write_outer_tar(tmp_path / "outer.tar", tmp_path / "loose")
    _, offset, length = indexed(outer, SYNSETS).locations(slice(4, 5))[
        0
    ]  # of the last tar, the second of three
    outer.write_bytes(outer.read_bytes()[: offset + length + 600])
    samples, notes = index_images(str(outer), SYNSETS)
    assert samples.labels.tolist() == [0, 1, 1, 2, 2]
    assert contents(samples)["n01484850_21"] == jpeg(21)
    assert any("outer.tar: ends within release/n01484850.tar" in note for note in notes)
    assert any("outer.tar:release/n01484850.tar: ends within" in note for note in notes)


def test_an_inner_file_that_is_not_a_tar_is_left_out_with_a_note(tmp_path: Path) -> None:
    inner = (write_synsets(tmp_path / "loose") / "n01443537.tar").read_bytes()
    deeper = write_shard(tmp_path / "deeper.tar", [("n01443537.tar", inner), ("x.jpg", jpeg(1))]).read_bytes()
    members = [("n01440764.tar", b"broken" * 500), ("empty.tar", b""), ("d.tar", deeper), ("a.tar", inner)]
    samples, notes = index_images(str(write_shard(tmp_path / "outer.tar", members)), SYNSETS)
    assert samples.keys(slice(None)) == ["x", "n01443537_10", "n01443537_11"]
    for what in (
        "outer.tar:n01440764.tar: not an uncompressed tar",
        "outer.tar:empty.tar: not an uncompressed",
        "a tar in a tar in a tar is not read",
    ):
        assert any(what in note for note in notes), what
