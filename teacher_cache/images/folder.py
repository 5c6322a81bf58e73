"""Image folders with one sub-folder for each class, as torchvision's `ImageFolder`, local or remote.

A row's path is the folder; its key is the image's path within it.
"""

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from teacher_cache.errors import RppError, UsageError
from teacher_cache.files.places import is_undecoded, undecoded
from teacher_cache.files.remote import ask, filesystem
from teacher_cache.images.decode import IMAGE_SUFFIXES
from teacher_cache.images.labels import synsets_in
from teacher_cache.images.leftovers import Leftovers
from teacher_cache.images.rows import RowBuilder, Rows
from teacher_cache.images.sources import THREADS, Source
from teacher_cache.images.statements import Statement


def index_folder(source: Source) -> list[Rows]:
    """Rows of an image folder: its own images first, then those of each sub-folder, in sorted order.

    Raises:
        UsageError: a file name is not UTF-8.
        RppError: a folder cannot be listed.
    """
    root = source.files[0].path
    if source.is_remote:  # object stores have no folders whose times could be compared
        leftovers = Leftovers()
        rows = _rows(root, _remote_images(root, leftovers))
        return [replace(rows, leftovers=leftovers, reusable=False)]

    def branch(top: str) -> Rows:
        leftovers, times = Leftovers(), dict[str, int]()
        rows = _rows(root, _walk(root, top, leftovers, times))
        return replace(rows, leftovers=leftovers, folder_times=times)

    leftovers, times = Leftovers(), folder_times(root, [""])
    folders, images = _list(root, "", leftovers)
    with ThreadPoolExecutor(THREADS) as pool:
        branches = list(pool.map(branch, folders))
    return [replace(_rows(root, images), leftovers=leftovers, folder_times=times), *branches]


def folder_times(root: str, folders: Iterable[str]) -> dict[str, int]:
    """Return the time of the last change of each folder in `root`, ns; -1 if it is missing."""
    places = {folder: os.path.join(root, folder) for folder in folders}
    return {f: os.stat(place).st_mtime_ns if os.path.isdir(place) else -1 for f, place in places.items()}


def _walk(root: str, top: str, leftovers: Leftovers, walked: dict[str, int]) -> Iterator[tuple[str, int]]:
    """Yield the images below a folder. A link to one of the folders above it is not followed."""
    todo: list[tuple[str, tuple[str, ...]]] = [(top, (os.path.realpath(root),))]
    while todo:
        folder, above = todo.pop()
        real = os.path.realpath(os.path.join(root, folder))
        if real in above:
            continue
        walked |= folder_times(root, [folder])
        folders, images = _list(root, folder, leftovers)
        todo += [(inside, (*above, real)) for inside in reversed(folders)]
        yield from images


def _list(root: str, folder: str, leftovers: Leftovers) -> tuple[list[str], list[tuple[str, int]]]:
    """Return the folders in a folder, and its images with their sizes, by their paths in the root."""
    folders, images = [], []
    try:
        with os.scandir(os.path.join(root, folder)) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                place = f"{folder}/{entry.name}" if folder else entry.name
                if leftovers.has(entry.name, place):
                    continue
                if entry.is_dir():
                    folders.append(place)
                elif _is_image(entry.name):
                    images.append((_utf8(place), _size(entry)))
    except OSError as error:
        raise RppError(f"cannot list {os.path.join(root, folder)}: {error.strerror or error}") from error
    return folders, images


def _size(entry: "os.DirEntry[str]") -> int:
    try:
        return entry.stat().st_size
    except FileNotFoundError:  # a broken link keeps its row, like every image that cannot be read
        return 0


def _utf8(path: str) -> str:
    if is_undecoded(path):
        raise UsageError(undecoded(path))
    return path


def _remote_images(root: str, leftovers: Leftovers) -> list[tuple[str, int]]:
    files, path = filesystem(root)
    found = ask(root, lambda: files.find(path, detail=True))
    prefix = path.rstrip("/") + "/"
    places = {name.removeprefix(prefix): info for name, info in sorted(found.items())}
    images = [
        (place, int(info["size"]))
        for place, info in places.items()
        if not leftovers.has(place) and _is_image(place)
    ]

    def own_images_first(image: tuple[str, int]) -> list[tuple[bool, str]]:
        *folders, name = image[0].split("/")
        return [*((True, folder) for folder in folders), (False, name)]

    return sorted(images, key=own_images_first)


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def _rows(root: str, images: Iterable[tuple[str, int]]) -> Rows:
    builder = RowBuilder()
    for key, length in images:
        top, below, _ = key.partition("/")
        folder = [Statement("folder", "", None, top)] if below else []
        builder.append_file(key, length, [*folder, *synsets_in(key)])
    return Rows(root, builder.table(), several=builder.several, by_order=True)
