"""Text files of other people, up to a size: vocabularies, lists, recipes."""

import errno
import re
from pathlib import Path

MOST_BYTES = 256 << 20  # 21,841 names with their definitions are 2 MB
MOST_LIST_BYTES = 4 << 30  # of a list of images: 14 million lines of 80 letters are 1.1 GB


def read_text(path: Path, at_most: int = MOST_BYTES) -> str:
    """Return a file's UTF-8 text without the byte order mark that some editors write.

    Lines end in `\\n`, whatever they end in in the file. Split at that: `str.splitlines` also cuts at
    characters that names may have.

    Raises:
        OSError: it cannot be read, or has more than `at_most` bytes; see `strerror`.
        UnicodeDecodeError: it is not UTF-8.
    """
    content = bytearray()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            content += piece
            if len(content) > at_most:
                raise OSError(errno.EFBIG, f"it has more than {at_most >> 20:,} MB", str(path))
    return content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")


def is_text(name: str) -> bool:
    """Return whether a string can be stored and tokenized: JSON can contain surrogates and zero bytes."""
    return not re.search(r"[\0\ud800-\udfff]", name)
