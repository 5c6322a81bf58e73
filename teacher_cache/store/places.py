"""The kind of folder of a path or URL."""

import os

from teacher_cache.store.folder import Folder
from teacher_cache.store.local_folder import LocalFolder
from teacher_cache.store.remote_folder import RemoteFolder


def folder_at(place: str | os.PathLike[str]) -> Folder:
    """Return the folder of a path or URL; it need not exist.

    Raises:
        UsageError: a URL with an unknown protocol.
    """
    url = os.fspath(place)
    if url.startswith("file://"):
        url = url.removeprefix("file://")
    return RemoteFolder(url) if "://" in url else LocalFolder(url)
