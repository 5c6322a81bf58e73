"""Which files and folders a source names."""

from pathlib import Path

import pytest

from teacher_cache.errors import UsageError
from teacher_cache.images.index import index_images
from teacher_cache.images.sources import expand_source
from tests.teacher_cache.images.conftest import upload
from tests.teacher_cache.inputs import (
    ANIMAL_VOCABULARY,
    indexed,
    jpeg,
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


# A path that exists is taken as it is

ODD_NAMES = (
    "[2021] set",
    "a{x}",
    "what?",
    "5*",
    "a{1..3}",
    "{a,b}",
    "50%20#1+é",
    "a::b",
    "-x",
    "x.txt",
    "[!a]",
)


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_folder_or_file_that_exists_is_no_pattern(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / name, classes=("cat",), images=1)
    write_shard(tmp_path / f"{name}.tar", [("1.jpg", jpeg(1))])
    for source in (name, f"./{name}/", str(tmp_path / name)):
        assert expand_source(source) == [str(tmp_path / name)]
        assert indexed(source).keys(slice(None)) == ["cat/0.jpg"]
    assert expand_source(f"{name}.tar") == [str(tmp_path / f"{name}.tar")]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_patterns_work_below_a_folder_with_any_name(name: str, tmp_path: Path) -> None:
    write_shards(tmp_path / name / "[b] {c}", shards=3, samples=1)
    every = [str(tmp_path / name / "[b] {c}" / f"shard-{n:03d}.tar") for n in range(3)]
    for pattern in ("*.tar", "shard-{000..002}.tar", "shard-00[0-2].tar", "shard-{000,001,002}.t?r", ""):
        assert expand_source(f"{tmp_path}/{name}/[b] {{c}}/{pattern}") == every
    assert expand_source(f"{tmp_path}/{name}/*/shard-000.tar") == every[:1]


def test_a_name_with_signs_behind_a_pattern_is_taken_as_it_is(tmp_path: Path) -> None:
    for part in "ab":
        write_shard(tmp_path / f"set-{part} [1]" / "0.tar", [("1.jpg", jpeg(1))])
    expected = [str(tmp_path / f"set-{part} [1]" / "0.tar") for part in "ab"]
    assert expand_source(f"{tmp_path}/set-{{a,b}} [1]/0.tar") == expected
    write_shard(tmp_path / "set-a 1" / "0.tar", [("1.jpg", jpeg(1))])
    assert expand_source(f"{tmp_path}/set-a [1]/0.tar") == expected[:1]
    assert expand_source(f"{tmp_path}/set-a [0-9]/0.tar") == [str(tmp_path / "set-a 1" / "0.tar")]


def test_patterns_at_the_root_and_without_a_match(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for source in ("/no-such-*.tar", "no-such-[0-9].tar", "none/*.tar"):
        with pytest.raises(UsageError, match="found nothing"):
            expand_source(source)


def test_a_list_in_a_folder_with_signs(tmp_path: Path) -> None:
    folder = tmp_path / "C# [a]{b}.txt#1"
    write_folder(folder, classes=("cat",), images=2)
    (folder / "list.txt").write_text("cat/0.jpg cat\n")
    assert indexed(f"{folder}/list.txt").keys(slice(None)) == ["cat/0.jpg"]
    assert expand_source(str(folder)) == [str(folder)]


def test_remote_objects_with_signs_are_no_patterns(tmp_path: Path, memory: str) -> None:
    write_shards(tmp_path / "[2021] set" / "a{x}", shards=2, samples=1)
    upload(tmp_path, memory)
    folder = f"{memory}/[2021] set/a{{x}}"
    every = [f"memory:///images/[2021] set/a{{x}}/shard-{n:03d}.tar" for n in range(2)]
    for pattern in ("", "/*.tar", "/shard-{000..001}.tar", "/shard-00[01].tar"):
        assert [url.replace("memory:///", "memory://") for url in expand_source(folder + pattern)] == [
            url.replace("memory:///", "memory://") for url in every
        ]
