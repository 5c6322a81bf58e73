"""Paths as people write them."""

import os
import pwd
from pathlib import Path

import pytest

from teacher_cache import load_vocabulary, open_cache
from teacher_cache.classes.templates import load_templates
from teacher_cache.errors import UsageError
from teacher_cache.files.places import absolute_place, local_path, place_of, place_or_text, same_place
from teacher_cache.images.sources import absolute_source, expand_source
from teacher_cache.model_names import canonical_model_name, canonical_pretrained
from tests.teacher_cache.inputs import write_names, write_shards

USER = pwd.getpwuid(os.getuid())  # another home than HOME, which the tests set


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home folder; the working directory is another one."""
    home, work = tmp_path / "home", tmp_path / "work"
    home.mkdir()
    work.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(work)
    return home


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("~", "HOME"),
        ("~/a b/[1]", "HOME/a b/[1]"),
        (Path("~/a"), "HOME/a"),
        (f"~{USER.pw_name}/a", f"{USER.pw_dir}/a"),
        ("file:///data/a", "/data/a"),
        ("file://localhost/data/a", "/data/a"),
        ("file://~/a", "HOME/a"),
        ("./~/a", "./~/a"),
        ("a/~", "a/~"),
        ("a::b/c%20d", "a::b/c%20d"),
        ("s3://bucket/~/a", "s3://bucket/~/a"),
        ("imagenet-21k", "imagenet-21k"),
    ],
)
def test_a_place_is_expanded(written: str | Path, expected: str, home: Path) -> None:
    assert place_of(written) == expected.replace("HOME", str(home))


def test_the_home_folder_of_nobody_is_refused_unless_a_file_has_the_name(home: Path) -> None:
    with pytest.raises(UsageError, match=r"no user has the home folder ~no-such-user; write \./~no"):
        place_of("~no-such-user/a")
    Path("~draft.txt").write_text("cat\n")
    assert place_of("~draft.txt") == "~draft.txt"
    assert load_vocabulary("~draft.txt").names == ("cat",)


def test_a_local_path_is_no_url(home: Path) -> None:
    assert local_path("~/a") == home / "a"
    with pytest.raises(UsageError, match="expected a path on this machine, found the URL s3://bucket/a"):
        local_path("s3://bucket/a")


def test_absolute_and_equal_places(home: Path) -> None:
    assert absolute_place("a/") == str(Path.cwd() / "a")
    assert absolute_place("s3://bucket/a") == "s3://bucket/a"
    assert same_place("a/", Path.cwd() / "b" / ".." / "a")
    assert same_place("~", home)
    assert not same_place("a", "b")


def test_templates_stay_texts(home: Path) -> None:
    assert place_or_text("~ {} ~") == "~ {} ~"
    (home / "a{x}").mkdir()
    for name in ("t.txt", "a{x}/t.txt"):
        (home / name).write_text("a photo of a {}.\nart of a {}.\n")
        assert load_templates(f"~/{name}") == ("a photo of a {}.", "art of a {}.")
    assert load_templates("a {} in the sea") == ("a {} in the sea",)


def test_functions_take_a_tilde(home: Path) -> None:
    write_names(home / "names.txt")
    assert len(load_vocabulary("~/names.txt")) == 5
    assert len(load_vocabulary(Path("~/names.txt"))) == 5
    with pytest.raises(UsageError, match=f"no cache at {home}/zarr"):
        open_cache("~/zarr")
    (home / "model").mkdir()
    (home / "model" / "w.pt").touch()
    for name in ("~/model", f"file://{home}/model", f"local-dir:{home}/model", "local-dir:~/model"):
        assert canonical_model_name(name) == f"local-dir:{(home / 'model').resolve()}"
    assert canonical_pretrained("~/model/w.pt") == str((home / "model" / "w.pt").resolve())


def test_sources_take_a_tilde_also_in_braces(home: Path) -> None:
    write_shards(home / "a", shards=1, samples=1)
    write_shards(home / "b", shards=1, samples=1)
    here = [str(home / name / "shard-000.tar") for name in "ab"]
    for source in ("~/{a,b}/*.tar", "{~/a,~/b}/*.tar", f"{{~/a,{home}/b}}/shard-{{000..000}}.tar"):
        assert expand_source(source) == here
        assert expand_source(absolute_source(source)) == here
