"""Which files and folders a source names."""

from pathlib import Path

import pytest

from teacher_cache.errors import UsageError
from teacher_cache.images.index import index_images
from teacher_cache.images.sources import expand_source
from tests.teacher_cache.inputs import (
    ANIMAL_VOCABULARY,
    indexed,
    write_folder,
    write_shard,
    write_shards,
)


def test_braces_are_expanded_in_order_with_their_zeros(tmp_path: Path) -> None:
    for name in ("a-08", "a-09", "a-10", "a-11", "b-09"):
        write_shard(tmp_path / f"{name}.tar", [("x.jpg", b"")])
    found = expand_source(f"{tmp_path}/{{b,a}}-{{09..09}}.tar")
    assert [Path(path).name for path in found] == ["b-09.tar", "a-09.tar"]
    found = expand_source(f"{tmp_path}/a-{{08..11}}.tar")
    assert [Path(path).name for path in found] == ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]


def test_braces_without_leading_zeros(tmp_path: Path) -> None:
    for number in (9, 10):
        write_shard(tmp_path / f"{number}.tar", [("x.jpg", b"")])
    assert [Path(path).name for path in expand_source(f"{tmp_path}/{{9..10}}.tar")] == ["9.tar", "10.tar"]


def test_a_missing_shard_of_a_brace_range_is_named(tmp_path: Path) -> None:
    write_shards(tmp_path, shards=2)
    with pytest.raises(UsageError, match=r"shard-002\.tar does not exist"):
        expand_source(f"{tmp_path}/shard-{{000..002}}.tar")


def test_globs_are_expanded_in_sorted_order(tmp_path: Path) -> None:
    for name in ("b/2", "a/9", "a/1", "a/skip"):
        write_shard(tmp_path / f"{name}.tar", [("x.jpg", b"")])
    found = expand_source(f"{tmp_path}/*/[0-9].tar")
    assert [str(Path(path).relative_to(tmp_path)) for path in found] == ["a/1.tar", "a/9.tar", "b/2.tar"]


def test_a_folder_of_tars_stands_for_its_tars(tmp_path: Path) -> None:
    write_shards(tmp_path, shards=3, samples=2)
    assert expand_source(str(tmp_path)) == expand_source(f"{tmp_path}/*.tar")
    assert len(indexed(tmp_path)) == 6


@pytest.mark.parametrize("source", ["nowhere", "nowhere/*.tar", "{a,b}.tar", ""])
def test_a_missing_source_is_refused(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="image source"):
        index_images(source, ANIMAL_VOCABULARY)


def test_a_source_without_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "readme.txt").write_text("no image here")
    with pytest.raises(UsageError, match="contains no image"):
        indexed(tmp_path)
    shard = write_shard(tmp_path / "empty.tar", [("a.cls", b"0"), ("b.txt", b"x")])
    with pytest.raises(UsageError, match="contains no image"):
        indexed(shard)


def test_two_image_folders_are_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_folder(tmp_path / name, images=1)
    with pytest.raises(UsageError, match=r"or one image folder, found 2 folders among 2 matches"):
        indexed(f"{tmp_path}/{{a,b}}")


def test_tars_beside_images_are_refused_by_saying_how_to_name_them(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "images")
    write_shard(source / "stray.tar", [("x.jpg", b"")])
    with pytest.raises(
        UsageError, match=r"contains \.tar files beside images or folders; name the files, .*/\*\.tar"
    ):
        expand_source(str(source))
