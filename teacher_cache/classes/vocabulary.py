"""Class names, ids and templates, in the order of the class indices.

ImageNet's names come from timm's ImageNetInfo, others from the user's file. Which image belongs to which
class is decided in `images/`.
"""

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from teacher_cache.classes.templates import DEFAULT_TEMPLATE, is_template, load_templates
from teacher_cache.classes.vocabulary_files import read_names, unique_ids
from teacher_cache.errors import UsageError
from teacher_cache.files.places import place_of
from teacher_cache.files.text_file import is_text

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Lemma = Literal["first", "last", "shortest", "all"]
Duplicates = Literal["lemma", "definition", "keep", "error"]

# timm calls the 21,841 synsets of the fall 2011 release imagenet-22k, and Google's list of 21,843, which has
# two synsets without images, imagenet-21k. Here ImageNet-21K is the release.
IMAGENETS = {
    "imagenet-21k": "imagenet-22k",
    "imagenet-22k": "imagenet-22k",
    "imagenet-21k-goog": "imagenet-21k-goog",
    "imagenet-21k-p": "imagenet-21k-miil",
    "imagenet-12k": "imagenet-12k",
    "imagenet-1k": "imagenet-1k",
}
# ImageNet-1K with the names that CLIP's authors chose. Published tables use these.
CLIP_NAMES = "imagenet-1k-clip"

_SYNSET = re.compile(r"n\d{8}")
# Soft hyphens, zero-width characters, marks of writing direction, variation selectors, byte order marks.
_INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u2060-\u2064\ufe00-\ufe0f\ufeff]")

DIGITS = 18  # of a class index or a numeric id, at most; Python refuses to read thousands of them


@dataclass(frozen=True)
class Vocabulary:
    """Ordered class names; index c of every array's class axis is `names[c]`.

    Attributes:
        names: class names as the text tower reads them, [C].
        ids: class ids as image sources have them: the synset, or the name where there is no id, [C].
        templates: texts with one `{}` for the name; class features are the mean over them.
        notes: how a file of names was read, for the user; not part of the vocabulary.
    """

    names: tuple[str, ...]
    ids: tuple[str, ...]
    templates: tuple[str, ...] = (DEFAULT_TEMPLATE,)
    notes: tuple[str, ...] = field(default=(), compare=False)

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def duplicate_names(self) -> dict[str, int]:
        """Names that several classes share, with the number of these classes."""
        return {name: count for name, count in Counter(self.names).items() if count > 1}

    def index_of(self, label: str) -> int | None:
        """Return the class index of an id or a name; None if it is unknown or shared by several classes.

        An exact match goes before one that ignores case and takes `_` for a space, and this one before one
        that also ignores the Unicode form (`_form`). An id goes before a name.
        """
        exact, folded = self._index
        found = exact.get(label, folded.get(_fold(label)))
        return self._forms.get(_form(label)) if found is None and self.is_other_form(label) else found

    def is_other_form(self, label: str) -> bool:
        """Return whether no id or name equals the label, also when case and `_` are ignored."""
        exact, folded = self._index
        return label not in exact and _fold(label) not in folded

    @cached_property
    def _forms(self) -> dict[str, int | None]:
        """Class index by an id or name without its Unicode form."""
        names, ids = (tuple(map(_form, labels)) for labels in (self.names, self.ids))
        return _unshared(names) | _unshared(ids)

    @cached_property
    def similar_names(self) -> list[tuple[str, ...]]:
        """Groups of different names that differ only in case, spaces, `_` or Unicode form."""
        groups: dict[str, dict[str, None]] = {}
        for name in self.names:
            groups.setdefault(_form(name), {})[name] = None
        return [tuple(group) for group in groups.values() if len(group) > 1]

    @property
    def remarks(self) -> list[str]:
        """What the user should know about the names: how they were read, and which ones are alike."""
        remarks = list(self.notes)
        if self.duplicate_names:
            shared = sum(self.duplicate_names.values())
            remarks.append(f"{shared} classes share their name with another and cannot be told apart by it")
        if groups := self.similar_names:
            first = "; ".join(
                " and ".join(ascii(name) if _is_unusual(name) else f"'{name}'" for name in group[:3])
                for group in groups[:3]
            )
            remarks.append(
                f"the names of {sum(map(len, groups))} classes differ from another name only in case, "
                f"spaces, underscores or Unicode form, such as {first}; text towers may read them alike"
            )
        return remarks

    @cached_property
    def _index(self) -> tuple[dict[str, int | None], dict[str, int | None]]:
        """Class index by exact and by folded id or name."""
        folded_names, folded_ids = (tuple(map(_fold, labels)) for labels in (self.names, self.ids))
        return _unshared(self.names) | _unshared(self.ids), _unshared(folded_names) | _unshared(folded_ids)

    @cached_property
    def _numbers(self) -> dict[int, int]:
        if all(identity.isdecimal() and len(identity) <= DIGITS for identity in self.ids):
            return {int(identity): c for c, identity in enumerate(self.ids)}
        return {c: c for c in range(len(self))}

    @property
    def numbering(self) -> str:
        """Which whole numbers are labels, for a message."""
        if self._numbers.keys() == set(range(len(self))):
            return f"0 to {len(self) - 1}"
        return f"numbered {', '.join(map(str, list(self._numbers)[:3]))}, ... by their ids"

    def index_of_number(self, number: int) -> int | None:
        """Return the class index of a label that is a whole number: that of the class with this id if all ids
        are whole numbers, else the number itself. None if there is no such class."""
        return self._numbers.get(number)

    def classes_in(self, other: "Vocabulary") -> "NDArray[np.int32]":
        """Return the index of each class in another vocabulary, by id, [C] int32; -1 where it has none."""
        import numpy as np

        index = {identity: c for c, identity in enumerate(other.ids)}
        return np.array([index.get(identity, -1) for identity in self.ids], dtype=np.int32)

    def to_json(self) -> dict[str, Any]:
        """Return the record that a cache stores."""
        return {"names": list(self.names), "ids": list(self.ids), "templates": list(self.templates)}

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> "Vocabulary":
        """Make a vocabulary from the record of `to_json`.

        Raises:
            ValueError: it is not such a record.
        """
        names, ids, templates = (record[name] for name in ("names", "ids", "templates"))
        for texts in (names, ids, templates):
            if not (isinstance(texts, list) and all(isinstance(t, str) and is_text(t) for t in texts)):
                raise ValueError("names, ids or templates are not lists of texts")
        if not names or len(names) != len(ids) or not all(map(is_template, templates)):
            raise ValueError("names, ids and templates do not belong together")
        return cls(tuple(names), tuple(ids), tuple(templates))


def _unshared(keys: tuple[str, ...]) -> dict[str, int | None]:
    """Return the class index of each key; None where several classes have it."""
    counts = Counter(keys)
    return {key: c if counts[key] == 1 else None for c, key in enumerate(keys)}


def _fold(label: str) -> str:
    return " ".join(label.replace("_", " ").split()).casefold()


def _form(label: str) -> str:
    """Return a label without case, spaces, `_` and Unicode form: macOS writes decomposed letters, other
    programs composed ones; full-width letters and invisible characters come with copied text."""
    return unicodedata.normalize("NFKC", _fold(_INVISIBLE.sub("", unicodedata.normalize("NFKC", label))))


def _is_unusual(name: str) -> bool:
    """Return whether a name contains invisible characters, unusual spaces or decomposed letters."""
    spaces = any(letter.isspace() and letter != " " for letter in name)
    return bool(_INVISIBLE.search(name)) or spaces or not unicodedata.is_normalized("NFC", name)


def load_vocabulary(
    source: str | os.PathLike[str] | Iterable[str],
    templates: str = DEFAULT_TEMPLATE,
    lemma: Lemma = "first",
    duplicates: Duplicates = "lemma",
) -> Vocabulary:
    """Load class names of an ImageNet or from a file, or take a list of them.

    Args:
        source: the names in the order of their indices; or one of `IMAGENETS`, `CLIP_NAMES`; or a file:
            `.txt` (one name a line, or a synset, a number or
            an id and a name), `.csv`/`.tsv` (a header with one of `NAME_COLUMNS` and optionally one of
            `ID_COLUMNS`; without a header the columns are id and name, or name only), `.json` (a list of
            names, an object index -> name, id -> name, or index -> [id, name] as in Keras, or CoOp's
            `split_zhou_*.json`). Names that are all synsets are replaced by ImageNet-21K's.
        templates: as `load_templates` takes them.
        lemma: which of a synset's names to use: the first, the last, the shortest, or all of them joined by
            commas. Only synsets have several.
        duplicates: what to do with a name that an earlier class has. `lemma` takes the class's next free
            lemma, or keeps the name if there is none; `definition` then adds the first clause of the
            definition; `keep` changes no name; `error` refuses.

    Raises:
        UsageError: an unknown name, an unreadable file, an empty name, an id of several classes, synsets in
            only some lines, or a template without `{}`.
    """
    texts = load_templates(templates)
    notes: list[str] = []
    if isinstance(source, os.PathLike):
        source = Path(source)
    if not isinstance(source, str | Path):
        from teacher_cache.indices import as_texts  # imports NumPy

        names = as_texts(source, "class names")
        if not all(name.strip() for name in names):
            raise UsageError("class names must not be empty")
        ids, lemmas, definitions = list(unique_ids(names)), [[name] for name in names], {}
        notes = _notes_on_names(names, "the list")
    elif str(source).lower() in IMAGENETS:
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
        require_vocabulary(source)
        found = read_names(Path(place_of(source)))
        ids, lemmas, definitions, notes = found.ids, found.lemmas, {}, found.notes
        synsets = [names[0] for names in lemmas if _SYNSET.fullmatch(names[0])]
        if synsets:
            lemmas = _lemmas_of_synsets(synsets, len(ids), source)
            ids = ids if all(map(str.isdecimal, ids)) else synsets
            notes.append(f"{source} has only synsets; their names come from timm's ImageNetInfo")
        notes += _notes_on_names([names[0] for names in lemmas], source)
    chosen = _choose_names(ids, lemmas, definitions, lemma, duplicates)
    return Vocabulary(tuple(chosen), tuple(ids), texts, tuple(notes))


def _lemmas_of_synsets(synsets: list[str], classes: int, source: str | Path) -> list[list[str]]:
    """Return ImageNet-21K's lemmas of the synsets that a vocabulary has in place of names.

    Raises:
        UsageError: only some of its names are synsets, or ImageNet-21K does not have all of them.
    """
    if len(synsets) < classes:
        raise UsageError(
            f"vocabulary {source}: {len(synsets):,} of {classes:,} class names are synsets "
            f"({', '.join(synsets[:3])}), the others are not; write names in place of the synsets"
        )
    from timm.data import ImageNetInfo  # imports torch

    info = ImageNetInfo(IMAGENETS["imagenet-21k-goog"])
    known = set(info.label_names())
    if unknown := [synset for synset in synsets if synset not in known]:
        raise UsageError(
            f"vocabulary {source} has synsets in place of class names, and ImageNet-21K has no name for "
            f"{len(unknown):,} of {classes:,} ({', '.join(unknown[:3])}); write 'SYNSET NAME' in each line"
        )
    return [_lemmas(info.label_name_to_description(synset)) for synset in synsets]


def _notes_on_names(names: list[str], source: str | Path) -> list[str]:
    notes = []
    with_commas = [name for name in names if "," in name]
    if len(with_commas) > len(names) // 2:
        notes.append(
            f"{len(with_commas)} of {len(names)} class names in {source} contain commas, such as "
            f"'{with_commas[0][:100]}'; each is read as one name"
        )
    if with_underscores := [name for name in names if "_" in name]:
        notes.append(
            f"{len(with_underscores)} of {len(names)} class names in {source} contain underscores, such as "
            f"'{with_underscores[0][:100]}'; the text tower reads them as they are: write spaces if they "
            "stand for spaces"
        )
    if unusual := [name for name in names if _is_unusual(name)]:
        notes.append(
            f"{len(unusual)} class names in {source} contain invisible characters, unusual spaces or "
            f"decomposed letters, such as {unusual[0]!a}; the text tower reads them as they are"
        )
    return notes


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
        repeated = [f"'{name}' ({count} classes)" for name, count in counts.items() if count > 1]
        if repeated:
            more = f" and {len(repeated) - 5} more" if len(repeated) > 5 else ""
            raise UsageError(f"class names occur more than once: {', '.join(repeated[:5])}{more}")
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


def require_vocabulary(source: str | Path) -> None:
    """Check that a vocabulary is a known name or an existing file.

    Raises:
        UsageError: it is neither.
    """
    if str(source).lower() not in (*IMAGENETS, CLIP_NAMES) and not os.path.isfile(place_of(source)):
        raise UsageError(
            f"vocabulary '{source}': no such file, and no known name ({', '.join((*IMAGENETS, CLIP_NAMES))})",
        )
