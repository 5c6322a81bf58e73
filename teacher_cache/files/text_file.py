"""Text files that others wrote, up to a size: vocabularies, lists, recipes."""

import errno
from pathlib import Path

MOST_BYTES = 256 << 20  # 21,841 names with their definitions are 2 MB
MOST_LIST_BYTES = 4 << 30  # of a list of images: 14 million lines of 80 letters are 1.1 GB


def read_text(path: Path, at_most: int = MOST_BYTES) -> str:
    """A file's UTF-8 text, without the byte order mark that some editors write.

    Raises:
        OSError: it cannot be read, or is of more than `at_most` bytes; `strerror` says which.
        UnicodeDecodeError: it is not UTF-8.
    """
    content = bytearray()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            content += piece
            if len(content) > at_most:
                raise OSError(errno.EFBIG, f"it has more than {at_most >> 20:,} MB", str(path))
    return content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
