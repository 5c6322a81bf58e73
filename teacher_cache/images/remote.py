"""Files on other machines (`s3://`, `gs://`, `https://`, whatever fsspec knows), read by byte ranges.

A network fails for a while and comes back: every request is tried several times. What then still fails is an
RppError that names the file, never an unreadable image.
"""

import io
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from teacher_cache.errors import RppError, UsageError

RETRY_AFTER_SECONDS = (1.0, 4.0, 15.0)
READ_AHEAD_BYTES = 1 << 20  # a request costs as much time as some MB: members below that are not skipped
EXTRAS = {"s3": ("s3fs", "s3"), "gs": ("gcsfs", "gcs"), "gcs": ("gcsfs", "gcs")} | dict.fromkeys(
    ("http", "https"), ("aiohttp", "http")
)
# What tells that a file changed, by the names that the file systems give it.
VERSION_FIELDS = ("ETag", "etag", "Last-Modified", "LastModified", "mtime", "updated", "created")

Result = TypeVar("Result")

_filesystems: dict[str, Any] = {}
_connecting = threading.Lock()


def is_remote(place: str) -> bool:
    """Whether a path is a URL."""
    return "://" in place


def lists_folders(url: str) -> bool:
    """Whether the file system can list what it holds; a web server cannot."""
    return not url.startswith(("http://", "https://"))


def filesystem(url: str) -> tuple[Any, str]:
    """fsspec's file system of a URL, one for all threads, and the path in it.

    Raises:
        UsageError: a protocol that fsspec does not know, or whose package is not installed.
    """
    protocol, _, rest = url.partition("://")
    root = f"{protocol}://{rest.partition('/')[0]}"
    with _connecting:
        if root not in _filesystems:
            import fsspec

            try:
                _filesystems[root] = fsspec.url_to_fs(root)[0]
            except ImportError as error:
                if protocol not in EXTRAS:
                    raise UsageError(f"{url}: {error}") from error
                package, extra = EXTRAS[protocol]
                raise UsageError(f"{url} needs {package}: pip install 'rpp-clip[{extra}]'") from error
            except ValueError as error:
                raise UsageError(f"{url}: {error}") from error
    found = _filesystems[root]
    from teacher_cache.compat.fsspec import path_in  # as fsspec: where a URL is met

    return found, path_in(found, url)


def url_of(near: str, path: str) -> str:
    """The URL of a path that the file system of the URL `near` listed."""
    url: str = filesystem(near)[0].unstrip_protocol(path)
    return url


def ask(url: str, request: Callable[[], Result]) -> Result:
    """The request's answer, asked for again after pauses while the network fails.

    Raises:
        FileNotFoundError: the other side says that it has no such file.
        RppError: it still fails after the last pause.
    """
    for pause in (*RETRY_AFTER_SECONDS, None):
        try:
            return request()
        except RppError:
            raise
        # each file system has errors of its own; none of them is hidden
        except Exception as error:
            if isinstance(error, FileNotFoundError) and _is_definite(url, error):
                raise
            if pause is None or isinstance(error, PermissionError):
                cause = error.__cause__ if isinstance(error, FileNotFoundError) else error
                reason = f"{type(cause).__name__}: {cause}".strip().removesuffix(":").replace("\n", " ")
                raise RppError(f"cannot read {url} ({reason})") from error
        time.sleep(pause)
    raise AssertionError("the last attempt returns or raises")


def _is_definite(url: str, error: FileNotFoundError) -> bool:
    # fsspec calls everything that goes wrong with a web server "not found"; what it was is the cause
    cause = error.__cause__
    return lists_folders(url) or cause is None or getattr(cause, "status", None) in (404, 410)


def file_info(url: str) -> dict[str, Any]:
    """What the file system knows of a file; raises as `ask`."""
    files, path = filesystem(url)
    info: dict[str, Any] = ask(url, lambda: files.info(path))
    return info


def version_of(info: dict[str, Any]) -> str:
    """What changes when the file changes: its tag or time; empty if the file system gives neither."""
    return next((str(info[field]) for field in VERSION_FIELDS if info.get(field)), "")


def read_range(url: str, offset: int, length: int) -> bytes:
    """Bytes of a file.

    Raises:
        FileNotFoundError: there is no such file.
        RppError: it cannot be read, is shorter than that, or the server ignores ranges.
    """
    if length == 0:
        return b""
    files, path = filesystem(url)

    def request() -> bytes:
        content: bytes = files.cat_file(path, start=offset, end=offset + length)
        if len(content) > length:
            raise RppError(f"cannot read {url}: its server ignores byte ranges and sends whole files")
        if len(content) < length:
            raise EOFError(f"{len(content)} of {length} bytes at {offset}")
        return content

    return ask(url, request)


class RemoteFile(io.RawIOBase):
    """A file on another machine as a seekable binary file; each read is one request."""

    def __init__(self, url: str, size: int) -> None:
        self._url, self._size, self._position = url, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = base + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        length = max(0, min(len(buffer), self._size - self._position))
        buffer[:length] = read_range(self._url, self._position, length)
        self._position += length
        return length
