"""Errors that a user can act on. Each carries the exit code that the commands end with.

A message says what was wrong, where, and what to do. The command line prints it without a traceback;
any other exception is a defect of this project and keeps its traceback.
"""

import re

# What ends a line, commands a terminal, turns the direction of writing or cannot be encoded.
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """The text for a terminal, in one line: names in it may come from anyone."""
    return _UNPRINTABLE.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


class RppError(Exception):
    """Something failed that is not a mistake of the user (disk full, a damaged cache, a lost worker)."""

    exit_code = 1

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


class UsageError(RppError):
    """The user asked for something that cannot be done as asked."""

    exit_code = 2


class UnsupportedTowerError(UsageError):
    """The model has a tower that the asked operation does not know how to run."""


class CacheMismatchError(UsageError):
    """A cache was begun with another teacher, vocabulary, view policy or sample table."""


class CacheBusyError(UsageError):
    """Another process is building this cache."""


class CacheDamagedError(RppError):
    """Stored arrays or records of a cache cannot be trusted."""


class CacheUnreachableError(RppError):
    """The store that a cache lies in does not answer."""
