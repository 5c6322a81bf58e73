"""Files that list images: one part of CoOp's `split_zhou_*.json`, and text files of `IMAGE CLASS NAME`.

The images are beside the list or in one folder below it. A row's path is that folder; its key is the image's
path within it.
"""

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path, PurePosixPath

from teacher_cache.classes.splits import is_split, parse_split
from teacher_cache.classes.vocabulary_files import unique_ids
from teacher_cache.errors import RppError, UsageError
from teacher_cache.files.json_text import parse_json
from teacher_cache.files.text_file import MOST_LIST_BYTES, is_text, read_text
from teacher_cache.images.decode import IMAGE_SUFFIXES
from teacher_cache.images.labels import synsets_in
from teacher_cache.images.leftovers import Leftovers, kind_of_leftover
from teacher_cache.images.rows import RowBuilder, Rows
from teacher_cache.images.sources import THREADS, Source
from teacher_cache.images.statements import Statement


def index_list(source: Source) -> list[Rows]:
    """Rows of a list of images: a text file, or the part `source.part` of a split file.

    Raises:
        UsageError: another form, no such part, images outside the list's folder, or no images.
        RppError: the list cannot be read.
    """
    part = source.part
    path = Path(source.files[0].path)
    try:
        content = read_text(path, MOST_LIST_BYTES)
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8: {error}") from error
    except OSError as error:
        raise RppError(f"cannot read {path}: {error.strerror or error}") from error
    class_list = None
    if path.suffix == ".json":
        images, class_list = _images_of_split(content, path, part)
    else:
        images = _images_of_text(content, path)
    if not images:
        raise UsageError(f"{path} lists no image" + (f" for {part}" if part else ""))
    leftovers = Leftovers()
    images = [image for image in images if not leftovers.has(image[0])]
    if not images:
        raise UsageError(f"{path} lists no image: {'; '.join(leftovers.notes)}")
    root = _folder_of(path, images[0][0])
    with ThreadPoolExecutor(THREADS) as pool:
        sizes = list(pool.map(_size, (root / place for place, _ in images)))
    builder = RowBuilder()
    for (place, label), size in zip(images, sizes, strict=True):
        builder.append_file(place, size, [Statement("list", "", None, label), *synsets_in(place)])
    rows = Rows(str(root), builder.table(), [], builder.several, leftovers)
    # the list stays the same when its images change
    return [replace(rows, class_list=class_list, reusable=False)]


def _images_of_split(
    content: str, path: Path, part: str | None
) -> tuple[list[tuple[str, str]], tuple[str, ...]]:
    """Return (path, class id) of each image of a part, and the ids of all classes."""
    try:
        data = parse_json(content)
    except ValueError as error:
        raise UsageError(f"{path} is not JSON: {error}") from error
    if not is_split(data):
        raise UsageError(f"{path} is not a split file: expected the keys train, val and test")
    split = parse_split(data, path)
    if part not in split.parts:
        problem = f"has no part '{part}'" if part else "contains several parts"
        raise UsageError(
            f"{path} {problem}; name one: {', '.join(f'{path.name}#{name}' for name in split.parts)}"
        )
    ids = unique_ids(split.classes)
    if no_text := [name for name in ids if not is_text(name)]:
        raise UsageError(f"{path}: the class name {no_text[0]!r} is not valid text")
    return [(_inside(place, path), ids[label]) for place, label in split.parts[part]], ids


def _images_of_text(content: str, path: Path) -> list[tuple[str, str]]:
    """Return (path, class name) of each line; FGVC Aircraft lists images without a suffix."""
    images = []
    for number, line in enumerate(content.split("\n"), start=1):
        place, _, label = line.strip().partition(" ")
        if not place:
            continue
        if not label.strip():
            raise UsageError(f"{path}: line {number}: expected 'IMAGE CLASS NAME', found {line[:60]!r}")
        suffix = "" if PurePosixPath(place).suffix.lower() in IMAGE_SUFFIXES else ".jpg"
        images.append((_inside(place + suffix, path), label.strip()))
    return images


def _inside(place: str, path: Path) -> str:
    parts = PurePosixPath(place)
    if parts.is_absolute() or ".." in parts.parts or not is_text(place):
        raise UsageError(f"{path}: the image {place!r} is outside the list's folder")
    if parts.suffix.lower() not in IMAGE_SUFFIXES:
        raise UsageError(f"{path}: {place!r} is not an image ({', '.join(sorted(IMAGE_SUFFIXES))})")
    return place


def _folder_of(path: Path, first: str) -> Path:
    """Return the folder that the listed paths start from: the list's own, or one directly below it."""
    own = path.absolute().parent
    candidates: Iterable[Path] = [
        own,
        *sorted(f for f in own.iterdir() if f.is_dir() and not kind_of_leftover(f.name)),
    ]
    found = next((folder for folder in candidates if os.path.isfile(folder / first)), None)
    if found is None:
        raise UsageError(f"{path}: the image {first} is neither in {own} nor in a folder directly below it")
    return found


def _size(path: Path) -> int:
    try:
        return os.stat(path).st_size
    except OSError:  # it keeps its row, like every image that cannot be read
        return 0
