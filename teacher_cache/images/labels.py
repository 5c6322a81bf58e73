"""Labels of a source, and the classes of the vocabulary that they mean. The rules are in docs/images.md."""

import re
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from teacher_cache.classes.vocabulary import DIGITS, Vocabulary
from teacher_cache.errors import UsageError
from teacher_cache.files.json_text import parse_json
from teacher_cache.files.text_file import is_text

LABEL_KEYS = ("label", "cls", "class_id", "class", "synset", "wnid", "class_name")
SYNSET = re.compile(r"(?<![a-z0-9])n\d{8}(?!\d)")


def read_label(content: bytes, suffix: str, where: str) -> tuple[int | None, str | None]:
    """Return the class index, or the id or name, in a `.cls` or `.json` member; (None, None) without a label.

    Raises:
        UsageError: the label cannot be read. The message starts with `where`.
    """
    try:
        text: Any = content.decode().strip()
        if suffix == ".json":
            record = parse_json(text)
            text = next((record[key] for key in LABEL_KEYS if record.get(key) is not None), None)
    except (ValueError, AttributeError) as error:
        raise UsageError(f"{where}: cannot read the label ({error})") from error
    return parse_label(text, where)


def parse_label(text: Any, where: str) -> tuple[int | None, str | None]:
    """Return a source's label as a class index, or as an id or name; (None, None) if it is empty.

    Raises:
        UsageError: not a possible class index, id or name. The message starts with `where`.
    """
    if text is None or text == "":
        return None, None
    label = str(text)
    if re.fullmatch(r"-?\d+", label):
        if len(label) > DIGITS or int(label) >= 1 << 31:
            raise UsageError(f"{where}: the label {label[:40]} is too large for a class index")
        return max(int(label), -1), None
    if not is_text(label):
        raise UsageError(f"{where}: the label {label[:40]!r} is not valid text")
    return None, label


def resolve_labels(
    raw: pa.Table,
    class_list: tuple[str, ...] | None,
    vocabulary: Vocabulary,
    source: str,
    by_order: bool = False,
) -> tuple[NDArray[np.int32], list[str]]:
    """Return the class index of each row, [N] int32, and notes for the user.

    Args:
        raw: columns label_index and label_name, a dictionary, in one chunk.
        class_list: all classes in the order of the source's own numbers, where it has such a list.
        by_order: match by sorted order if no class is in the vocabulary and both have the same number.

    Raises:
        UsageError: labels do not fit the vocabulary.
    """
    notes: list[str] = []
    stored = raw["label_index"].fill_null(-1).to_numpy()
    numbers, places = np.unique(stored, return_inverse=True)
    indices = np.array([_class_of(n, vocabulary, source) for n in numbers.tolist()], np.int32)[places]
    encoded = raw["label_name"].chunk(0)
    names: list[str] = encoded.dictionary.to_pylist()
    if names:
        index_of_name, how = _match(names, class_list, vocabulary, source, by_order)
        notes += [how] if how else []
        by_code = np.array([index_of_name.get(name, -1) for name in names], dtype=np.int32)
        codes = encoded.indices.fill_null(-1).to_numpy()
        indices = np.where(codes >= 0, by_code[codes], indices)
        outside = (codes >= 0) & (by_code[codes] < 0)
        if outside.any():
            unknown = [names[code] for code in np.unique(codes[outside])]
            notes.append(
                f"{outside.sum()} samples of {len(unknown)} classes outside the vocabulary "
                f"({', '.join(unknown[:3])}{', ...' if len(unknown) > 3 else ''}) have no hard label"
            )
    if (indices < 0).all():
        notes.append("no sample has a hard label")
    absent = len(vocabulary) - len(np.unique(indices[indices >= 0]))
    if absent and absent < len(vocabulary):
        notes.append(f"{absent} of {len(vocabulary)} classes have no sample")
    return indices.astype(np.int32), notes


def _class_of(number: int, vocabulary: Vocabulary, source: str) -> int:
    """Return the class index that an integer label means; -1 stays -1."""
    index = -1 if number < 0 else vocabulary.index_of_number(number)
    if index is None:
        raise UsageError(
            f"'{source}' has the label {number}, but the vocabulary has {len(vocabulary)} classes "
            f"({vocabulary.numbering}); choose the vocabulary of these labels"
        )
    return index


def _match(
    names: list[str], class_list: tuple[str, ...] | None, vocabulary: Vocabulary, source: str, by_order: bool
) -> tuple[dict[str, int], str | None]:
    """Return the class index of each name that has one, and a note if it was not found by name."""
    classes = class_list or tuple(sorted(names))
    found = {name: index for name in classes if (index := vocabulary.index_of(name)) is not None}
    if not found and all(name.isdecimal() and len(name) <= DIGITS for name in classes):
        return {name: _class_of(int(name), vocabulary, source) for name in classes}, None
    if len(classes) == len(vocabulary):
        if class_list and len(found) < len(classes) and all(classes[i] == n for n, i in found.items()):
            how = "classes were matched to the vocabulary by number: not all of their names are in it"
            return {name: index for index, name in enumerate(classes)}, how
        if not found and by_order:
            how = "class folders were matched to the vocabulary by sorted order, as torchvision does"
            return {name: index for index, name in enumerate(classes)}, how
    if not found:
        raise UsageError(
            f"'{source}' has {len(classes)} classes ({', '.join(classes[:3])}, ...), the "
            f"vocabulary {len(vocabulary)} ({', '.join(vocabulary.ids[:3])}, ...), and they share no "
            "id or name"
        )
    return found, None
