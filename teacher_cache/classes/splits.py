"""CoOp's `split_zhou_*.json`: the classes of a data set, and which images are for training, validation, test.

Knows the file alone; where its images lie is the business of `images/lists.py`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from teacher_cache.errors import UsageError

PARTS = ("train", "val", "test")


@dataclass(frozen=True)
class Split:
    """What a split file says.

    Attributes:
        classes: class names as the file writes them, in the order of its labels, [C].
        parts: of each part the images, (path, label).
    """

    classes: tuple[str, ...]
    parts: dict[str, list[tuple[str, int]]]


def is_split(data: Any) -> bool:
    """Whether decoded JSON is a split file, rather than a list of class names."""
    return isinstance(data, dict) and bool(data) and data.keys() <= set(PARTS)


def parse_split(data: dict[str, Any], path: Path) -> Split:
    """Read the decoded JSON of a split file: for each part a list of [image path, label, class name].

    Raises:
        UsageError: another form, a label that has two names, or labels that do not run from 0.
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
                    f"{path}: {part}, entry {number} is no [image path, label, class name]: {str(item)[:60]}"
                )
            place, label, name = item
            if names.setdefault(label, name) != name:
                raise UsageError(f"{path}: the label {label} is both '{names[label]}' and '{name}'")
            parts[part].append((place, label))
    if sorted(names) != list(range(len(names))):
        raise UsageError(f"{path}: the labels do not run from 0 to {len(names) - 1}")
    return Split(tuple(names[label] for label in range(len(names))), parts)
