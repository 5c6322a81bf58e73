"""Checks by file names whether a cache exists, before anything slow is imported."""

import errno
import os

from teacher_cache.errors import UsageError
from teacher_cache.files.hub import is_on_hub
from teacher_cache.files.places import place_of

GROUP = "zarr.json"  # metadata of a Zarr group or array; in a cache's folder, its header
HEADER_COPY = "header.json"


def no_cache(path: str) -> UsageError:
    """Return the error for a place without a cache."""
    return UsageError(f"no cache at {path}")


def require_nameable(path: str) -> None:
    """Refuse a path with a name that is too long for the file system.

    Raises:
        UsageError: such a name.
    """
    try:
        os.lstat(path)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise UsageError(f"{path} cannot be a folder: {error.strerror}") from error


def require_writable_place(place: str | os.PathLike[str]) -> None:
    """Refuse a place where caches can be read but not built: Hugging Face's hub.

    Raises:
        UsageError: such a place.
    """
    if is_on_hub(place_of(place)):
        raise UsageError(
            f"{os.fspath(place)} cannot be written: the hub has no locks; build the cache in a local folder "
            "and upload it with hf upload"
        )


def require_cache(path: str | os.PathLike[str]) -> None:
    """Refuse a local folder without a cache. A URL is checked when it is opened.

    Raises:
        UsageError: there is no cache.
    """
    place = place_of(path)
    require_nameable(place)
    if "://" not in place and not any(os.path.exists(os.path.join(place, n)) for n in (GROUP, HEADER_COPY)):
        raise no_cache(place)
