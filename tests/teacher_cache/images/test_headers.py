"""The members of tars, compared with tarfile; damaged headers."""

import io
import random
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as example_settings
from hypothesis import strategies as st

from teacher_cache.images.headers import DamagedTarError, TarMember, tar_members

NAMES = st.text(st.characters(exclude_characters="\0/", exclude_categories=["Cs"]), min_size=1, max_size=40)
PLACES = st.lists(NAMES, min_size=1, max_size=8).map("/".join).filter(lambda name: name.strip("./"))


def members(content: bytes) -> list[TarMember]:
    return list(tar_members(io.BytesIO(content), 0, len(content)))


def tar_of(entries: list[tuple[tarfile.TarInfo, bytes]], **options: object) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", **options) as tar:  # type: ignore[call-overload]
        for entry, content in entries:
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


@given(
    st.lists(st.tuples(PLACES, st.binary(max_size=1500), st.floats(0, 2e9)), max_size=6),
    st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
)
@example_settings(max_examples=80, deadline=None)
def test_members_are_those_of_tarfile(files: list[tuple[str, bytes, float]], tar_format: int) -> None:
    """A fractional time makes tarfile write a pax header, as WebDataset's writer does."""
    entries = []
    for name, data, time in files:
        entry = tarfile.TarInfo(name)
        entry.mtime = time
        entries.append((entry, data))
    content = tar_of(entries, format=tar_format)
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        expected = [(entry.name, entry.offset_data, entry.size) for entry in tar if entry.isreg()]
    assert members(content) == expected


def test_links_devices_and_folders_are_skipped() -> None:
    entries = []
    kinds = [
        tarfile.DIRTYPE,
        tarfile.SYMTYPE,
        tarfile.LNKTYPE,
        tarfile.CHRTYPE,
        tarfile.BLKTYPE,
        tarfile.FIFOTYPE,
    ]
    for number, kind in enumerate(kinds):
        entry = tarfile.TarInfo(f"{number}.jpg")
        entry.type, entry.linkname = kind, "/etc/passwd"
        entries += [(entry, b""), (tarfile.TarInfo(f"file-{number}.jpg"), b"x" * number)]
    assert [member.name for member in members(tar_of(entries))] == [
        f"file-{n}.jpg" for n in range(len(kinds))
    ]


@pytest.mark.parametrize("sparse", ["gnu", "pax"])
def test_sparse_files_are_skipped(sparse: str) -> None:
    """Their bytes are not in one piece."""
    hole, after = tarfile.TarInfo("hole.jpg"), tarfile.TarInfo("after.jpg")
    if sparse == "pax":
        hole.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "hole.jpg"}
        content = tar_of([(hole, b"y" * 600), (after, b"z")])
    else:
        content = bytearray(tar_of([(hole, b"y" * 600), (after, b"z")], format=tarfile.GNU_FORMAT))
        content[156:157], content[482] = b"S", 1  # one more block of the sparse map follows
        content[148:156] = b"%06o\0 " % (sum(content[:148]) + 256 + sum(content[156:512]))
        content[512:512] = bytes(512)
    assert [member.name for member in members(bytes(content))] == ["after.jpg"]


def test_a_size_above_eight_gb_is_read() -> None:
    entry = tarfile.TarInfo("large.jpg")
    entry.size = 9 << 30
    for tar_format in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        header = entry.tobuf(tar_format)
        assert next(tar_members(_Endless(header), 0, 20 << 30)).size == 9 << 30


class _Endless(io.BytesIO):
    """A header followed by zeros."""

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(size).ljust(size or 0, b"\0")


def test_signed_checksums_of_old_programs_are_accepted() -> None:
    content = bytearray(tar_of([(tarfile.TarInfo("caf\xe9.jpg"), b"x")], format=tarfile.GNU_FORMAT))
    signed = sum(byte - 256 * (byte > 127) for byte in content[:148] + content[156:512]) + 256
    content[148:156] = b"%06o\0 " % signed
    assert [member.name for member in members(bytes(content))] == ["caf\xe9.jpg"]


def test_the_size_of_a_link_is_ignored() -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        link, after = tarfile.TarInfo("link.jpg"), tarfile.TarInfo("after.jpg")
        link.type, link.linkname, link.size = tarfile.LNKTYPE, "0.jpg", 7000
        tar.addfile(link)
        tar.addfile(after)
    assert [member.name for member in members(buffer.getvalue())] == ["after.jpg"]


def test_a_damaged_header_is_reported_with_its_position() -> None:
    content = bytearray(tar_of([(tarfile.TarInfo(f"{n}.jpg"), bytes(700)) for n in range(4)]))
    content[2 * 1536 + 10] ^= 1
    walk = tar_members(io.BytesIO(content), 0, len(content))
    assert [next(walk).name, next(walk).name] == ["0.jpg", "1.jpg"]
    with pytest.raises(DamagedTarError, match="no valid header at byte 3072"):
        next(walk)


@pytest.mark.parametrize(
    "record", [b"0 path=x\n", b"-9 path=x\n", b"99 path=x\n", b"x path=x\n", b"7 pathx\n"]
)
def test_a_damaged_extended_header_is_reported(record: bytes) -> None:
    extended = tarfile.TarInfo("long name follows")
    extended.type = tarfile.XHDTYPE
    with pytest.raises(DamagedTarError, match="no valid header at byte 0"):
        members(tar_of([(extended, record), (tarfile.TarInfo("0.jpg"), b"x")]))


def test_a_tar_without_its_end_mark_is_reported_as_cut(tmp_path: Path) -> None:
    content = tar_of([(tarfile.TarInfo("0.jpg"), bytes(700))])[:1536]
    walk = tar_members(io.BytesIO(content), 0, len(content))
    assert next(walk).name == "0.jpg"
    with pytest.raises(DamagedTarError, match="without the empty blocks"):
        next(walk)


@given(st.integers(0, 10**6), st.integers(1, 12), st.integers(0, 1))
@example_settings(max_examples=150, deadline=None)
def test_members_of_a_damaged_tar_are_within_the_file_or_damage_is_reported(
    seed: int, damages: int, cut: int
) -> None:
    source = random.Random(seed)
    entries = [(tarfile.TarInfo("n" * source.choice([5, 150]) + f"{n}.jpg"), bytes(300)) for n in range(4)]
    content = bytearray(tar_of(entries, format=source.choice([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])))
    for _ in range(damages):
        content[source.randrange(min(len(content), 6000))] = source.randrange(256)
    content = content[: source.randrange(len(content))] if cut else content
    try:
        for member in tar_members(io.BytesIO(content), 0, len(content)):
            assert 0 <= member.offset <= member.offset + member.size <= len(content)
    except DamagedTarError:
        pass
