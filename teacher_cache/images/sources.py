"""Which files or folder an image source names, here or on another machine."""

import itertools
import os
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from teacher_cache.errors import RppError, UsageError
from teacher_cache.files.remote import (
    ask,
    file_info,
    filesystem,
    is_remote,
    lists_folders,
    url_of,
    version_of,
)

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm"}
THREADS = 16  # that wait for disks and networks

LIST = re.compile(r"(?P<file>.+\.(?:txt|json))(?:#(?P<part>\w+))?")

Kind = Literal["tars", "parquet", "folder", "list"]


@dataclass(frozen=True)
class SourceFile:
    """A file or folder, and what changes when it changes.

    Attributes:
        path: absolute, or a URL.
        size: bytes; 0 of a folder.
        version: time of the last change, or what the file system has instead.
    """

    path: str
    size: int
    version: str

    @property
    def stem(self) -> str:
        """File name without folder and suffix."""
        return self.path.rpartition("/")[2].rpartition(".")[0]


@dataclass(frozen=True)
class Source:
    """What a source turned out to be: files in the order of their rows, one folder, or one list of images.

    Attributes:
        part: of a list, the part that is meant.
    """

    kind: Kind
    files: list[SourceFile]
    part: str | None = None

    @property
    def is_remote(self) -> bool:
        """Whether it is on another machine."""
        return is_remote(self.files[0].path)


def expand_source(source: str) -> list[str]:
    """Files or the folder that a source names, as absolute paths or URLs.

    Braces (`{000..127}`, `{a,b}`) and globs (`*`, `?`, `[...]`) are expanded, each in sorted order; a folder
    that holds tar or Parquet files stands for them, any other folder is an image folder. A `.txt` file and
    `split_zhou_*.json#test`, one part of such a file, are lists of images.

    Raises:
        UsageError: nothing there.
    """
    return [file.path for file in find_source(source).files]


def absolute_source(source: str) -> str:
    """The source named so that it is found from any working directory."""
    return source if is_remote(source) else str(Path(source).expanduser().absolute())


def find_source(source: str) -> Source:
    """What `expand_source` says, with kind, sizes and versions.

    Raises:
        UsageError: nothing there, or files of several kinds.
        RppError: the network fails.
    """
    source = source.removeprefix("file://")
    if listed := LIST.fullmatch(source):
        return _list(source, listed["file"], listed["part"])
    patterns = _expand_braces(source if is_remote(source) else os.path.expanduser(source)) if source else []
    with ThreadPoolExecutor(THREADS) as pool:
        expanded = pool.map(_remote_matches if is_remote(source) else _local_matches, patterns)
        found: list[_Match] = []
        for pattern, matches in zip(patterns, expanded, strict=True):
            if matches is None:
                raise UsageError(f"image source '{source}': {pattern} does not exist")
            found.extend(matches)
        folders = [match for match in found if match.is_folder]
        if len(found) == 1 and folders:
            inside = (_remote_folder if is_remote(source) else _local_folder)(folders[0].path)
            for suffix in (".tar", ".parquet"):
                if chosen := [match for match in inside if match.path.endswith(suffix)]:
                    if not is_remote(source) and _holds_images_too(folders[0].path):
                        raise UsageError(
                            f"image source '{source}' holds {suffix} files beside images or folders; name "
                            f"the files, '{source.rstrip('/')}/*{suffix}', or take them out"
                        )
                    found, folders = chosen, []
                    break
        if not found or (folders and len(found) > 1):
            raise UsageError(
                f"image source '{source}' names no tar shards, no Parquet files and no single image folder"
            )
        files = list(pool.map(_described, found))
    if folders:
        return Source("folder", files)
    parquet = [file for file in files if file.path.endswith(".parquet")]
    if parquet and len(parquet) < len(files):
        raise UsageError(f"image source '{source}' names Parquet files and others; name one kind")
    return Source("parquet" if parquet else "tars", files)


def _list(source: str, file: str, part: str | None) -> Source:
    if is_remote(file):
        raise UsageError(f"image source '{source}': a list of images is read from a local disk; copy it here")
    path = Path(file).expanduser().absolute()
    if not os.path.isfile(path):
        raise UsageError(f"image source '{source}': {path} does not exist")
    return Source("list", [_described(_Match(str(path), False))], part)


@dataclass(frozen=True)
class _Match:
    path: str
    is_folder: bool
    info: dict[str, Any] | None = None


def _described(match: _Match) -> SourceFile:
    if match.is_folder:
        return SourceFile(match.path, 0, "")
    if match.info is None:
        stat = os.stat(match.path)
        return SourceFile(match.path, stat.st_size, str(stat.st_mtime_ns))
    if match.info.get("size") is None:
        raise RppError(f"cannot read {match.path}: its server does not say how long it is")
    return SourceFile(match.path, int(match.info["size"]), version_of(match.info))


def _has_glob(pattern: str) -> bool:
    # a web address has question marks of its own
    return any(sign in pattern for sign in ("*?[" if lists_folders(pattern) else "*"))


def _local_matches(pattern: str) -> list[_Match] | None:
    if _has_glob(pattern):
        base = Path(pattern[: min(pattern.index(s) for s in "*?[" if s in pattern)]).parent
        paths = sorted(base.glob(str(Path(pattern).relative_to(base))))
    else:
        paths = [Path(pattern)]
        if not os.path.exists(paths[0]):
            return None
    return [_Match(str(path.absolute()), path.is_dir()) for path in paths]


def _local_folder(folder: str) -> list[_Match]:
    names = sorted(name for name in os.listdir(folder) if name.endswith((".tar", ".parquet")))
    paths = [Path(folder, name).absolute() for name in names]
    return [_Match(str(path), False) for path in paths if path.is_file()]


def _holds_images_too(folder: str) -> bool:
    with os.scandir(folder) as entries:
        return any(
            not entry.name.startswith(".")
            and (entry.is_dir() or os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES)
            for entry in entries
        )


def _remote_matches(pattern: str) -> list[_Match] | None:
    files, path = filesystem(pattern)
    files.invalidate_cache()  # of listings: what changed since is to be seen
    if not _has_glob(pattern):
        try:
            info = file_info(pattern)
        except FileNotFoundError:
            return None
        return [_Match(pattern.rstrip("/"), info["type"] == "directory", info)]
    if not lists_folders(pattern):
        raise UsageError(f"{pattern}: a web server lists no files; name them by braces, {{000..127}}")
    listed = ask(pattern, lambda: files.glob(path, detail=True))
    return [
        _Match(url_of(pattern, name), info["type"] == "directory", info)
        for name, info in sorted(listed.items())
    ]


def _remote_folder(folder: str) -> list[_Match]:
    files, path = filesystem(folder)
    listed = ask(folder, lambda: files.ls(path, detail=True))
    return [
        _Match(url_of(folder, info["name"]), False, info)
        for info in sorted(listed, key=lambda info: str(info["name"]))
        if info["type"] == "file"
    ]


def _expand_braces(pattern: str) -> list[str]:
    match = re.search(r"\{([^{}]*)\}", pattern)
    if not match:
        return [pattern]
    numbers = re.fullmatch(r"(\d+)\.\.(\d+)", match[1])
    if numbers:
        first, last = numbers.groups()
        width = len(first) if first.startswith("0") or len(first) == len(last) else 0
        options = [str(number).zfill(width) for number in range(int(first), int(last) + 1)]
    else:
        options = match[1].split(",")
    expanded = (_expand_braces(pattern[: match.start()] + o + pattern[match.end() :]) for o in options)
    return list(itertools.chain.from_iterable(expanded))
