"""The path of a URL within its file system.

Private: `AbstractFileSystem._strip_protocol`, seen in fsspec 2025.2 to 2026.9. Where it is gone,
`fsspec.url_to_fs` gives the same path, and makes a file system for each thread to do so.
"""

from typing import Any

import fsspec


def path_in(filesystem: Any, url: str) -> str:
    """The path that `filesystem` knows a URL by."""
    if hasattr(filesystem, "_strip_protocol"):
        return str(filesystem._strip_protocol(url))
    return str(fsspec.url_to_fs(url)[1])
