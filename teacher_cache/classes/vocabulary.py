"""Class names, ids and templates, in the order of the class indices.

Reads ImageNet's names from timm's ImageNetInfo or the user's own file. Which image belongs to which class
is decided in `images/`.
"""

import csv
import io
import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from string import Formatter
from typing import TYPE_CHECKING, Any, Literal

from teacher_cache.classes.splits import Split, is_split, parse_split
from teacher_cache.errors import UsageError
from teacher_cache.files.json_text import parse_json
from teacher_cache.files.text_file import read_text

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Lemma = Literal["first", "last", "shortest", "all"]
Duplicates = Literal["lemma", "definition", "keep", "error"]

DEFAULT_TEMPLATE = "a photo of a {}."

# timm calls the 21,841 synsets of the fall 2011 release imagenet-22k and keeps imagenet-21k for Google's
# list of 21,843, which holds two synsets without images. Whoever says ImageNet-21K here means the release.
IMAGENETS = {
    "imagenet-21k": "imagenet-22k",
    "imagenet-22k": "imagenet-22k",
    "imagenet-21k-goog": "imagenet-21k-goog",
    "imagenet-21k-p": "imagenet-21k-miil",
    "imagenet-12k": "imagenet-12k",
    "imagenet-1k": "imagenet-1k",
}
# ImageNet-1K under the names that CLIP's authors chose for it, which the field's tables are made with.
CLIP_NAMES = "imagenet-1k-clip"
TEMPLATE_SETS = ("imagenet", "imagenet-simple")  # open_clip's sets of 80 and 7

# What the columns of a CSV file are called, the most telling first.
NAME_COLUMNS = ("name", "class_name", "classname", "class name", "lemma", "label", "class")
ID_COLUMNS = ("id", "synset", "wnid", "class_id", "index", "idx", "class_index")

DIGITS = 18  # that a class index or a numeric id may have; Python refuses to read thousands of them


@dataclass(frozen=True)
class Vocabulary:
    """Ordered class names; index c of every array's class axis is `names[c]`.

    Attributes:
        names: what the text tower reads, [C].
        ids: what image sources call the class: the synset, or the name where there is no id, [C].
        templates: texts with one `{}` for the name; class features are averaged over them.
    """

    names: tuple[str, ...]
    ids: tuple[str, ...]
    templates: tuple[str, ...] = (DEFAULT_TEMPLATE,)

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def duplicate_names(self) -> dict[str, int]:
        """Names that several classes share, with their number of classes."""
        return {name: count for name, count in Counter(self.names).items() if count > 1}

    def index_of(self, label: str) -> int | None:
        """Class index of an id or, failing that, of a name, as written or, failing that, whatever the case
        and with `_` for spaces; None if unknown.

        What several classes share resolves to none of them.
        """
        exact, folded = self._index
        return exact.get(label, folded.get(_fold(label)))

    @cached_property
    def _index(self) -> tuple[dict[str, int | None], dict[str, int | None]]:
        """Ids and names as written, and folded; an id goes before another class's name."""
        folded_names, folded_ids = map(_fold, self.names), map(_fold, self.ids)
        return (
            _unshared(self.names) | _unshared(self.ids),
            _unshared(tuple(folded_names)) | _unshared(tuple(folded_ids)),
        )

    @cached_property
    def _numbers(self) -> dict[int, int]:
        if all(identity.isdecimal() and len(identity) <= DIGITS for identity in self.ids):
            return {int(identity): c for c, identity in enumerate(self.ids)}
        return {c: c for c in range(len(self))}

    @property
    def numbering(self) -> str:
        """Which whole numbers are labels, in words."""
        if self._numbers.keys() == set(range(len(self))):
            return f"0 to {len(self) - 1}"
        return f"numbered {', '.join(map(str, list(self._numbers)[:3]))}, ... by their ids"

    def index_of_number(self, number: int) -> int | None:
        """Class index of a label that is a whole number: it is the index itself, unless the ids of the
        vocabulary are whole numbers, which then are meant."""
        return self._numbers.get(number)

    def classes_in(self, other: "Vocabulary") -> "NDArray[np.int32]":
        """For each class the one of the same id in another vocabulary, [C] int32; -1 where there is none."""
        import numpy as np

        index = {identity: c for c, identity in enumerate(other.ids)}
        return np.array([index.get(identity, -1) for identity in self.ids], dtype=np.int32)

    def to_json(self) -> dict[str, Any]:
        """As the cache records it."""
        return {"names": list(self.names), "ids": list(self.ids), "templates": list(self.templates)}

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> "Vocabulary":
        """From what `to_json` gave.

        Raises:
            ValueError: it is something else.
        """
        names, ids, templates = (record[name] for name in ("names", "ids", "templates"))
        for texts in (names, ids, templates):
            if not (isinstance(texts, list) and all(isinstance(t, str) and is_text(t) for t in texts)):
                raise ValueError("names, ids or templates are no list of texts")
        if not names or len(names) != len(ids) or not all(map(_has_one_field, templates)):
            raise ValueError("names, ids and templates do not belong together")
        return cls(tuple(names), tuple(ids), tuple(templates))


def _unshared(keys: tuple[str, ...]) -> dict[str, int | None]:
    """Class index of each key, None where several classes have it."""
    counts = Counter(keys)
    return {key: c if counts[key] == 1 else None for c, key in enumerate(keys)}


def _fold(label: str) -> str:
    return " ".join(label.replace("_", " ").split()).casefold()


def load_vocabulary(
    source: str | Path,
    templates: str = DEFAULT_TEMPLATE,
    lemma: Lemma = "first",
    duplicates: Duplicates = "lemma",
) -> Vocabulary:
    """Class names by ImageNet's name or from a file.

    Args:
        source: one of `IMAGENETS`, `CLIP_NAMES`, or a file: `.txt` (a name a line), `.csv`/`.tsv` (a header
            with one of `NAME_COLUMNS` and perhaps one of `ID_COLUMNS`; without a header the columns are id,
            name or name alone), `.json` (a list of names, an object index -> name, id -> name, or index ->
            [id, name] as Keras has it, or CoOp's `split_zhou_*.json`).
        templates: one text with `{}`, a file with one a line (or a JSON list), or `imagenet` /
            `imagenet-simple` for open_clip's own sets of 80 and 7.
        lemma: which of a synset's names is used: the first, the last, the shortest, or all of them joined
            by commas. Only ImageNet's names have several.
        duplicates: what happens to a name that an earlier class has already. `lemma` takes the class's next
            free lemma and keeps the name if there is none; `definition` then adds the definition's first
            clause; `keep` leaves all as they are; `error` refuses.

    Raises:
        UsageError: unknown name, unreadable file, empty or doubled ids, a template without `{}`.
    """
    texts = load_templates(templates)
    if str(source).lower() in IMAGENETS:
        from timm.data import ImageNetInfo  # imports torch

        info = ImageNetInfo(IMAGENETS[str(source).lower()])
        ids = list(info.label_names())
        lemmas = [_lemmas(info.label_name_to_description(i)) for i in ids]
        definitions = {i: info.label_name_to_description(i, detailed=True).split(": ", 1)[1] for i in ids}
    elif str(source).lower() == CLIP_NAMES:
        from open_clip import IMAGENET_CLASSNAMES  # imports torch
        from timm.data import ImageNetInfo

        ids = list(ImageNetInfo(IMAGENETS["imagenet-1k"]).label_names())
        lemmas, definitions = [[name] for name in IMAGENET_CLASSNAMES], {}
    else:
        ids, names = _read_names(Path(source))
        lemmas, definitions = [[name] for name in names], {}
    chosen = _choose_names(ids, lemmas, definitions, lemma, duplicates)
    return Vocabulary(tuple(chosen), tuple(ids), texts)


def _lemmas(description: str) -> list[str]:
    return [lemma.strip() for lemma in description.split(",") if lemma.strip()]


def _choose_names(
    ids: list[str],
    lemmas: list[list[str]],
    definitions: dict[str, str],
    lemma: Lemma,
    duplicates: Duplicates,
) -> list[str]:
    choose = {
        "first": lambda options: options[0],
        "last": lambda options: options[-1],
        "shortest": lambda options: min(options, key=len),
        "all": ", ".join,
    }[lemma]
    names = [choose(options) for options in lemmas]
    if duplicates == "keep":
        return names
    if duplicates == "error":
        counts = Counter(names)
        doubled = [f"'{name}' ({count} classes)" for name, count in counts.items() if count > 1]
        if doubled:
            more = f" and {len(doubled) - 5} more" if len(doubled) > 5 else ""
            raise UsageError(f"class names occur twice: {', '.join(doubled[:5])}{more}")
        return names
    taken = set(names)
    seen: set[str] = set()
    for c, name in enumerate(names):
        if name in seen:
            free = [option for option in lemmas[c] if option not in taken]
            if free:
                names[c] = free[0]
            elif duplicates == "definition" and ids[c] in definitions:
                names[c] = f"{name}, {definitions[ids[c]].split(';')[0].split(',')[0]}"
            taken.add(names[c])
        seen.add(names[c])
    return names


def load_templates(templates: str) -> tuple[str, ...]:
    """Templates from one text with `{}`, a file, or the name of one of open_clip's sets.

    Raises:
        UsageError: neither of those, or a template without exactly one `{}` (`{c}` counts as `{}`).
    """
    if templates in TEMPLATE_SETS:
        return tuple(template("{}") for template in template_set(templates))
    texts = [templates]
    if "{" not in templates:
        path = Path(templates).expanduser()
        if not os.path.isfile(path):  # a text too long for a path is no file; pathlib would raise
            raise UsageError(
                f"templates '{templates}': not a text with {{}}, not a file, not one of "
                f"{', '.join(TEMPLATE_SETS)}"
            )
        texts = _read_templates(path)
    texts = [text.replace("{c}", "{}") for text in texts]
    wrong = [text for text in texts if not _has_one_field(text)]
    if wrong:
        raise UsageError(f"a template needs exactly one {{}} for the class name: '{wrong[0]}'")
    return tuple(texts)


def template_set(name: str) -> Sequence[Callable[[str], str]]:
    """One of open_clip's sets of templates, each a function of the class name."""
    from open_clip import OPENAI_IMAGENET_TEMPLATES, SIMPLE_IMAGENET_TEMPLATES  # imports torch

    sets = dict(zip(TEMPLATE_SETS, (OPENAI_IMAGENET_TEMPLATES, SIMPLE_IMAGENET_TEMPLATES), strict=True))
    found: Sequence[Callable[[str], str]] = sets[name]
    return found


def _has_one_field(template: str) -> bool:
    try:
        fields = [parts for _, *parts in Formatter().parse(template) if parts[0] is not None]
    except ValueError:
        return False
    return fields == [["", "", None]]  # no width or conversion either: '{:>999999999}' would fill the memory


def _read_templates(path: Path) -> list[str]:
    try:
        content = read_text(path)
        texts = parse_json(content) if path.suffix == ".json" else _lines(content)
    except ValueError as error:
        raise UsageError(f"template file {path}: {error}") from error
    except OSError as error:
        raise UsageError(f"cannot read the template file {path}: {error.strerror}") from error
    if not (isinstance(texts, list) and all(isinstance(text, str) for text in texts)):
        raise UsageError(f"template file {path}: expected a JSON list of texts")
    texts = [text for text in texts if text.strip()]
    if no_text := [text for text in texts if not is_text(text)]:
        raise UsageError(f"template file {path}: {no_text[0][:60]!r} is no text")
    if not texts:
        raise UsageError(f"the template file {path} is empty; write one text with {{}} a line")
    return texts


def require_vocabulary(source: str | Path) -> None:
    """Refuse what is neither a known name nor a file.

    Raises:
        UsageError: it is not there.
    """
    if str(source).lower() not in (*IMAGENETS, CLIP_NAMES) and not os.path.isfile(source):
        raise UsageError(
            f"vocabulary '{source}': no such file, and no known name ({', '.join((*IMAGENETS, CLIP_NAMES))})",
        )


def _read_names(path: Path) -> tuple[list[str], list[str]]:
    require_vocabulary(path)
    try:
        content = read_text(path)
    except UnicodeDecodeError as error:
        raise UsageError(f"vocabulary {path} is not UTF-8: {error}") from error
    except OSError as error:
        raise UsageError(f"cannot read the vocabulary {path}: {error.strerror}") from error
    if path.suffix == ".json":
        pairs = _pairs_of_json(content, path)
    elif path.suffix in (".csv", ".tsv"):
        pairs = _pairs_of_csv(content, path)
    else:
        pairs = [(line.strip(), line.strip()) for line in _lines(content) if line.strip()]
    if not pairs:
        raise UsageError(f"vocabulary {path} holds no class name")
    empty = [c for c, (_, name) in enumerate(pairs) if not name.strip()]
    if empty:
        raise UsageError(f"vocabulary {path}: class {empty[0]} has no name")
    no_text = [c for c, pair in enumerate(pairs) if not all(map(is_text, pair))]
    if no_text:
        raise UsageError(f"vocabulary {path}: name or id of class {no_text[0]} is no text")
    ids, names = [identity for identity, _ in pairs], [name for _, name in pairs]
    # A text file's ids are its names; doubled names are then told apart by their index.
    doubled = {identity for identity, count in Counter(ids).items() if count > 1}
    if doubled and ids != names:
        raise UsageError(f"vocabulary {path}: the id '{min(doubled)}' stands for several classes")
    return list(_told_apart(ids)), names


def is_text(name: str) -> bool:
    """Whether a name can be stored and tokenized: JSON can hold halves of characters, and zero bytes."""
    return not re.search(r"[\0\ud800-\udfff]", name)


def _told_apart(ids: Sequence[str]) -> tuple[str, ...]:
    """Ids of which those that occur twice carry their index."""
    counts = Counter(ids)
    return tuple(f"{identity}#{c}" if counts[identity] > 1 else identity for c, identity in enumerate(ids))


def split_ids(split: Split) -> tuple[str, ...]:
    """What the classes of a split file are called: by their names."""
    return _told_apart(split.classes)


def _lines(content: str) -> list[str]:
    """Lines as text files have them. `str.splitlines` would also cut at characters that names may hold."""
    return content.replace("\r\n", "\n").split("\n")


def _pairs_of_csv(content: str, path: Path) -> list[tuple[str, str]]:
    first_line = _lines(content)[0]
    delimiter = "\t" if path.suffix == ".tsv" else ";" if ";" in first_line and "," not in first_line else ","
    try:
        rows = list(csv.reader(io.StringIO(content, newline=""), delimiter=delimiter))
    except csv.Error as error:  # a quote that nothing closes
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
    short = next((r for r, row in enumerate(rows) if len(row) <= max(id_column, name_column)), None)
    if short is not None:
        raise UsageError(f"vocabulary {path}: row {short + 1} has too few columns: {rows[short]}")
    return [(row[id_column], row[name_column]) for row in rows]


def _pairs_of_json(content: str, path: Path) -> list[tuple[str, str]]:
    try:
        data = parse_json(content)
    except ValueError as error:
        raise UsageError(f"vocabulary {path} is not JSON: {error}") from error
    shape = UsageError(
        f"vocabulary {path}: expected a list of names, or an object index -> name, id -> name or "
        "index -> [id, name]"
    )
    if is_split(data):
        split = parse_split(data, path)
        names = (name.replace("_", " ") for name in split.classes)
        return list(zip(split_ids(split), names, strict=True))
    if isinstance(data, list):
        items: list[tuple[str, Any]] = [("", value) for value in data]
    elif isinstance(data, dict):
        items = list(data.items())
        if all(key.isdecimal() for key in data):
            items = [("", data[str(c)]) for c in range(len(data)) if str(c) in data]
            if len(items) != len(data):
                raise UsageError(f"vocabulary {path}: the indices do not run from 0 to {len(data) - 1}")
    else:
        raise shape
    pairs = []
    for identity, value in items:
        if isinstance(value, str):
            pairs.append((identity or value, value))
        elif isinstance(value, list) and len(value) == 2 and all(isinstance(part, str) for part in value):
            pairs.append((value[0], value[1].replace("_", " ")))
        else:
            raise shape
    return pairs
