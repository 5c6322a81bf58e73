"""Errors that a user can act on. Each has the exit code that the commands end with.

A message says what is wrong, where, and what to do. The command line prints it without a traceback, unless
`RPP_DEBUG` is set. Any other exception is a defect of this project and keeps its traceback.
"""

import re

# Line ends, control characters, changes of writing direction, and surrogates, which cannot be encoded.
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """Return the text as one line that is safe for a terminal: names in it may come from anyone."""
    return _UNPRINTABLE.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


class RppError(Exception):
    """Something failed without a mistake of the user: a full disk, a damaged cache, a lost worker."""

    exit_code = 1

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


class UsageError(RppError):
    """The user requested something that cannot be done."""

    exit_code = 2


class UnsupportedTowerError(UsageError):
    """The model has a tower that the requested operation does not support."""


class CacheMismatchError(UsageError):
    """A cache was created with another teacher, vocabulary, view policy or sample table."""


class CacheBusyError(UsageError):
    """Another process is building this cache."""


class CacheDamagedError(RppError):
    """Stored arrays or records of a cache are damaged."""


class CacheUnreachableError(RppError):
    """The store of a cache does not answer."""
