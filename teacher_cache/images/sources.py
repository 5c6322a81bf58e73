"""Image sources: the registry of their kinds, and the files or folder that a source names."""

import itertools
import os
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from teacher_cache.errors import RppError, UsageError
from teacher_cache.files.places import absolute_place, place_of
from teacher_cache.files.remote import (
    ask,
    file_info,
    filesystem,
    is_remote,
    lists_folders,
    url_of,
    version_of,
)
from teacher_cache.images.decode import IMAGE_SUFFIXES
from teacher_cache.images.leftovers import Leftovers, kind_of_leftover
from teacher_cache.lazy import load

if TYPE_CHECKING:
    from teacher_cache.images.rows import Rows

THREADS = 16  # they wait for disks and networks

LIST = re.compile(r"(?P<file>.+\.(?:txt|json))(?:#(?P<part>\w+))?")


@dataclass(frozen=True)
class SourceKind:
    """A kind of image source: how its files are recognised and what reads their headers.

    Attributes:
        indexer: MODULE:FUNCTION, imported when it is first used. The function takes a `Source` and returns
            its `Rows`, one or more, in the source's order.
        suffixes: of its files. A folder that contains such files stands for them.
    """

    indexer: str
    suffixes: tuple[str, ...] = ()

    def index(self, source: "Source") -> "list[Rows]":
        """Read the source's headers."""
        pieces: list[Rows] = load(self.indexer)(source)
        return pieces


# `find_source` recognises a folder and a list; tars are also what has no known suffix.
SOURCES = {
    "folder": SourceKind("teacher_cache.images.folder:index_folder"),
    "tars": SourceKind("teacher_cache.images.tars:index_tars", (".tar",)),
    "parquet": SourceKind("teacher_cache.images.parquet:index_parquet", (".parquet",)),
    "list": SourceKind("teacher_cache.images.lists:index_list"),
}


@dataclass(frozen=True)
class SourceFile:
    """A file or folder, with what changes when its content changes.

    Attributes:
        path: absolute, or a URL.
        size: bytes; 0 for a folder.
        version: time of the last change, or the file system's own tag.
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
    """A source that was found: files in the order of their rows, one folder, or one list of images.

    Attributes:
        kind: a name in `SOURCES`.
        part: the requested part of a list.
        leftovers: files in a folder, or matches of a pattern, that were passed over.
    """

    kind: str
    files: list[SourceFile]
    part: str | None = None
    leftovers: Leftovers = field(default_factory=Leftovers)

    @property
    def is_remote(self) -> bool:
        """Whether it is on another machine."""
        return is_remote(self.files[0].path)


def expand_source(source: str) -> list[str]:
    """Return the files or the folder that a source names, as absolute paths or URLs.

    A path that exists is taken as it is. In others, braces (`{000..127}`, `{a,b}`) and globs (`*`, `?`,
    `[...]`) are expanded, each in sorted order, behind the folders that exist as they are written. A folder
    that contains tar or Parquet files stands for them; any other folder is an image folder. A `.txt` file and
    `split_zhou_*.json#test`, one part of such a file, are lists of images.

    Raises:
        UsageError: nothing was found.
    """
    return [file.path for file in find_source(source).files]


def absolute_source(source: str) -> str:
    """Return the source in a form that is found from any working directory."""
    if source.startswith("{") and not os.path.lexists(source):  # its alternatives may be absolute
        return "{" + ",".join(absolute_place(pattern) for pattern in _expanded_patterns(source)) + "}"
    return absolute_place(source)


def find_source(source: str) -> Source:
    """Find the files of a source as `expand_source` does, with kind, sizes and versions.

    Raises:
        UsageError: nothing was found, or files of several kinds.
        RppError: the network fails.
    """
    source = place_of(source)
    if (listed := LIST.fullmatch(source)) and not os.path.isdir(source):
        return _list(source, listed["file"], listed["part"])
    leftovers = Leftovers()
    patterns = _expanded_patterns(source) if source else []
    with ThreadPoolExecutor(THREADS) as pool:
        expanded = pool.map(_remote_matches if is_remote(source) else _local_matches, patterns)
        found: list[_Match] = []
        for pattern, matches in zip(patterns, expanded, strict=True):
            if matches is None:
                raise UsageError(f"image source '{source}': {pattern} does not exist")
            is_named = not _has_glob(pattern)
            found.extend(m for m in matches if is_named or not leftovers.has(m.name, m.path))
        folders = [match for match in found if match.is_folder]
        if len(found) == 1 and folders and (inside := _files_in_folder(source, folders[0].path, leftovers)):
            found, folders = inside, []
        if not found or (folders and len(found) > 1):
            count = f"{len(folders)} folders among {len(found)} matches" if found else "nothing"
            raise UsageError(
                f"image source '{source}': expected {', '.join(_file_suffixes())} files or one image folder, "
                f"found {count}"
            )
        files = list(pool.map(_described, found))
    kinds = {_kind_of_file(file.path) for file in files}
    if len(kinds) > 1:
        raise UsageError(
            f"image source '{source}' names files of several kinds ({', '.join(sorted(kinds))}); name files "
            "of one kind"
        )
    return Source("folder" if folders else kinds.pop(), files, leftovers=leftovers)


def _file_suffixes() -> tuple[str, ...]:
    return tuple(suffix for kind in SOURCES.values() for suffix in kind.suffixes)


def _kind_of_file(path: str) -> str:
    return next((name for name, kind in SOURCES.items() if path.endswith(kind.suffixes)), "tars")


def _files_in_folder(source: str, folder: str, leftovers: Leftovers) -> "list[_Match]":
    """Files of the first kind that the folder contains; none if it is an image folder.

    Raises:
        UsageError: a local folder with such files beside images or folders.
    """
    inside = (_remote_folder if is_remote(folder) else _local_folder)(folder)
    for kind in SOURCES.values():
        ours = [match for match in inside if match.path.endswith(kind.suffixes)]
        if chosen := [match for match in ours if kind_of_leftover(match.name) is None]:
            for match in ours:
                leftovers.has(match.name, match.path)
            if not is_remote(folder) and _contains_images_too(folder):
                suffix = os.path.splitext(chosen[0].path)[1]
                raise UsageError(
                    f"image source '{source}' contains {suffix} files beside images or folders; name the "
                    f"files, '{source.rstrip('/')}/*{suffix}', or move them away"
                )
            return chosen
    return []


def _list(source: str, file: str, part: str | None) -> Source:
    if is_remote(file):
        raise UsageError(f"image source '{source}': lists of images are read from a local disk; copy it")
    path = Path(file).absolute()
    if not os.path.isfile(path):
        raise UsageError(f"image source '{source}': {path} does not exist")
    return Source("list", [_described(_Match(str(path), False))], part)


@dataclass(frozen=True)
class _Match:
    path: str
    is_folder: bool
    info: dict[str, Any] | None = None

    @property
    def name(self) -> str:
        """Its own name without folders."""
        return self.path.rstrip("/").rpartition("/")[2]


def _described(match: _Match) -> SourceFile:
    if match.is_folder:
        return SourceFile(match.path, 0, "")
    if match.info is None:
        stat = os.stat(match.path)
        return SourceFile(match.path, stat.st_size, str(stat.st_mtime_ns))
    if match.info.get("size") is None:
        raise RppError(f"cannot read {match.path}: its server does not report its size")
    return SourceFile(match.path, int(match.info["size"]), version_of(match.info))


def _has_glob(pattern: str) -> bool:
    # a web address may contain question marks and brackets
    return any(sign in pattern for sign in ("*?[" if lists_folders(pattern) else "*"))


def _literal_length(pattern: str) -> int:
    """Return the length of the longest part of a pattern that is taken as it is: folders that exist under
    the name as written, whatever signs it contains, and folders without signs."""
    root = re.match(r"(\w+://|/*)", pattern)
    taken = root.end() if root else 0
    for part in re.findall(r"[^/]+/*", pattern[taken:]):
        end = taken + len(part)
        if any(sign in part for sign in "*?[{") and not _exists(pattern[:end].rstrip("/")):
            break
        taken = end
    return taken


def _exists(place: str) -> bool:
    if not is_remote(place):
        return os.path.lexists(place)
    if not lists_folders(place):  # braces and stars are not valid in web addresses
        return False
    try:
        file_info(place)
    except (FileNotFoundError, RppError):  # S3 may refuse to say that a key does not exist
        return False
    return True


def _local_matches(pattern: str) -> list[_Match] | None:
    length = _literal_length(pattern)
    literal, rest = Path(pattern[:length]), pattern[length:]
    if _has_glob(rest):
        paths = sorted(literal.glob(str(Path(rest))))
    else:
        paths = [literal / rest]
        if not os.path.exists(paths[0]):
            return None
    return [_Match(str(path.absolute()), path.is_dir()) for path in paths]


def _local_folder(folder: str) -> list[_Match]:
    names = sorted(name for name in os.listdir(folder) if name.endswith(_file_suffixes()))
    paths = [Path(folder, name).absolute() for name in names]
    return [_Match(str(path), False) for path in paths if path.is_file()]


def _contains_images_too(folder: str) -> bool:
    with os.scandir(folder) as entries:
        return any(
            kind_of_leftover(entry.name) is None
            and (entry.is_dir() or os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES)
            for entry in entries
        )


def _remote_matches(pattern: str) -> list[_Match] | None:
    files, path = filesystem(pattern)
    length = _literal_length(pattern) if _has_glob(pattern) else len(pattern)
    if not _has_glob(pattern[length:]):
        try:
            info = file_info(pattern)
        except FileNotFoundError:
            return None
        return [_Match(pattern.rstrip("/"), info["type"] == "directory", info)]
    if not lists_folders(pattern):
        raise UsageError(f"{pattern}: a web server cannot list files; name them with braces, {{000..127}}")
    literal = re.sub(r"([*?[])", r"[\1]", pattern[:length])
    _, path = filesystem(literal + pattern[length:])
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


def _expanded_patterns(source: str) -> list[str]:
    """Return the source with its braces expanded, except in the part that exists as it is written."""
    if is_remote(source):
        filesystem(source)[0].invalidate_cache()  # of listings: changes since then must be seen
    length = _literal_length(source) if "{" in source else len(source)
    patterns = [source[:length] + rest for rest in _expand_braces(source[length:])]
    return [place_of(pattern) for pattern in patterns] if length == 0 else patterns


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
