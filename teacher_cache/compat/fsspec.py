"""The path of a URL within its file system.

Private: `AbstractFileSystem._strip_protocol`, seen in fsspec 2025.2 to 2026.9. If it is missing,
`fsspec.url_to_fs` returns the same path, but creates a file system in each thread.
"""

from typing import Any

import fsspec


def path_in(filesystem: Any, url: str) -> str:
    """Return the path of a URL within `filesystem`."""
    if hasattr(filesystem, "_strip_protocol"):
        return str(filesystem._strip_protocol(url))
    return str(fsspec.url_to_fs(url)[1])
