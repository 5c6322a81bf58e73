"""Read class ids and names from text, CSV and JSON files."""

import ast
import csv
import io
import re
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
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

# Lines of text files with more than a name. A number is followed by a sign or a space, an id by a tab or bar.
_SYNSET = re.compile(r"n\d{8}")
_SYNSET_AND_NAME = re.compile(r"[\"']?(n\d{8})[\"']?(?:\s*[:,;|=]\s*|\s+)(\S.*)")
_NUMBER_AND_NAME = re.compile(r"(\d{1,9})(?:\s*[:,;|=)]\s*|\.\s+|\s+)(\S.*)")
_NUMBER_IN_NAME = re.compile(r"(\d{1,9})\.(\S.*)")  # folders of CUB-200 and Caltech-256: 001.ak47
_SYNSET_IN_NAME = re.compile(r"(n\d{8})[-_](\S.*)")  # folders of Stanford Dogs: n02085620-Chihuahua
_ID_AND_NAME = re.compile(r"([^\t|]*[^\t|\s])\s*[\t|]\s*([^\t|\s][^\t|]*)")
_QUOTED = re.compile(r"([\"'])((?:(?!\1).)+)\1,?")


@dataclass
class ClassNames:
    """Content of a vocabulary file.

    Attributes:
        ids: [C]; the names where the file has no ids. A name of several classes gets its class index:
            'crane#134'.
        lemmas: names of each class to choose from, [C]; only lines with a synset have several.
        notes: how the file was read, for the user.
    """

    ids: list[str]
    lemmas: list[list[str]]
    notes: list[str]


def read_names(path: Path) -> ClassNames:
    """Read a vocabulary file; `load_vocabulary` documents the formats.

    Raises:
        UsageError: a file that cannot be read or parsed, an empty name, an id of several classes, or synsets
            in only some of the lines.
    """
    try:
        content = read_text(path)
    except UnicodeDecodeError as error:
        raise UsageError(f"vocabulary {path} is not UTF-8: {error}") from error
    except OSError as error:
        raise UsageError(f"cannot read the vocabulary {path}: {error.strerror}") from error
    notes: list[str] = []
    if path.suffix == ".json":
        pairs = _pairs_from_json(content, path)
    elif path.suffix in (".csv", ".tsv") or _is_heading(content.partition("\n")[0]):
        pairs = _pairs_from_csv(content, path)
    elif (data := _literal(content)) is not None:
        pairs = _pairs_of_data(data, path)
    else:
        lines = [line.strip() for line in content.split("\n") if line.strip()]
        pairs, notes = _pairs_from_lines(lines, path)
    folders = [_SYNSET_IN_NAME.fullmatch(name) for _, name in pairs]
    if pairs and all(folders):
        pairs = [(pair[0], match[2]) for pair, match in zip(pairs, folders, strict=True) if match]
        notes.append(_first_column(path, "synset", *zip(*pairs, strict=True)))
    lemmas = [[name] for _, name in pairs]
    if by_synset := synsets_and_names([name for _, name in pairs], path):
        synsets, rest = by_synset
        if numbered := _numbered(_NUMBER_AND_NAME, rest):  # map_clsloc.txt: 'n02119789 1 kit_fox'
            rest = numbered[1]
        lemmas = [_lemmas(name) for name in rest]
        own = all(identity == name for identity, name in pairs)
        pairs = [(s if own else pair[0], name) for s, pair, name in zip(synsets, pairs, rest, strict=True)]
        notes.append(_first_column(path, "synset", synsets, [names[0] for names in lemmas]))
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
    return ClassNames(list(unique_ids(ids)), lemmas, notes)


def unique_ids(names: Sequence[str]) -> tuple[str, ...]:
    """Return the names as ids; those that occur more than once get their class index."""
    counts = Counter(names)
    return tuple(f"{name}#{c}" if counts[name] > 1 else name for c, name in enumerate(names))


def synsets_and_names(lines: Sequence[str], path: Path) -> tuple[list[str], list[str]] | None:
    """Split lines such as 'n01440764 tench' and 'n01440764: tench, Tinca tinca' into synsets and the rest.

    Returns:
        Both, [C] each; None if no line starts with a synset, or if all are only a synset.

    Raises:
        UsageError: only some of the lines start with a synset and a name, or synsets stand elsewhere.
    """
    found = [_SYNSET_AND_NAME.fullmatch(line) for line in lines]
    if lines and all(found):
        return [match[1] for match in found if match], [_unquoted(match[2]) for match in found if match]
    elsewhere = [line for line in lines if not _SYNSET.match(line) and re.search(r"\bn\d{8}\b", line)]
    if elsewhere:
        raise UsageError(
            f"vocabulary {path}: {len(elsewhere):,} of {len(lines):,} class names contain a synset behind "
            f"other words ({_some(elsewhere)}); write it first: 'n01440764 tench'"
        )
    bare = [_SYNSET.fullmatch(line) for line in lines]
    if all(bare) or not (any(found) or any(bare)):
        return None
    others = [line for line, match in zip(lines, found, strict=True) if not match]
    raise UsageError(
        f"vocabulary {path}: {len(lines) - len(others):,} of {len(lines):,} lines start with a synset and a "
        f"name, {len(others):,} do not ({_some(others)}); write a synset and a name in all lines, or only "
        "names"
    )


def _pairs_from_lines(lines: list[str], path: Path) -> tuple[Pairs, list[str]]:
    """Return ids and names of a text file with one class per line, and notes about columns in it."""
    if all(_QUOTED.fullmatch(line) for line in lines):
        lines = [_unquoted(line) for line in lines]
    if any(map(_SYNSET.match, lines)):
        return [(line, line) for line in lines], []
    if numbered := _numbered(_NUMBER_AND_NAME, lines):
        numbers, names = numbered
        pairs = [(str(number), name) for number, name in zip(numbers, names, strict=True)]
        notes = [_first_column(path, "number", [identity for identity, _ in pairs], names)]
        folders = _pairs_of_folders(names)
        return (folders, notes) if folders else (pairs, notes)
    if folders := _pairs_of_folders(lines):
        return folders, [_first_column(path, "number", *zip(*folders, strict=True))]
    found = [_ID_AND_NAME.fullmatch(line) for line in lines]
    if lines and all(found):
        pairs = [(match[1], match[2]) for match in found if match]
        return pairs, [_first_column(path, "id", *zip(*pairs, strict=True))]
    return [(line, line) for line in lines], []


def _numbered(pattern: re.Pattern[str], lines: Sequence[str]) -> tuple[list[int], list[str]] | None:
    """Return numbers and names if all lines have both and the numbers run from 0 or 1, in any order."""
    found = [pattern.fullmatch(line) for line in lines]
    numbers = [int(match[1]) for match in found if match]
    if len(lines) < 2 or not all(found) or sorted(numbers) != list(range(f := min(numbers), f + len(lines))):
        return None
    return (numbers, [_unquoted(match[2]) for match in found if match]) if f < 2 else None


def _pairs_of_folders(names: list[str]) -> Pairs:
    """Return ids and names of lines such as '001.ak47', the names of folders; empty for others."""
    numbered = _numbered(_NUMBER_IN_NAME, names)
    return list(zip(names, numbered[1], strict=True)) if numbered else []


def _first_column(path: Path, what: str, ids: Sequence[str], names: Sequence[str]) -> str:
    return (
        f"the lines of {path} start with {'an' if what == 'id' else 'a'} {what}: it is the class's id, the "
        f"rest its name (id {ids[0]}, name '{names[0]}')"
    )


def _unquoted(text: str) -> str:
    quoted = _QUOTED.fullmatch(text)
    return quoted[2].strip() if quoted else text


def _lemmas(names: str) -> list[str]:
    return [lemma.strip() for lemma in names.split(",") if lemma.strip()] or [names]


def _some(texts: Sequence[str]) -> str:
    """Return the first three texts, shortened."""
    return ", ".join(repr(text[:40]) for text in texts[:3]) + (", ..." if len(texts) > 3 else "")


def _delimiter(line: str) -> str:
    """Return what separates the columns of a CSV file with this first line."""
    if all(sign not in line for sign in ",;\t") and _is_heading(line.replace("|", ",")):
        return "|"
    return next((sign for sign in ",;\t" if sign in line), ",")


def _is_heading(line: str) -> bool:
    cells = [cell.strip().lower() for cell in re.split(r"[,;\t|]", line)]
    return len(cells) > 1 and all(cell in (*NAME_COLUMNS, *ID_COLUMNS) for cell in cells)


def _pairs_from_csv(content: str, path: Path) -> Pairs:
    delimiter = "\t" if path.suffix == ".tsv" else _delimiter(content.partition("\n")[0])
    try:
        rows = list(csv.reader(io.StringIO(content, newline=""), delimiter=delimiter))
    except csv.Error as error:  # a quote that is never closed
        raise UsageError(f"vocabulary {path} is not CSV: {error}") from error
    rows = [[" ".join(cell.split()) for cell in row] for row in rows if any(cell.strip() for cell in row)]
    if not rows:
        return []
    header = [cell.lower() for cell in rows[0]]
    if any(word in header for word in (*NAME_COLUMNS, *ID_COLUMNS)):
        named = [header.index(word) for word in NAME_COLUMNS if word in header]
        if not named:
            raise UsageError(
                f"vocabulary {path}: none of the columns {rows[0]} is called {' or '.join(NAME_COLUMNS)}"
            )
        rows = rows[1:]
        codes = [column for column in named if _are_codes([row[column] for row in rows if column < len(row)])]
        name_column = next((column for column in named if column not in codes), named[0])
        ids = [header.index(word) for word in ID_COLUMNS if word in header] or codes  # 'label,name': 0,tench
        id_column = ids[0] if ids else name_column
    elif _SYNSET_AND_NAME.fullmatch(rows[0][0]):  # 'n01440764 tench, Tinca tinca': these commas are lemmas'
        lines = [" ".join(line.split()) for line in content.split("\n") if line.strip()]
        return [(line, line) for line in lines]
    elif len(rows[0]) > 1 and all(_SYNSET.fullmatch(row[0]) for row in rows):
        return [(line, line) for line in (f"{row[0]} {', '.join(filter(None, row[1:]))}" for row in rows)]
    else:
        id_column, name_column = 0, min(1, len(rows[0]) - 1)
    for number, row in enumerate(rows, start=1):
        if len(row) <= max(id_column, name_column):
            raise UsageError(f"vocabulary {path}: row {number} has too few columns: {row}")
    return [(row[id_column], row[name_column]) for row in rows]


def _are_codes(cells: Sequence[str]) -> bool:
    """Return whether these are different numbers or synsets, not names."""
    return len(set(cells)) == len(cells) and (
        all(map(str.isdecimal, cells)) or all(map(_SYNSET.fullmatch, cells))
    )


def _literal(content: str) -> Any:
    """Return the list or object that a text file contains in JSON or Python: {0: 'tench'}; None for lines."""
    text = content.strip()
    if text.startswith(("[", "{")):
        for parse in (parse_json, ast.literal_eval):
            with suppress(ValueError, SyntaxError, MemoryError, RecursionError):
                return parse(text)
    return None


def _pairs_from_json(content: str, path: Path) -> Pairs:
    try:
        return _pairs_of_data(parse_json(content), path)
    except ValueError as error:
        raise UsageError(f"vocabulary {path} is not JSON: {error}") from error


def _pairs_of_data(data: Any, path: Path) -> Pairs:
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
        data = {str(key): value for key, value in data.items()}  # Python's keys may be numbers
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
        elif (
            isinstance(value, list | tuple)
            and len(value) == 2
            and all(isinstance(part, str) for part in value)
        ):
            pairs.append((value[0], value[1].replace("_", " ")))
        else:
            raise expected
    return pairs
