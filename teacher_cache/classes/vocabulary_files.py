"""Read class ids and names from text, CSV and JSON files."""

import csv
import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from teacher_cache.classes.splits import is_split, parse_split
from teacher_cache.errors import UsageError
from teacher_cache.files.json_text import parse_json
from teacher_cache.files.text_file import is_text, read_text

# Headings of CSV columns, by preference.
NAME_COLUMNS = ("name", "class_name", "classname", "class name", "lemma", "label", "class")
ID_COLUMNS = ("id", "synset", "wnid", "class_id", "index", "idx", "class_index")

Pairs = list[tuple[str, str]]  # id and name of each class


def read_names(path: Path) -> tuple[list[str], list[str]]:
    """Read a vocabulary file; `load_vocabulary` documents the formats.

    Returns:
        ids and names, [C] each. Where the file has no ids they are the names, and a name of several classes
        gets its class index: 'crane#134'.

    Raises:
        UsageError: a file that cannot be read or parsed, an empty name, or an id of several classes.
    """
    try:
        content = read_text(path)
    except UnicodeDecodeError as error:
        raise UsageError(f"vocabulary {path} is not UTF-8: {error}") from error
    except OSError as error:
        raise UsageError(f"cannot read the vocabulary {path}: {error.strerror}") from error
    if path.suffix == ".json":
        pairs = _pairs_from_json(content, path)
    elif path.suffix in (".csv", ".tsv"):
        pairs = _pairs_from_csv(content, path)
    else:
        pairs = [(line.strip(), line.strip()) for line in content.split("\n") if line.strip()]
    if not pairs:
        raise UsageError(f"vocabulary {path} has no class name")
    for c, pair in enumerate(pairs):
        if not pair[1].strip():
            raise UsageError(f"vocabulary {path}: class {c} has no name")
        if not all(map(is_text, pair)):
            raise UsageError(
                f"vocabulary {path}: the name or id of class {c} has a zero byte or an unpaired surrogate"
            )
    ids, names = [identity for identity, _ in pairs], [name for _, name in pairs]
    repeated = [identity for identity, count in Counter(ids).items() if count > 1]
    if repeated and ids != names:
        raise UsageError(f"vocabulary {path}: the id '{min(repeated)}' belongs to several classes")
    return list(unique_ids(ids)), names


def unique_ids(names: Sequence[str]) -> tuple[str, ...]:
    """Return the names as ids; those that occur more than once get their class index."""
    counts = Counter(names)
    return tuple(f"{name}#{c}" if counts[name] > 1 else name for c, name in enumerate(names))


def _pairs_from_csv(content: str, path: Path) -> Pairs:
    first_line = content.split("\n")[0]
    delimiter = "\t" if path.suffix == ".tsv" else ";" if ";" in first_line and "," not in first_line else ","
    try:
        rows = list(csv.reader(io.StringIO(content, newline=""), delimiter=delimiter))
    except csv.Error as error:  # a quote that is never closed
        raise UsageError(f"vocabulary {path} is not CSV: {error}") from error
    rows = [[" ".join(cell.split()) for cell in row] for row in rows if any(cell.strip() for cell in row)]
    if not rows:
        return []
    header = [cell.lower() for cell in rows[0]]
    if any(word in header for word in (*NAME_COLUMNS, *ID_COLUMNS)):
        name_column = next((header.index(word) for word in NAME_COLUMNS if word in header), None)
        if name_column is None:
            raise UsageError(
                f"vocabulary {path}: none of the columns {rows[0]} is called {' or '.join(NAME_COLUMNS)}"
            )
        id_column = next((header.index(word) for word in ID_COLUMNS if word in header), name_column)
        rows = rows[1:]
    else:
        id_column, name_column = 0, min(1, len(rows[0]) - 1)
    for number, row in enumerate(rows, start=1):
        if len(row) <= max(id_column, name_column):
            raise UsageError(f"vocabulary {path}: row {number} has too few columns: {row}")
    return [(row[id_column], row[name_column]) for row in rows]


def _pairs_from_json(content: str, path: Path) -> Pairs:
    try:
        data = parse_json(content)
    except ValueError as error:
        raise UsageError(f"vocabulary {path} is not JSON: {error}") from error
    if is_split(data):
        split = parse_split(data, path)
        names = (name.replace("_", " ") for name in split.classes)
        return list(zip(unique_ids(split.classes), names, strict=True))
    expected = UsageError(
        f"vocabulary {path}: expected a list of names, or an object index -> name, id -> name or "
        "index -> [id, name]"
    )
    if isinstance(data, list):
        items: list[tuple[str, Any]] = [("", value) for value in data]
    elif isinstance(data, dict):
        items = list(data.items())
        if all(key.isdecimal() for key in data):
            items = [("", data[str(c)]) for c in range(len(data)) if str(c) in data]
            if len(items) != len(data):
                raise UsageError(f"vocabulary {path}: the indices do not run from 0 to {len(data) - 1}")
    else:
        raise expected
    pairs = []
    for identity, value in items:
        if isinstance(value, str):
            pairs.append((identity or value, value))
        elif isinstance(value, list) and len(value) == 2 and all(isinstance(part, str) for part in value):
            pairs.append((value[0], value[1].replace("_", " ")))
        else:
            raise expected
    return pairs
