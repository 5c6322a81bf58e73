"""Places as people write them: paths with `~`, `pathlib` paths, `file://` URLs, URLs of other machines.

Settings convert them with the types of `settings.py`; public functions that take a path call these functions.
"""

import os
import re
import sys
from pathlib import Path

from teacher_cache.errors import UsageError
from teacher_cache.files.remote import is_remote

FILE = "file://"
_UNDECODED = re.compile(r"[\udc80-\udcff]")  # how Python represents bytes of names that it cannot decode


def place_of(place: str | os.PathLike[str]) -> str:
    """Return a path or URL as text, with `~` and `~USER` expanded and without `file://`.

    It is text because pathlib would shorten "s3://". A relative path stays relative.

    Raises:
        UsageError: `~USER` names neither a user nor an existing file.
    """
    text = os.fspath(place)
    if text.startswith(FILE):
        text = text.removeprefix(FILE)
        text = text.removeprefix("localhost") if text.startswith("localhost/") else text
    if not text.startswith("~"):
        return text
    expanded = os.path.expanduser(text)
    first = text.partition("/")[0]
    if expanded.startswith("~") and not os.path.lexists(first):
        raise UsageError(f"no user has the home folder {first}; write ./{text} for a folder of that name")
    return expanded


def place_or_text(value: str | os.PathLike[str]) -> str:
    """Return a text with a field `{}` unchanged, anything else as `place_of`."""
    text = os.fspath(value)
    return text if "{" in text else place_of(text)


def local_path(place: str | os.PathLike[str]) -> Path:
    """Return a place on this machine as a path; see `place_of`.

    Raises:
        UsageError: a URL of another machine, and as `place_of`.
    """
    path = place_of(place)
    if is_remote(path):
        raise UsageError(f"expected a path on this machine, found the URL {path}")
    return Path(path)


def absolute_place(place: str | os.PathLike[str]) -> str:
    """Return a place in a form that is the same in every working directory. Links stay as they are.

    Raises:
        UsageError: as `place_of`.
    """
    path = place_of(place)
    return path if is_remote(path) else str(Path(path).absolute())


def same_place(one: str | os.PathLike[str], other: str | os.PathLike[str]) -> bool:
    """Return whether two spellings name the same place ('a', './a/', its absolute path)."""
    return os.path.normpath(absolute_place(one)) == os.path.normpath(absolute_place(other))


def is_undecoded(name: str) -> bool:
    """Return whether a name from the system has bytes that Python could not decode."""
    return _UNDECODED.search(name) is not None


def undecoded(name: str) -> str:
    """Return a message about a name for which `is_undecoded` is true: why, and what to do."""
    shown = os.fsencode(name).decode(errors="backslashreplace")
    encoding = sys.getfilesystemencoding()
    if encoding == "utf-8":
        return f"the name '{shown}' is not UTF-8; rename it"
    return f"the name '{shown}' cannot be decoded in this locale's encoding, {encoding}; set PYTHONUTF8=1"
