"""Which files or folder an image source names."""

import itertools
import re
from pathlib import Path

from teacher_cache.errors import UsageError

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm"}


def expand_source(source: str) -> list[Path]:
    """Files or the folder that a source names.

    Braces (`{000..127}`, `{a,b}`) and globs (`*`, `?`, `[...]`) are expanded, each in sorted order; a folder
    that holds tar files stands for them, any other folder is an image folder.

    Raises:
        UsageError: nothing there.
    """
    found: list[Path] = []
    for pattern in _expand_braces(str(Path(source).expanduser()) if source else ""):
        if any(sign in pattern for sign in "*?["):
            base = Path(pattern[: min(pattern.index(s) for s in "*?[" if s in pattern)]).parent
            matches = sorted(base.glob(str(Path(pattern).relative_to(base))))
        else:
            matches = [Path(pattern)]
            if not matches[0].exists():
                raise UsageError(f"image source '{source}': {pattern} does not exist")
        found.extend(matches)
    folders = [path for path in found if path.is_dir()]
    if len(found) == 1 and folders:
        return sorted(folders[0].glob("*.tar")) or folders
    if not found or folders:
        raise UsageError(f"image source '{source}' names no tar shards and no single image folder")
    return found


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
