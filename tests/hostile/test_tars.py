"""Tars with names in other folders, links and devices, absurd sizes, and endless headers."""

import io
import tarfile
from functools import lru_cache
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from teacher_cache.errors import UsageError
from teacher_cache.images.decode import UnreadableImageError
from teacher_cache.images.headers import DamagedTarError, tar_members
from teacher_cache.images.index import index_images
from teacher_cache.images.location import ByteRange, WholeFile
from teacher_cache.images.reader import ImageReader
from tests.hostile.conftest import fuzzed
from tests.hostile.contract import bounded, is_one_line, tried
from tests.hostile.mutations import damaged, damaged_json
from tests.teacher_cache.inputs import ANIMAL_VOCABULARY, contents, jpeg, webdataset_members, write_shard

BLOCK = 512
FIELDS = {
    "name": (0, 100),
    "size": (124, 12),
    "checksum": (148, 8),
    "kind": (156, 1),
    "magic": (257, 8),
    "prefix": (345, 155),
}
FILLINGS = [
    *(
        b"77777777777",
        b"00000000000",
        b"-0000000001",
        b"\x80" + b"\xff" * 11,
        b"\xff" * 12,
        b"\x80" + b"\0" * 11,
    ),
    *(
        b"/etc/passwd",
        b"../../outside.jpg",
        b"a\n\x1b[2Jb.jpg",
        b"\xff\xfe.jpg",
        b"x.tar",
        b"x.json",
        b"x.cls",
    ),
    *(bytes([kind]) for kind in b"0\x0012345678xXgLKSVMD"),
]


@lru_cache
def valid_tars() -> list[bytes]:
    """WebDataset's, pax with long names, and a tar in a tar."""
    buffer = io.BytesIO()
    long = {
        "deep/" * 30 + "x.jpg": jpeg(1),
        "n01440764_名前.png": jpeg(2),
        "j.json": b'{"label": 3}',
        "j.jpg": jpeg(3),
    }
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, content in long.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mtime = len(content), 1.5
            tar.addfile(entry, io.BytesIO(content))
        link = tarfile.TarInfo("link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    plain, outer = io.BytesIO(), io.BytesIO()
    for target, members in ((plain, webdataset_members(0, 3)), (outer, [("inner.tar", buffer.getvalue())])):
        with tarfile.open(fileobj=target, mode="w", format=tarfile.GNU_FORMAT) as tar:
            for name, content in members:
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    return [plain.getvalue(), buffer.getvalue(), outer.getvalue()]


@st.composite
def hostile_tars(draw: st.DrawFn) -> bytes:
    """A valid tar with changed header fields and valid checksums, or with changed bytes."""
    content = bytearray(draw(st.sampled_from(valid_tars())))
    for _ in range(draw(st.integers(0, 3))):
        headers = [at for at in range(0, len(content), BLOCK) if content[at + 257 : at + 262] == b"ustar"]
        at = draw(st.sampled_from(headers))
        start, length = FIELDS[draw(st.sampled_from(sorted(FIELDS)))]
        filling = draw(st.sampled_from(FILLINGS) | st.binary(min_size=1, max_size=12))[:length]
        content[at + start : at + start + len(filling)] = filling
        if draw(st.integers(0, 9)):
            header = content[at : at + BLOCK]
            content[at + 148 : at + 156] = b"%06o\0 " % (sum(header[:148]) + 256 + sum(header[156:]))
    return draw(damaged(bytes(content))) if draw(st.booleans()) else bytes(content)


def read_all(path: Path) -> None:
    samples, notes = index_images(str(path), ANIMAL_VOCABULARY)
    assert all(map(is_one_line, notes)), notes
    reader = ImageReader()
    for place in samples.locations(slice(None)):
        reader.read(place)
    assert isinstance(samples.digest, str)


@given(content=hostile_tars())
@fuzzed(100)
def test_fuzz_tars(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "hostile.tar"
    path.write_bytes(content)
    tried(lambda: read_all(path))


@given(
    content=damaged_json({"label": 3, "caption": "a cat", "class": "dog"}),
    suffix=st.sampled_from(["json", "cls"]),
)
@fuzzed(80)
def test_fuzz_labels(tmp_path_factory: pytest.TempPathFactory, content: bytes, suffix: str) -> None:
    path = tmp_path_factory.getbasetemp() / "labels.tar"
    write_shard(path, [(f"a.{suffix}", content), ("a.jpg", jpeg(0))])
    tried(lambda: read_all(path))


def tar_of(name: str, size: int, kind: bytes = tarfile.REGTYPE, content: bytes = b"") -> bytes:
    """Return a header with the given fields, and the content behind it."""
    entry = tarfile.TarInfo(name)
    entry.size, entry.type, entry.linkname = size, kind, "/etc/passwd"
    header = entry.tobuf(tarfile.GNU_FORMAT)
    return header + content + bytes(-len(content) % BLOCK)


def test_outside_names_links_and_devices_are_neither_followed_nor_written(tmp_path: Path) -> None:
    kinds = [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE]
    names = ["../outside.jpg", "/etc/passwd.jpg", "a/../../b.jpg"]
    content = b"".join(tar_of(f"{number}.jpg", 0, kind) for number, kind in enumerate(kinds))
    content += b"".join(tar_of(name, 3, content=b"abc") for name in names)
    shard = tmp_path / "in" / "s.tar"
    shard.parent.mkdir()
    shard.write_bytes(content + bytes(2 * BLOCK))
    samples, _ = index_images(str(shard), ANIMAL_VOCABULARY)
    assert contents(samples) == dict.fromkeys(
        (name.removesuffix(".jpg").lstrip("/") for name in names), b"abc"
    )
    assert tried(lambda: read_all(shard)) == "read"
    assert [path.name for path in tmp_path.rglob("*")] == ["in", "s.tar"]


def test_control_characters_in_names_reach_no_terminal(tmp_path: Path) -> None:
    """The name is in a note that the commands print."""
    (tmp_path / "s.tar").write_bytes(tar_of("\x1b[2J\n\r0.jpg", 0) + tar_of("\x1b]0;title\x07\n1.jpg", 5000))
    samples, notes = index_images(str(tmp_path / "s.tar"), ANIMAL_VOCABULARY)
    assert samples.keys(slice(None)) == ["\x1b[2J\n\r0"]
    assert r"ends within \x1b]0;title\x07\n1.jpg" in notes[0]
    assert is_one_line(notes[0])


@pytest.mark.parametrize("size", [1 << 40, 1 << 62, (1 << 88) - 1])
def test_a_size_beyond_the_end_costs_the_tail_and_no_memory(size: int, tmp_path: Path) -> None:
    header = bytearray(tar_of("b.jpg", 0))
    header[124:136] = b"\x80" + size.to_bytes(11, "big")
    header[148:156] = b"%06o\0 " % (sum(header[:148]) + 256 + sum(header[156:BLOCK]))
    (tmp_path / "s.tar").write_bytes(tar_of("a.jpg", 3, content=b"abc") + header)
    samples, notes = index_images(str(tmp_path / "s.tar"), ANIMAL_VOCABULARY)
    assert contents(samples) == {"a": b"abc"}
    assert "ends within b.jpg; the rest is left out" in notes[0]


class Counted(io.BytesIO):
    """Records the largest requested read; a read to the end counts as endless."""

    largest = 0

    def read(self, size: int | None = -1, /) -> bytes:
        self.largest = max(self.largest, 1 << 62 if size is None or size < 0 else size)
        return super().read(size)


@pytest.mark.parametrize("kind", [b"x", b"g", b"L", b"K"])
@pytest.mark.parametrize("size", [b"\xff" * 12, b"-0000000001\0", b"77777777777\0"])
def test_a_header_of_a_negative_or_absurd_size_is_damage(kind: bytes, size: bytes) -> None:
    """A size of -1 was passed to the file, which read all of it, at every such header."""
    header = bytearray(tar_of("a", 0, kind))
    header[124:136] = size
    header[148:156] = b"%06o\0 " % (sum(header[:148]) + 256 + sum(header[156:BLOCK]))
    file = Counted(bytes(header) + bytes(4 * BLOCK))
    with pytest.raises(DamagedTarError, match="longer than 1 MB, or of negative length"):
        list(tar_members(file, 0, 5 * BLOCK))
    assert file.largest == BLOCK


def test_a_megabyte_of_short_records_is_read_fast(tmp_path: Path) -> None:
    """A copy for each record took more than five seconds of processor time per megabyte."""
    records = b"6 a=b\n" * ((1 << 20) // 6)
    header = tar_of("pax", len(records), tarfile.XHDTYPE, records)
    (tmp_path / "s.tar").write_bytes(header * 4 + tar_of("a.jpg", 3, content=b"abc") + bytes(2 * BLOCK))
    assert tried(lambda: read_all(tmp_path / "s.tar")) == "read"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b'{"label": ' + b"[" * 100_000, "nested too deeply"),
        (b'{"label": ' + b"9" * 5000 + b"}", "cannot read the label"),
        (b'{"label": "' + b"9" * 5000 + b'"}', "is too large for a class index"),
        (b'{"label": "\\ud800"}', "is not valid text"),
        (b'{"label": "a\\u0000b"}', "is not valid text"),
        (b"\xff\xfe", "cannot read the label"),
    ],
)
def test_an_invalid_label_is_named(content: bytes, reason: str, tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "s.tar", [("a.json", content), ("a.jpg", jpeg(0))])
    with pytest.raises(UsageError, match=rf"s\.tar:a\.json: .*{reason}") as refused:
        index_images(str(shard), ANIMAL_VOCABULARY)
    assert is_one_line(str(refused.value))


def test_a_label_of_64_gb_is_not_read(tmp_path: Path) -> None:
    """A sparse file, which takes no space on the disk."""
    size = 64 << 30
    with open(tmp_path / "s.tar", "wb") as file:
        file.write(tar_of("a.cls", size))
        file.truncate(BLOCK + size + 2 * BLOCK)
    with bounded(), pytest.raises(UsageError, match="it has 68,719,476,736 bytes"):
        index_images(str(tmp_path / "s.tar"), ANIMAL_VOCABULARY)


@pytest.mark.parametrize(
    ("offset", "length", "reason"),
    [
        (0, 1 << 50, r"file ends after 11 of"),
        (1 << 60, 100, "file ends after 0 of 100"),
        (-5, 10, "invalid byte range"),
        (0, -7, "invalid byte range"),
    ],
)
def test_a_location_outside_of_a_file_is_unreadable(
    offset: int, length: int, reason: str, tmp_path: Path
) -> None:
    """Locations come from a cache's table, which may be hostile; only existing bytes are allocated."""
    (tmp_path / "a.tar").write_bytes(b"eleven here")
    with bounded(), pytest.raises(UnreadableImageError, match=reason):
        ImageReader().read(ByteRange(str(tmp_path / "a.tar"), offset, length))


def test_a_path_with_a_zero_byte_is_unreadable() -> None:
    with pytest.raises(UnreadableImageError, match="null byte"):
        ImageReader().read(WholeFile("/tmp/a\0b.jpg", 10))
