"""CoOp's `split_zhou_*.json`: the classes of a data set, and its images for training, validation and test.

Where the images are is decided in `images/lists.py`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from teacher_cache.errors import UsageError

PARTS = ("train", "val", "test")


@dataclass(frozen=True)
class Split:
    """The content of a split file.

    Attributes:
        classes: class names as in the file, in the order of its labels, [C].
        parts: the images of each part, (path, label).
    """

    classes: tuple[str, ...]
    parts: dict[str, list[tuple[str, int]]]


def is_split(data: Any) -> bool:
    """Return whether decoded JSON is a split file, not a list of class names."""
    return isinstance(data, dict) and bool(data) and data.keys() <= set(PARTS)


def parse_split(data: dict[str, Any], path: Path) -> Split:
    """Read a split file's decoded JSON: a list of [image path, label, class name] for each part.

    Raises:
        UsageError: another structure, a label with two names, or labels that do not run from 0.
    """
    names: dict[int, str] = {}
    parts: dict[str, list[tuple[str, int]]] = {}
    for part, items in data.items():
        parts[part] = []
        for number, item in enumerate(items if isinstance(items, list) else [None]):
            if not (
                isinstance(item, list)
                and len(item) == 3
                and [type(value) for value in item] == [str, int, str]
                and item[2].strip()
            ):
                raise UsageError(
                    f"{path}: {part}, entry {number}: expected [image path, label, class name], found "
                    f"{str(item)[:60]}"
                )
            place, label, name = item
            if names.setdefault(label, name) != name:
                raise UsageError(f"{path}: the label {label} is both '{names[label]}' and '{name}'")
            parts[part].append((place, label))
    if sorted(names) != list(range(len(names))):
        raise UsageError(f"{path}: the labels do not run from 0 to {len(names) - 1}")
    return Split(tuple(names[label] for label in range(len(names))), parts)
