"""Errors that a user can act on. Each carries the exit code that the commands end with.

A message says what was wrong, where, and what to do. The command line prints it without a traceback;
any other exception is a defect of this project and keeps its traceback.
"""


class RppError(Exception):
    """Something failed that is not a mistake of the user (disk full, a damaged cache, a lost worker)."""

    exit_code = 1


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
