"""Files that list images: CoOp's `split_zhou_*.json`, one of its parts, and text files 'IMAGE CLASS NAME'.

The images lie beside the list or in one folder below it; a row's path is that folder, its key the place
within.
"""

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

from teacher_cache.classes.splits import is_split, parse_split
from teacher_cache.classes.vocabulary_files import split_ids
from teacher_cache.errors import RppError, UsageError
from teacher_cache.files.json_text import parse_json
from teacher_cache.files.text_file import MOST_LIST_BYTES, is_text, read_text
from teacher_cache.images.rows import RowBuilder, Rows
from teacher_cache.images.sources import IMAGE_SUFFIXES, THREADS, SourceFile
from teacher_cache.images.table import LOOSE_FILE


def index_list(file: SourceFile, part: str | None) -> Rows:
    """Rows of a list of images.

    Args:
        part: `train`, `val` or `test` of a split file; None of a text file.

    Raises:
        UsageError: another form, no such part, places outside the list's folder, or no images there.
        RppError: the list cannot be read.
    """
    path = Path(file.path)
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
        raise UsageError(f"{path} names no image" + (f" for {part}" if part else ""))
    root = _folder_of(path, images[0][0])
    with ThreadPoolExecutor(THREADS) as pool:
        sizes = list(pool.map(_size, (root / place for place, _ in images)))
    builder = RowBuilder()
    for (place, label), size in zip(images, sizes, strict=True):
        builder.append(place, LOOSE_FILE, size, None, label)
    return Rows(str(root), builder.table(), class_list=class_list)


def _images_of_split(
    content: str, path: Path, part: str | None
) -> tuple[list[tuple[str, str]], tuple[str, ...]]:
    """(place, class id) of each image of a part, and the ids of all classes."""
    try:
        data = parse_json(content)
    except ValueError as error:
        raise UsageError(f"{path} is not JSON: {error}") from error
    if not is_split(data):
        raise UsageError(f"{path} is no split file: it needs train, val and test")
    split = parse_split(data, path)
    if part not in split.parts:
        asked = f"has no part '{part}'" if part else "holds several parts"
        raise UsageError(
            f"{path} {asked}; name one: {', '.join(f'{path.name}#{name}' for name in split.parts)}"
        )
    ids = split_ids(split)
    if no_text := [name for name in ids if not is_text(name)]:
        raise UsageError(f"{path} names the class {no_text[0]!r}, which is no text")
    return [(_inside(place, path), ids[label]) for place, label in split.parts[part]], ids


def _images_of_text(content: str, path: Path) -> list[tuple[str, str]]:
    """(place, class name) of each line; FGVC Aircraft's names have no suffix."""
    images = []
    for number, line in enumerate(content.replace("\r\n", "\n").split("\n"), start=1):
        place, _, label = line.strip().partition(" ")
        if not place:
            continue
        if not label.strip():
            raise UsageError(f"{path}: line {number} is no 'IMAGE CLASS NAME': {line[:60]!r}")
        suffix = "" if PurePosixPath(place).suffix.lower() in IMAGE_SUFFIXES else ".jpg"
        images.append((_inside(place + suffix, path), label.strip()))
    return images


def _inside(place: str, path: Path) -> str:
    parts = PurePosixPath(place)
    if parts.is_absolute() or ".." in parts.parts or not is_text(place):
        raise UsageError(f"{path} names the image {place!r}, which leads out of its folder")
    if parts.suffix.lower() not in IMAGE_SUFFIXES:
        raise UsageError(f"{path} names {place!r}, which is no image ({', '.join(sorted(IMAGE_SUFFIXES))})")
    return place


def _folder_of(path: Path, first: str) -> Path:
    """The folder that the list's places start from: its own, or the one below it that has the first image."""
    own = path.absolute().parent
    candidates: Iterable[Path] = [own, *sorted(folder for folder in own.iterdir() if folder.is_dir())]
    found = next((folder for folder in candidates if os.path.isfile(folder / first)), None)
    if found is None:
        raise UsageError(f"{path} names {first}, which is neither in {own} nor in a folder directly below it")
    return found


def _size(path: Path) -> int:
    try:
        return os.stat(path).st_size
    except OSError:  # keeps its row, as every image that cannot be read
        return 0
