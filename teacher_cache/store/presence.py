"""Whether a cache is at a place, as far as its names tell: for refusals before anything heavy is imported."""

import errno
import os

from teacher_cache.errors import UsageError

GROUP = "zarr.json"  # metadata of a Zarr group or array; in a cache's folder, its header
HEADER_COPY = "header.json"


def no_cache(path: str) -> UsageError:
    """The error for a place without a cache."""
    return UsageError(f"no cache at {path}")


def require_nameable(path: str) -> None:
    """Refuse a path that no file system takes; whether anything is there is another question.

    Raises:
        UsageError: a name that is too long.
    """
    try:
        os.lstat(path)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise UsageError(f"{path} cannot be a folder: {error.strerror}") from error


def require_cache(path: str | os.PathLike[str]) -> None:
    """Refuse a local folder that holds no cache. A URL is looked at when it is opened.

    Raises:
        UsageError: nothing of a cache is there.
    """
    place = os.fspath(path).removeprefix("file://")
    require_nameable(place)
    if "://" not in place and not any(os.path.exists(os.path.join(place, n)) for n in (GROUP, HEADER_COPY)):
        raise no_cache(place)
