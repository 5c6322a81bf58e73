"""Labels: what a source says of a sample, and which class of the vocabulary that is.

The rules are in docs/images.md.
"""

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
    """Class index, or id or name, from a `.cls` or `.json` member; (None, None) if it has neither.

    Raises:
        UsageError: naming the member, `where`.
    """
    try:
        text: Any = content.decode().strip()
        if suffix == ".json":
            record = parse_json(text)
            text = next((record[key] for key in LABEL_KEYS if record.get(key) is not None), None)
    except (ValueError, AttributeError) as error:
        raise UsageError(f"{where}: label is not readable ({error})") from error
    return parse_label(text, where)


def parse_label(text: Any, where: str) -> tuple[int | None, str | None]:
    """What a source's label says: class index, or id or name; (None, None) if nothing.

    Raises:
        UsageError: a number that can be no class index, naming the place, `where`.
    """
    if text is None or text == "":
        return None, None
    said = str(text)
    if re.fullmatch(r"-?\d+", said):
        if len(said) > DIGITS or int(said) >= 1 << 31:
            raise UsageError(f"{where}: the label {said[:40]} is no class index")
        return max(int(said), -1), None
    if not is_text(said):
        raise UsageError(f"{where}: the label {said[:40]!r} is no text")
    return None, said


def resolve_labels(
    raw: pa.Table,
    class_list: tuple[str, ...] | None,
    vocabulary: Vocabulary,
    source: str,
    by_order: bool = False,
) -> tuple[NDArray[np.int32], list[str]]:
    """Class indices from what the source calls the classes, and notes for the user.

    Args:
        raw: columns label_index and label_name, a dictionary, in one chunk.
        class_list: all classes in the order of the source's own numbers, where it has such a list.
        by_order: match by sorted order where no class is in the vocabulary but both have as many.

    Raises:
        UsageError: labels that do not fit the vocabulary.
    """
    notes: list[str] = []
    said = raw["label_index"].fill_null(-1).to_numpy()
    numbers, places = np.unique(said, return_inverse=True)
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
    """Class index of a label that is a whole number; -1 stays -1."""
    index = -1 if number < 0 else vocabulary.index_of_number(number)
    if index is None:
        raise UsageError(
            f"'{source}' has the label {number}, but the vocabulary has {len(vocabulary)} classes "
            f"({vocabulary.numbering}): another vocabulary is needed"
        )
    return index


def _match(
    names: list[str], class_list: tuple[str, ...] | None, vocabulary: Vocabulary, source: str, by_order: bool
) -> tuple[dict[str, int], str | None]:
    """Class index of each name that has one, and a note on how it was found if not by the vocabulary."""
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
            f"vocabulary {len(vocabulary)} ({', '.join(vocabulary.ids[:3])}, ...), and no id or "
            "name is in both"
        )
    return found, None
