"""Labels of a source, and the classes of the vocabulary that they mean. The rules are in docs/images.md."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from teacher_cache.classes.vocabulary import DIGITS, Vocabulary
from teacher_cache.errors import UsageError
from teacher_cache.files.json_text import parse_json
from teacher_cache.files.text_file import is_text
from teacher_cache.images.rows import SeveralStatements
from teacher_cache.images.statements import PLACES, LabelChoice, Statement, Statements
from teacher_cache.images.table import LabelReport

LABEL_KEYS = ("label", "cls", "class_id", "class", "synset", "wnid", "class_name")
SYNSET = re.compile(r"(?<![a-z0-9])n\d{8}(?!\d)")
NAMED = 3  # samples in a message


def read_label(content: bytes, suffix: str, where: str) -> list[Statement]:
    """Return the labels in a `.cls` or `.json` member, in the order of `LABEL_KEYS`.

    Raises:
        UsageError: the label cannot be read. The message starts with `where`.
    """
    try:
        text = content.decode("utf-8-sig").strip()
        if suffix == ".cls":
            return [Statement("cls", "", *parse_label(text, where))] if text else []
        return labels_of_record("json", parse_json(text), LABEL_KEYS, where)
    except (ValueError, AttributeError) as error:
        raise UsageError(f"{where}: cannot read the label ({error})") from error


def labels_of_record(place: str, record: dict[str, Any], keys: Sequence[str], where: str) -> list[Statement]:
    """Return the labels under the keys of a record; later values that are not labels are left out.

    Raises:
        UsageError: as `parse_label`, for the first.
    """
    found: list[Statement] = []
    for key in keys:
        value = record.get(key)
        if value is None or value == "":
            continue
        try:
            label = Statement(place, key, *parse_label(value, where))
        except UsageError:
            if not found:
                raise
            continue
        if not found or isinstance(value, str | int | float):
            found.append(label)
    return [label for label in found if label[2:] != (None, None)]


def synsets_in(path: str) -> list[Statement]:
    """Return the synset in the folders of a path and that in the file's name, which goes second."""
    folder, _, base = path.rpartition("/")
    found = [("folder", SYNSET.search(folder)), ("name", SYNSET.search(base))]
    return [Statement(place, "", None, match[0]) for place, match in found if match]


def parse_label(text: Any, where: str) -> tuple[int | None, str | None]:
    """Return a source's label as a class index, or as an id or name; (None, None) if it is empty.

    Raises:
        UsageError: not a possible class index, id or name. The message starts with `where`.
    """
    if text is None or text == "":
        return None, None
    if isinstance(text, float):  # JSON of pandas, if a label is missing: 3.0 and NaN
        if text != text:
            return None, None
        text = int(text) if text.is_integer() else text
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
    several: SeveralStatements | None = None,
    choice: LabelChoice = "auto",
) -> tuple[NDArray[np.int32], LabelReport]:
    """Return the class index of each row, [N] int32, and a report for the user.

    Args:
        raw: columns key, label_index and label_name, a dictionary, in one chunk.
        class_list: all classes in the order of the source's own numbers, where it has such a list.
        by_order: match by sorted order if no class is in the vocabulary and both have the same number.
        several: the labels of rows that have several.
        choice: which of them is the label where they name different classes.

    Raises:
        UsageError: labels do not fit the vocabulary, or contradict one another and none is chosen.
    """
    several = several or SeveralStatements()
    sets = [tuple(sorted(one, key=lambda label: label.place != choice)) for one in several.sets]
    numbers_N = raw["label_index"].fill_null(-1).to_numpy()
    encoded = raw["label_name"].chunk(0)
    codes_N, names = encoded.indices.fill_null(-1).to_numpy(), encoded.dictionary.to_pylist()
    if sets != several.sets:
        several = replace(several, sets=sets)
        numbers_N, codes_N, names = _with_first(several, numbers_N, codes_N, names)
    numbers, places = np.unique(numbers_N, return_inverse=True)
    labels_N = np.array([_class_of(n, vocabulary, source) for n in numbers.tolist()], np.int32)[places]
    notes: list[str] = []
    outside_N = np.zeros(0, dtype=bool)
    index_of_name: dict[str, int] = {}
    if names:
        others = [label for one in sets if one[0].place != "folder" for label in one[1:]]
        is_needed = all(_class_or_none(label, vocabulary) is None for label in others)
        index_of_name, notes = _match(names, class_list, vocabulary, source, by_order, is_needed)
        by_code = np.array([index_of_name.get(name, -1) for name in names], dtype=np.int32)
        labels_N = np.where(codes_N >= 0, by_code[codes_N], labels_N).astype(np.int32)
        outside_N = (codes_N >= 0) & (labels_N < 0)
        notes += _notes_on_forms(names, codes_N, index_of_name, vocabulary)
    found = _compared(several, labels_N, vocabulary, index_of_name)
    if len(several):
        labels_N[several.rows] = np.array(found.labels, np.int32)[several.codes]
    stated = _Stated(raw["key"], several)
    undecided, first = stated.rows_of([c for c in found.contradictory if not _decides(choice, sets[c])])
    if undecided:
        present = {label.place for c in found.contradictory for label in sets[c]}
        raise UsageError(
            f"'{source}': the labels of {undecided:,} of {len(labels_N):,} samples contradict one another "
            f"({stated.text(first)}); correct them, or choose with --labels which one counts: "
            f"{', '.join(place for place in PLACES if place in present)}, first (in this order) or none"
        )
    contradictory, first = stated.rows_of(found.contradictory)
    if contradictory:
        how = {"first": "the first one counts", "none": "they have no hard label"}
        notes.append(
            f"the labels of {contradictory:,} samples contradict one another ({stated.text(first)}); "
            f"{how.get(choice, f'that in {choice} counts')}"
        )
        if choice == "none":
            labels_N[several.rows[np.isin(several.codes, found.contradictory)]] = -1
    for codes, text in (
        (found.filled, "whose first label is not in the vocabulary have the class of the next one"),
        (found.withheld, "have the label -1, which means none, beside a class, and no hard label"),
        (found.numbered, "have a class_id that is not their class: it is taken for another numbering"),
    ):
        count, rows = stated.rows_of(codes)
        notes += [f"{count:,} samples {text} ({stated.text(rows)})"] if count else []
    if not by_order:
        notes += _notes_on_folders(raw["key"], labels_N, vocabulary)
    outside_N = outside_N & (labels_N < 0) if names else labels_N < -1
    if outside_N.any():
        unknown = [names[code] for code in np.unique(codes_N[outside_N])]
        notes.append(
            f"{outside_N.sum()} samples of {len(unknown)} classes outside the vocabulary "
            f"({', '.join(unknown[:3])}{', ...' if len(unknown) > 3 else ''}) have no hard label"
        )
    without_N = (labels_N < 0) & ~outside_N
    unlabelled, first_unlabelled = (
        int((labels_N < 0).sum()),
        raw["key"].take(_first(labels_N < 0)).to_pylist(),
    )
    if unlabelled == len(labels_N):
        notes.append("no sample has a hard label")
    elif without_N.any():
        keys = raw["key"].take(_first(without_N)).to_pylist()
        notes.append(
            f"{without_N.sum():,} of {len(labels_N):,} samples have no label ({_some(keys, without_N)})"
        )
    absent = len(vocabulary) - len(np.unique(labels_N[labels_N >= 0]))
    if absent and absent < len(vocabulary):
        notes.append(f"{absent} of {len(vocabulary)} classes have no sample")
    report = LabelReport(
        choice=choice,
        labelled=len(labels_N) - unlabelled,
        unlabelled=unlabelled,
        outside_vocabulary=int(outside_N.sum()),
        contradictory=contradictory,
        first_unlabelled=first_unlabelled,
        first_contradictory=raw["key"].take(pa.array(first, pa.int64())).to_pylist(),
        notes=notes,
    )
    return labels_N, report


def _decides(choice: LabelChoice, labels: Statements) -> bool:
    """Return whether the choice says which of the labels counts."""
    return choice in ("first", "none") or labels[0].place == choice


def _first(mask_N: NDArray[np.bool_]) -> pa.Array:
    return pa.array(np.flatnonzero(mask_N)[:NAMED], pa.int64())


def _some(keys: list[str], mask_N: NDArray[np.bool_]) -> str:
    return f"{', '.join(keys)}{', ...' if mask_N.sum() > len(keys) else ''}"


def _with_first(
    several: SeveralStatements, numbers_N: NDArray[np.int32], codes_N: NDArray[np.int32], names: list[str]
) -> tuple[NDArray[np.int32], NDArray[np.int32], list[str]]:
    """Return numbers, codes of names and names with the first label of each set in place of the rows' own."""
    code_of = {name: code for code, name in enumerate(names)}
    numbers = [-1 if one[0].number is None else one[0].number for one in several.sets]
    codes = [
        -1 if one[0].name is None else code_of.setdefault(one[0].name, len(code_of)) for one in several.sets
    ]
    numbers_N, codes_N, all_names = numbers_N.copy(), codes_N.copy(), list(code_of)
    numbers_N[several.rows] = np.array(numbers, np.int32)[several.codes]
    codes_N[several.rows] = np.array(codes, np.int32)[several.codes]
    used, places = np.unique(codes_N, return_inverse=True)  # names that no row has would count as classes
    used = used[used >= 0]
    return numbers_N, (places - (codes_N.min() < 0)).astype(np.int32), [all_names[code] for code in used]


@dataclass
class _Compared:
    """Comparison of the labels in each set.

    Attributes:
        labels: the class index of each set, -1 = none.
        contradictory: codes of sets that name different classes.
        filled: whose first label is not in the vocabulary, and another is.
        withheld: that say -1 first, and then a class.
        numbered: whose weak label is another number.
    """

    labels: list[int]
    contradictory: list[int] = field(default_factory=list)
    filled: list[int] = field(default_factory=list)
    withheld: list[int] = field(default_factory=list)
    numbered: list[int] = field(default_factory=list)


def _compared(
    several: SeveralStatements,
    labels_N: NDArray[np.int32],
    vocabulary: Vocabulary,
    index_of_name: dict[str, int],
) -> _Compared:
    """Compare the labels in each set. A label that is not in the vocabulary contradicts none."""
    codes, first = np.unique(several.codes, return_index=True)
    labels = dict(zip(codes.tolist(), labels_N[several.rows[first]].tolist(), strict=True))
    found = _Compared([labels.get(code, -1) for code in range(len(several.sets))])
    weak: list[tuple[int, int]] = []
    for code, (own, *others) in enumerate(several.sets):
        classes = [
            (c, label)
            for label in others
            if (c := _class_or_none(label, vocabulary, index_of_name)) is not None
        ]
        classes = [(c, label) for c, label in classes if c >= 0]
        strong = [c for c, label in classes if not label.is_weak]
        is_none = own.name is None and (own.number is None or own.number < 0)
        if is_none:
            found.withheld += [code] if strong else []
            continue
        if found.labels[code] < 0 and strong and own.place != "folder":
            found.labels[code] = strong[0]
            found.filled.append(code)
        if any(c != found.labels[code] for c in strong) and found.labels[code] >= 0:
            found.contradictory.append(code)
        weak += [(code, c) for c, label in classes if label.is_weak]
    found.numbered = [code for code, c in weak if found.labels[code] not in (-1, c)]
    if not found.numbered:  # the numbering is the vocabulary's
        for code, c in weak:
            if found.labels[code] < 0 and several.sets[code][0].place != "folder":
                found.labels[code] = c
                found.filled.append(code)
    return found


class _Stated:
    """The samples of some sets, for messages."""

    def __init__(self, keys: pa.ChunkedArray, several: SeveralStatements) -> None:
        self._keys, self._sets = keys, several.sets
        self._rows, self._codes = several.rows, several.codes

    def rows_of(self, codes: list[int]) -> tuple[int, list[int]]:
        """Return how many rows have one of the sets, and the first three."""
        rows = self._rows[np.isin(self._codes, codes)] if codes else self._rows[:0]
        return len(rows), rows[:NAMED].tolist()

    def text(self, rows: list[int]) -> str:
        """Return keys and labels of the rows."""
        places = np.searchsorted(self._rows, rows)
        labels = [", ".join(map(str, self._sets[self._codes[place]])) for place in places]
        keys = self._keys.take(pa.array(rows, pa.int64())).to_pylist()
        return "; ".join(f"{key}: {text}" for key, text in zip(keys, labels, strict=True))


def _class_or_none(
    label: Statement, vocabulary: Vocabulary, index_of_name: dict[str, int] | None = None
) -> int | None:
    """Return the class index of a label, -1 for an explicit none; None if it is not in the vocabulary."""
    if label.name is None:
        return -1 if label.number is None or label.number < 0 else vocabulary.index_of_number(label.number)
    return (index_of_name or {}).get(label.name, vocabulary.index_of(label.name))


def _notes_on_forms(
    names: list[str], codes_N: NDArray[np.int32], index_of_name: dict[str, int], vocabulary: Vocabulary
) -> list[str]:
    """Return a note about names that the vocabulary has in another Unicode form."""
    by_form = [
        code
        for code, name in enumerate(names)
        if not name.isascii()
        and vocabulary.is_other_form(name)
        and index_of_name.get(name) == vocabulary.index_of(name)
    ]
    if not by_form:
        return []
    return [
        f"the labels of {np.isin(codes_N, by_form).sum():,} samples differ from the vocabulary only in "
        f"Unicode form ({', '.join(ascii(names[code]) for code in by_form[:NAMED])})"
    ]


def _notes_on_folders(
    keys: pa.ChunkedArray, labels_N: NDArray[np.int32], vocabulary: Vocabulary
) -> list[str]:
    """Return notes about samples whose folder names another class than their label.

    In tars, Parquet files and lists the name of a folder is no label, because it may be 'train', or a class
    above that of the label. Synsets in it are labels, and numbers may be those of shards.
    """
    if not pc.any(pc.match_substring(keys, "/")).as_py():
        return []
    folders = pc.struct_field(pc.extract_regex(keys, r"(?:^|/)(?P<folder>[^/]+)/[^/]*$"), "folder")
    encoded = folders.combine_chunks().dictionary_encode()
    names = encoded.dictionary.to_pylist()
    if len(names) > 10 * len(vocabulary):  # a folder for each sample
        return []
    classes = [
        None if name.isdecimal() or SYNSET.search(name) else vocabulary.index_of(name) for name in names
    ]
    if len({c for c in classes if c is not None}) < 2:
        return []
    by_code = np.array([*(-1 if c is None else c for c in classes), -1], np.int32)
    classes_N = by_code[encoded.indices.fill_null(-1).to_numpy()]
    differs_N = (classes_N >= 0) & (classes_N != labels_N)
    notes = []
    for mask_N, text in (
        (differs_N & (labels_N >= 0), "name another class than the label, which counts"),
        (differs_N & (labels_N < 0), "name a class, but only an image folder's folders are labels"),
    ):
        if mask_N.any():
            first = keys.take(_first(mask_N)).to_pylist()
            notes.append(f"the folders of {mask_N.sum():,} samples {text} ({_some(first, mask_N)})")
    return notes


def _class_of(number: int, vocabulary: Vocabulary, source: str) -> int:
    """Return the class index that an integer label means; -1 stays -1."""
    index = -1 if number < 0 else vocabulary.index_of_number(number)
    if index is None:
        from_1 = number == len(vocabulary) and vocabulary.index_of_number(0) == 0
        remedy = ", or write '1: NAME', '2: NAME', ... in it if the labels count from 1" if from_1 else ""
        raise UsageError(
            f"'{source}' has the label {number}, but the vocabulary has {len(vocabulary)} classes "
            f"({vocabulary.numbering}); choose the vocabulary of these labels{remedy}"
        )
    return index


def _match(
    names: list[str],
    class_list: tuple[str, ...] | None,
    vocabulary: Vocabulary,
    source: str,
    by_order: bool,
    is_needed: bool,
) -> tuple[dict[str, int], list[str]]:
    """Return the class index of each name that has one, and notes.

    Raises:
        UsageError: no name has one, and `is_needed`: samples have no other labels.
    """
    classes = class_list or tuple(sorted(names))
    found = {name: index for name in classes if (index := vocabulary.index_of(name)) is not None}
    if not found and all(name.isdecimal() and len(name) <= DIGITS for name in classes):
        return {name: _class_of(int(name), vocabulary, source) for name in classes}, []
    if len(classes) == len(vocabulary):
        if class_list and len(found) < len(classes) and all(classes[i] == n for n, i in found.items()):
            how = "classes were matched to the vocabulary by number: not all of their names are in it"
            return {name: index for index, name in enumerate(classes)}, [how]
        if not found and by_order:
            how = "class folders were matched to the vocabulary by sorted order, as torchvision does"
            return {name: index for index, name in enumerate(classes)}, [how]
    if not found and is_needed:
        raise UsageError(
            f"'{source}' has {len(classes)} classes ({', '.join(classes[:3])}, ...), the "
            f"vocabulary {len(vocabulary)} ({', '.join(vocabulary.ids[:3])}, ...), and they share no "
            "id or name"
        )
    if class_list and len(classes) != len(vocabulary):
        return found, [
            f"the source names {len(classes):,} classes, {len(found):,} of them in the vocabulary, which has "
            f"{len(vocabulary):,}"
        ]
    return found, []
