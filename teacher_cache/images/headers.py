"""List the members of a tar from their headers only: ustar, GNU and pax, 512 bytes each.

tarfile takes three and a half times as long for the same headers, and stops silently at a damaged one. Both
matter at 14 million members (`benchmarks/index_images.py`).
"""

from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

BLOCK = 512
_END = bytes(BLOCK)
_REGULAR = frozenset(b"0\x007")
_WITHOUT_CONTENT = frozenset(b"123456")  # links, devices, folders, pipes
_PAX, _PAX_GLOBAL, _GNU_NAME, _GNU_LINK, _GNU_SPARSE = frozenset(b"xX"), *b"gLKS"
_LONGEST_EXTENDED_HEADER = 1 << 20
_DIGITS = 8  # of a record's length in an extended header, and the space after it


class TarMember(NamedTuple):
    """A regular file in a tar; its content starts at byte `offset`."""

    name: str
    offset: int
    size: int


class DamagedTarError(Exception):
    """A tar is damaged from the byte `position` on."""

    def __init__(self, reason: str, position: int) -> None:
        super().__init__(reason)
        self.position = position


def tar_members(file: BinaryIO, start: int, stop: int) -> Iterator[TarMember]:
    """Yield the regular files of the tar in bytes start .. stop of a seekable file. Links, devices and sparse
    files are skipped.

    Raises:
        DamagedTarError: a damaged header, or no end mark. The members before it are complete.
    """
    position, extended = start, dict[str, str]()
    while True:
        at = position
        file.seek(at)
        header = file.read(max(0, min(BLOCK, stop - at)))
        if header == _END:
            return
        if len(header) < BLOCK:
            where = "within a header" if header else "without the empty blocks at the end of a tar"
            raise DamagedTarError(f"ends {where}", at)
        try:
            _require_checksum(header)
            kind, size = header[156], _number(header[124:136])
            if kind in _PAX or kind in (_PAX_GLOBAL, _GNU_NAME, _GNU_LINK):
                if not 0 <= size <= _LONGEST_EXTENDED_HEADER:
                    raise ValueError("a name longer than 1 MB, or of negative length")
                content = file.read(size)
                if kind in _PAX:
                    extended |= _pax_records(content)
                elif kind == _GNU_NAME:
                    extended["path"] = _text(content)
                position = at + BLOCK + -(-size // BLOCK) * BLOCK
                continue
            size = int(extended.get("size", size))
            if size < 0:
                raise ValueError("a negative size")
        except ValueError as error:
            raise DamagedTarError(f"no valid header at byte {at} ({error})", at) from error
        name = extended.get("path") or _name(header)
        sparse = kind == _GNU_SPARSE or "GNU.sparse" in extended
        extended = {}
        begin = at + BLOCK
        if kind == _GNU_SPARSE and header[482]:
            while len(more := file.read(BLOCK)) == BLOCK:
                begin += BLOCK
                if not more[504]:
                    break
        if kind in _WITHOUT_CONTENT:
            position = begin
            continue
        position = begin + -(-size // BLOCK) * BLOCK
        is_complete = begin + size <= stop
        if kind in _REGULAR and not sparse and (is_complete or name.endswith(".tar")):
            yield TarMember(name, begin, min(size, stop - begin))  # a cut tar still has complete members
        if not is_complete:
            raise DamagedTarError(f"ends within {name}", at)


def _require_checksum(header: bytes) -> None:
    stored = _number(header[148:156])
    unsigned = sum(header) - sum(header[148:156]) + 8 * ord(" ")
    if stored != unsigned:  # some old programs summed signed bytes
        rest = header[:148] + header[156:]
        if stored != unsigned - 256 * sum(byte > 127 for byte in rest):
            raise ValueError("wrong checksum")


def _number(field: bytes) -> int:
    if field[0] & 0x80:  # GNU: too large for octal digits
        return int.from_bytes(field[1:], "big") if field[0] == 0x80 else -1
    return int(field.split(b"\0", 1)[0].strip() or b"0", 8)


def _text(field: bytes) -> str:
    return _printable(field.split(b"\0", 1)[0])


def _printable(name: bytes) -> str:
    try:
        return name.decode()
    except UnicodeDecodeError:
        return name.decode("utf-8", "surrogateescape").encode(errors="backslashreplace").decode()


def _name(header: bytes) -> str:
    name = _text(header[:100])
    if header[257:263] == b"ustar\0" and header[345]:
        return f"{_text(header[345:500])}/{name}"
    return name


def _pax_records(content: bytes) -> dict[str, str]:
    """Return `path` and `size`, and whether the file is sparse. A record is "LENGTH KEY=VALUE\\n"."""
    records: dict[str, str] = {}
    at, end = 0, len(content.rstrip(b"\0"))
    while at < end:  # by position: slicing the rest off would copy a MB a hundred thousand times
        space = content.find(b" ", at, at + _DIGITS)
        length = int(content[at:space]) if space > 0 else 0
        key, equals, value = content[space + 1 : at + length - 1].partition(b"=")
        if not equals or not 0 < length <= len(content) - at:
            raise ValueError("a damaged extended header")
        if key.startswith(b"GNU.sparse"):
            records["GNU.sparse"] = ""
        elif key in (b"path", b"size"):
            records[key.decode()] = _printable(value)
        at += length
    return records
