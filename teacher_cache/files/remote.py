"""Files on other machines (`s3://`, `hf://`, `https://`, any URL that fsspec knows), read by byte ranges.

Images are read with `ask`: it repeats each request for a while, and what still fails is an RppError that
names the file, never an unreadable image. Caches are read and written within `reaching`: the client libraries
of object stores repeat requests themselves.
"""

import io
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from teacher_cache.errors import CacheUnreachableError, RppError, UsageError
from teacher_cache.files.hub import download, is_on_hub, refusal

RETRY_AFTER_SECONDS = (1.0, 4.0, 15.0)
READ_AHEAD_BYTES = (
    1 << 20
)  # a request takes as long as reading about 1 MB: shorter gaps are read, not skipped
EXTRAS = {"s3": ("s3fs", "s3"), "gs": ("gcsfs", "gcs"), "gcs": ("gcsfs", "gcs")} | dict.fromkeys(
    ("http", "https"), ("aiohttp", "http")
)
# Fields that change when a file changes, by the names of the file systems.
VERSION_FIELDS = (
    *("ETag", "etag", "blob_id", "Last-Modified", "LastModified", "mtime", "updated", "created"),
)

Result = TypeVar("Result")

_filesystems: dict[str, Any] = {}
_connecting = threading.Lock()


def is_remote(place: str) -> bool:
    """Return whether a path is a URL."""
    return "://" in place


def lists_folders(url: str) -> bool:
    """Return whether the file system can list its files; a web server cannot."""
    return not url.startswith(("http://", "https://"))


def connect(url: str, **options: Any) -> tuple[Any, str]:
    """Return fsspec's file system for a URL, and the path in it.

    Args:
        options: of the file system.

    Raises:
        UsageError: an unknown protocol, or one whose package is not installed.
    """
    import fsspec

    try:
        files, path = fsspec.url_to_fs(url, **options)
        return files, str(path)
    except ImportError as error:
        protocol = url.partition("://")[0]
        if protocol not in EXTRAS:
            raise UsageError(f"{url} needs a package that is not installed: {error}") from error
        package, extra = EXTRAS[protocol]
        raise UsageError(f"{url} needs {package}: pip install 'rpp-clip[{extra}]'") from error
    except ValueError as error:
        raise UsageError(f"cannot open {url}: {error}") from error


def filesystem(url: str) -> tuple[Any, str]:
    """Return the file system of a URL, one for all threads, and the path in it; raises as `connect`."""
    protocol, _, rest = url.partition("://")
    root = f"{protocol}://{rest.partition('/')[0]}"
    with _connecting:
        if root not in _filesystems:
            _filesystems[root] = connect(url)[0]
    found = _filesystems[root]
    from teacher_cache.compat.fsspec import path_in  # imports fsspec

    return found, path_in(found, url)


def url_of(near: str, path: str) -> str:
    """Return the URL of a path that the file system of the URL `near` listed."""
    url: str = filesystem(near)[0].unstrip_protocol(path)
    return url


def ask(url: str, request: Callable[[], Result]) -> Result:
    """Return the result of a request, repeated after pauses while the network fails.

    Raises:
        FileNotFoundError: the server reports that there is no such file.
        UsageError: Hugging Face's hub refuses access.
        RppError: it still fails after the last pause.
    """
    for pause in (*RETRY_AFTER_SECONDS, None):
        try:
            return request()
        except RppError:
            raise
        # client libraries have their own exceptions, without a common base; none is hidden
        except Exception as error:
            if is_on_hub(url) and (refused := refusal(url, error)):
                raise refused from error
            if isinstance(error, FileNotFoundError) and _is_definite(url, error):
                raise
            if pause is None or isinstance(error, PermissionError):
                cause = error.__cause__ if isinstance(error, FileNotFoundError) else error
                reason = f"{type(cause).__name__}: {cause}".strip().removesuffix(":").replace("\n", " ")
                raise RppError(f"cannot read {url} ({reason})") from error
        time.sleep(pause)
    raise AssertionError("the last attempt returns or raises")


def _is_definite(url: str, error: FileNotFoundError) -> bool:
    # fsspec reports every failure of a web server as "not found", and so may the hub's file system a rate
    # limit; the cause has the status
    cause = error.__cause__
    if is_on_hub(url):
        return getattr(getattr(cause, "response", None), "status_code", None) in (None, 404, 410)
    return lists_folders(url) or cause is None or getattr(cause, "status", None) in (404, 410)


@contextmanager
def reaching(url: str, writing: bool = False) -> Iterator[None]:
    """Report errors on the way to a cache in an object store in one line. FileNotFoundError on reading and
    FileExistsError pass: the caller handles them.

    Raises:
        UsageError: the store refuses access, or has no such bucket to write to.
        CacheUnreachableError: it does not answer.
    """
    try:
        yield
    except FileNotFoundError as error:
        if is_on_hub(url) and (refused := refusal(url, error)):
            raise refused from error
        if not writing:
            raise
        raise UsageError(f"cannot write {url}: {error}") from error
    except (FileExistsError, RppError):
        raise
    except PermissionError as error:
        raise UsageError(f"{url}: access denied ({error}); check the credentials") from error
    except Exception as error:  # client libraries have their own exceptions, without a common base
        reason = (str(error).strip().splitlines() or [""])[0]
        raise CacheUnreachableError(
            f"cannot reach {url} ({type(error).__name__}: {reason}); what is committed is safe: run the same "
            "command again"
        ) from error


def file_info(url: str) -> dict[str, Any]:
    """Return what the file system reports about a file; raises as `ask`."""
    files, path = filesystem(url)
    info: dict[str, Any] = ask(url, lambda: files.info(path))
    return info


def version_of(info: dict[str, Any]) -> str:
    """Return the tag or time that changes when the file changes; empty if the file system has neither."""
    return next((str(info[field]) for field in VERSION_FIELDS if info.get(field)), "")


def read_range(url: str, offset: int, length: int) -> bytes:
    """Return bytes of a file.

    Raises:
        FileNotFoundError: there is no such file.
        RppError: it cannot be read, is too short, or the server ignores ranges.
    """
    if length == 0:
        return b""
    files, path = filesystem(url)
    # by default, the hub's file system reads 5 MB ahead
    options = {"cache_type": "none"} if is_on_hub(url) else {}

    def request() -> bytes:
        content: bytes = files.cat_file(path, start=offset, end=offset + length, **options)
        if len(content) > length:
            raise RppError(f"cannot read {url}: its server ignores byte ranges and sends complete files")
        if len(content) < length:
            raise EOFError(f"{len(content)} of {length} bytes at {offset}")
        return content

    return ask(url, request)


def local_file(place: str) -> str:
    """Return the path of a file: one on Hugging Face's hub is fetched into the hub's own cache first.

    Raises:
        UsageError: another URL, or the hub has no such file or refuses access.
        RppError: the network fails.
    """
    if not is_remote(place):
        return place
    if not is_on_hub(place):
        raise UsageError(f"{place}: expected a local file or an hf:// URL; download it first")
    return ask(place, lambda: download(place))


class RemoteFile(io.RawIOBase):
    """A remote file as a seekable binary file; each read is one request."""

    def __init__(self, url: str, size: int, read: Callable[[str, int, int], bytes] = read_range) -> None:
        """
        Args:
            size: bytes of the file.
            read: returns bytes of the file from URL, offset and length.
        """
        super().__init__()
        self._url, self._size, self._read, self._position = url, size, read, 0

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
        content = self._read(self._url, self._position, length) if length else b""
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)
