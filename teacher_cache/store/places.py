"""Which kind of folder a path or URL names."""

import os

from teacher_cache.store.folder import Folder
from teacher_cache.store.local_folder import LocalFolder
from teacher_cache.store.remote_folder import RemoteFolder


def folder_at(place: str | os.PathLike[str]) -> Folder:
    """The folder that a path or URL names; it need not exist.

    Raises:
        UsageError: a URL of a kind that is not known here.
    """
    url = os.fspath(place)
    if url.startswith("file://"):
        url = url.removeprefix("file://")
    return RemoteFolder(url) if "://" in url else LocalFolder(url)
