"""Files that systems and editors leave beside data are no rows, classes or shards, in any source."""

import io
import tarfile
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from teacher_cache.classes.vocabulary import Vocabulary
from teacher_cache.errors import UsageError
from teacher_cache.images.index import index_images
from teacher_cache.images.leftovers import Leftovers, is_plain, kind_of_leftover
from teacher_cache.images.table import SampleTable
from tests.teacher_cache.images.conftest import upload
from tests.teacher_cache.inputs import (
    ANIMAL_VOCABULARY,
    SYNSETS,
    contents,
    indexed,
    jpeg,
    write_folder,
    write_outer_tar,
    write_parquet,
    write_shard,
)

# As macOS writes it: magic, version, and an entry with extended attributes.
APPLE_DOUBLE = (
    b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        \x00\x02\x00\x00\x00\x09\x00\x00\x002\x00\x00\x00\x8f"
    + bytes(64)
)
TWO = Vocabulary(("cat", "dog"), ("cat", "dog"))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("._0001.jpg", "macOS"),
        ("./._n01440764_0.JPEG", "macOS"),
        ("__MACOSX/train/0001.jpg", "macOS"),
        ("train/.DS_Store", "macOS"),
        ("Icon\r", "macOS"),
        ("train/Thumbs.db", "Windows"),
        ("desktop.ini", "Windows"),
        ("$RECYCLE.BIN/0.jpg", "Windows"),
        ("System Volume Information", "Windows"),
        ("~$0001.jpg", "Windows"),
        ("cat/@eaDir/0.jpg/SYNOPHOTO_THUMB_M.jpg", "network storage"),
        ("#recycle/0.jpg", "network storage"),
        ("cat/.ipynb_checkpoints/0-checkpoint.jpg", "notebooks and editors"),
        ("0001.cls~", "notebooks and editors"),
        (".0001.json.swp", "notebooks and editors"),
        ("#0001.json#", "notebooks and editors"),
        ("0001.jpg.bak", "notebooks and editors"),
        ("lost+found", "the file system"),
        (".Trash-1000/files/0.jpg", "the file system"),
        (".0001.jpg", "hidden files"),
        (".git/0.jpg", "hidden files"),
        ("a._b.jpg", None),
        ("./0001.jpg", None),
        ("../0001.jpg", None),
        ("a/./b/0001.jpg", None),
        ("_0001.jpg", None),
        ("lost and found/0.jpg", None),
        ("thumbs.db.jpg", None),
        ("c#/0.jpg", None),
        ("$100/0.jpg", None),
        ("n01440764_10026.JPEG", None),
    ],
)
def test_leftovers_are_recognised_by_name(name: str, kind: str | None) -> None:
    assert kind_of_leftover(name) == kind
    leftovers = Leftovers()
    assert leftovers.has(name) == (kind is not None)
    assert leftovers.counts == ({kind: 1} if kind else {})


@given(
    st.text(st.sampled_from("aZ0_-./~#@$ db"), max_size=14),
    st.sampled_from(["", ".jpg", ".JPEG", ".cls", ".db"]),
)
def test_plain_names_are_never_leftovers(name: str, suffix: str) -> None:
    if is_plain(name + suffix):
        assert kind_of_leftover(name + suffix) is None


def write_mac_tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    """A tar as macOS' bsdtar writes it: each member after its AppleDouble, with extended pax headers."""
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for name, content in members:
            folder, slash, base = name.rpartition("/")
            for own, data in ((f"{folder}{slash}._{base}", APPLE_DOUBLE), (name, content)):
                member = tarfile.TarInfo(own)
                member.size = len(data)
                member.pax_headers = {
                    "mtime": "1700000000.123456789",
                    "LIBARCHIVE.xattr.com.apple.provenance": "AQIABc9qZlqOq3c",
                    "SCHILY.xattr.com.apple.provenance": "\x01\x02\x00",
                }
                tar.addfile(member, io.BytesIO(data))
    return path


def test_a_tar_of_macos_has_its_samples_only(tmp_path: Path) -> None:
    members = [m for n in range(3) for m in ((f"./{n}.cls", b"%d" % n), (f"./{n}.jpg", jpeg(n)))]
    shard = write_mac_tar(tmp_path / "s.tar", members)
    samples, notes = index_images(str(shard), ANIMAL_VOCABULARY)
    assert contents(samples) == {f"./{n}": jpeg(n) for n in range(3)}
    assert samples.labels.tolist() == [0, 1, 2]
    assert notes[0] == "passed over 6 leftovers of macOS, the first is ./._0.cls"


def test_leftovers_of_all_shards_are_told_once_for_each_kind(tmp_path: Path) -> None:
    for number in range(3):
        members = [("._0.jpg", APPLE_DOUBLE), ("__MACOSX/._0.jpg", APPLE_DOUBLE), ("Thumbs.db", b"x")]
        write_shard(
            tmp_path / f"{number}.tar", [*members, ("0.cls", b"1"), ("0.cls~", b"2"), ("0.jpg", jpeg(0))]
        )
    (tmp_path / "._0.tar").write_bytes(APPLE_DOUBLE)
    for source in (str(tmp_path), f"{tmp_path}/*.tar"):
        samples, notes = index_images(source, ANIMAL_VOCABULARY)
        assert samples.labels.tolist() == [1, 1, 1]
        assert [note for note in notes if "passed over" in note] == [
            f"passed over 7 leftovers of macOS, the first is {tmp_path}/._0.tar",
            "passed over 3 leftovers of Windows, the first is Thumbs.db",
            "passed over 3 leftovers of notebooks and editors, the first is 0.cls~",
        ]


def test_leftover_tars_in_an_outer_tar_are_passed_over(tmp_path: Path) -> None:
    write_shard(tmp_path / "loose" / "n01443537.tar", [("n01443537_1.JPEG", jpeg(1))])
    (tmp_path / "loose" / "._n01443537.tar").write_bytes(APPLE_DOUBLE)
    outer = write_outer_tar(tmp_path / "whole.tar", tmp_path / "loose")
    samples, notes = index_images(str(outer), SYNSETS)
    assert samples.labels.tolist() == [1]
    assert notes[0] == "passed over 1 leftover of macOS, the first is release/._n01443537.tar"


def write_littered_folder(root: Path) -> Path:
    """An image folder with two classes and leftovers, some of which look like a class."""
    write_folder(root, ["k\u0254t", "pies"], images=2)
    for place in (
        "pies/._0.jpg",
        ".ipynb_checkpoints/0-checkpoint.jpg",
        "pies/.ipynb_checkpoints/1-checkpoint.jpg",
        "@eaDir/0.jpg",
        "__MACOSX/pies/._0.jpg",
        "lost+found/0.jpg",
        ".DS_Store",
    ):
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        (root / place).write_bytes(jpeg(7))
    return root


def test_leftover_folders_are_no_classes(tmp_path: Path, memory: str) -> None:
    """Folders are matched by sorted order only if both have the same number of classes."""
    root = write_littered_folder(tmp_path / "images")
    upload(root, memory)
    for source in (str(root), memory):
        samples, notes = index_images(source, TWO)
        assert sorted(samples.keys(slice(None))) == [
            "k\u0254t/0.jpg",
            "k\u0254t/1.jpg",
            "pies/0.jpg",
            "pies/1.jpg",
        ]
        assert sorted(samples.labels.tolist()) == [0, 0, 1, 1]
        assert sum("passed over" in note for note in notes) == 4


def test_a_folder_of_shards_may_contain_leftovers(tmp_path: Path) -> None:
    write_shard(tmp_path / "0.tar", [("0.jpg", jpeg(0))])
    for name in ("__MACOSX", "@eaDir", "lost+found", ".ipynb_checkpoints"):
        (tmp_path / name).mkdir()
    (tmp_path / "._cover.jpg").write_bytes(APPLE_DOUBLE)
    assert len(indexed(tmp_path)) == 1


def test_leftovers_in_parquet_and_lists_are_passed_over(tmp_path: Path) -> None:
    images = [{"bytes": jpeg(n), "path": name} for n, name in enumerate(("cat/._0.jpg", "cat/0.jpg", None))]
    samples, notes = index_images(
        str(write_parquet(tmp_path / "a.parquet", images, [0, 0, 1])), ANIMAL_VOCABULARY
    )
    assert contents(samples) == {"cat/0.jpg": jpeg(1), "a/2": jpeg(2)}
    assert notes[0] == "passed over 1 leftover of macOS, the first is cat/._0.jpg"
    (tmp_path / "0.jpg").write_bytes(jpeg(0))
    (tmp_path / "list.txt").write_text("._0.jpg cat\n0.jpg dog\n")
    samples, notes = index_images(str(tmp_path / "list.txt"), ANIMAL_VOCABULARY)
    assert samples.labels.tolist() == [1]
    assert notes[0] == "passed over 1 leftover of macOS, the first is ._0.jpg"


def test_a_source_of_leftovers_only_is_refused_with_them(tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "s.tar", [("._0.jpg", APPLE_DOUBLE), ("._1.jpg", APPLE_DOUBLE)])
    said = r"contains no image .*; passed over 2 leftovers of macOS, the first is \._0\.jpg"
    with pytest.raises(UsageError, match=said):
        indexed(shard)


def test_a_source_in_a_hidden_folder_is_read(tmp_path: Path) -> None:
    write_shard(tmp_path / ".cache" / ".hidden.tar", [("0.jpg", jpeg(0))])
    write_folder(tmp_path / ".data" / "images", ["cat"])
    assert len(indexed(tmp_path / ".cache" / ".hidden.tar")) == 1  # named, not found
    assert len(indexed(tmp_path / ".data" / "images")) == 2


def test_a_cache_of_an_earlier_version_keeps_its_rows(
    tmp_path: Path, memory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise it could not be resumed: the rows of its parts would not be those of the table."""
    shard = write_shard(tmp_path / "s.tar", [("0.jpg", jpeg(0))])
    with monkeypatch.context() as earlier:
        earlier.setattr("teacher_cache.images.index.INDEX_VERSION", 2)
        known = indexed(shard)
    kept, notes = index_images(str(shard), ANIMAL_VOCABULARY, known)
    assert kept is known
    assert notes[-1].startswith("the cache was started by an earlier version of rpp and keeps its rows")
    upload(write_folder(tmp_path / "images", ["cat"], images=2), memory)
    rows = indexed(memory).table.replace_schema_metadata(None)
    leftover = rows.slice(0, 1).set_column(0, "key", pa.array(["cat/._0.jpg"], pa.large_string()))
    littered = SampleTable(pa.concat_tables([leftover, rows]))
    assert index_images(memory, ANIMAL_VOCABULARY, littered)[0] is littered
    other = SampleTable(pa.concat_tables([rows.slice(1, 1), rows]))
    assert index_images(memory, ANIMAL_VOCABULARY, other)[0] is not other
