"""Layouts of data sets: image sources, CoOp's split files, CLIP_benchmark's folders, caches.

Reads class names and lists, not images. Imports nothing slow.
"""

import os
from dataclasses import replace
from pathlib import Path

from student_train.evaluation.settings import DataSettings, Format
from teacher_cache.classes.templates import load_templates
from teacher_cache.classes.vocabulary import Vocabulary, load_vocabulary
from teacher_cache.classes.vocabulary_files import synsets_and_names
from teacher_cache.errors import UsageError
from teacher_cache.files.remote import is_remote
from teacher_cache.files.text_file import read_text
from teacher_cache.images.sources import LIST, find_source
from teacher_cache.preflight import require_classes
from teacher_cache.store.presence import require_cache

CLASSNAMES, DATASET_TYPE = "classnames.txt", "dataset_type.txt"
TEMPLATES = "zeroshot_classification_templates.txt"


def find_format(settings: DataSettings) -> Format:
    """Find the layout of a data set from its files.

    Raises:
        UsageError: no data set there, or its layout is not `settings.format`.
    """
    path = Path(settings.images)
    layout: Format
    if os.path.isfile(path / "zarr.json") or settings.images.rstrip("/").endswith(".zarr"):
        layout = "cache"
    elif os.path.isfile(path / CLASSNAMES):
        layout = "clip-benchmark"
    elif path.suffix == ".json":
        layout = "coop"
        if not os.path.isfile(path):
            raise UsageError(f"no split file at {path}")
    else:
        found = find_source(settings.images)
        layout = "coop" if found.part else found.kind
    if settings.format not in ("auto", layout):
        raise UsageError(f"{settings.images} has the layout '{layout}', not '{settings.format}'")
    return layout


def vocabulary_of(settings: DataSettings, form: Format) -> Vocabulary:
    """Read the classes, with the templates of the settings or of the data set."""
    folder = Path(settings.images)
    own: tuple[str, ...] = ()
    if form == "clip-benchmark":
        own = load_templates(str(folder / TEMPLATES)) if (folder / TEMPLATES).is_file() else ()
        if settings.classes is None:
            return with_templates(_own_classes(folder), settings, own)
    classes = settings.classes or (split_file(settings.images) if form == "coop" else None)
    if classes is None:
        raise _no_classes(settings.images)
    names = load_vocabulary(classes, lemma=settings.lemma, duplicates=settings.duplicates)
    return with_templates(names, settings, own)


def with_templates(vocabulary: Vocabulary, settings: DataSettings, own: tuple[str, ...]) -> Vocabulary:
    """Return the vocabulary with the templates of the settings, or else the data set's own."""
    templates = own if settings.templates is None else load_templates(settings.templates)
    return replace(vocabulary, templates=templates)


def split_file(images: str) -> str:
    """Return the file of CoOp's layout without the part that follows a `#`."""
    listed = LIST.fullmatch(images)
    return listed["file"] if listed else images


def image_source_of(settings: DataSettings, form: Format) -> str:
    """Return the image source of stage one for the data set's images."""
    if form == "clip-benchmark":
        return _shards(Path(settings.images), settings.split)
    if form == "coop" and split_file(settings.images) == settings.images:
        return f"{settings.images}#{settings.split}"
    return settings.images


def _own_classes(folder: Path) -> Vocabulary:
    """Read CLIP_benchmark's `classnames.txt`. Labels are line numbers, also of equal names."""
    names = tuple(line.strip() for line in _text(folder / CLASSNAMES).splitlines())
    if not names:
        raise UsageError(f"{folder / CLASSNAMES} has no class names; write one per line")
    if not all(names):  # CLIP_benchmark takes an empty line as a class
        raise UsageError(f"{folder / CLASSNAMES}: line {names.index('') + 1} is empty; remove it")
    notes: tuple[str, ...] = ()
    if by_synset := synsets_and_names(names, folder / CLASSNAMES):
        names = tuple(by_synset[1])
        notes = (f"the lines of {folder / CLASSNAMES} start with a synset, which is not part of the name",)
    return Vocabulary(names, tuple(map(str, range(len(names)))), (), notes)


def _text(path: Path) -> str:
    try:
        return read_text(path)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from error


def _shards(folder: Path, split: str) -> str:
    """Return the shards of one split as an image source; `nshards.txt` has their number."""
    kind = folder / DATASET_TYPE
    if kind.is_file() and (found := _text(kind).strip()) != "classification":
        raise UsageError(f"{folder} is a data set for {found}; only classification can be evaluated")
    if not os.path.isdir(folder / split):
        splits = sorted({path.parent.name for path in folder.glob("*/*.tar")})
        raise UsageError(f"{folder} has no split '{split}'; it has {', '.join(splits) or 'none'}")
    count = folder / split / "nshards.txt"
    if not count.is_file():
        return f"{folder / split}/*.tar"
    text = _text(count).strip()
    if not text.isdecimal() or int(text) == 0:
        raise UsageError(f"{count}: expected the number of shards, found {text[:40]!r}")
    return f"{folder / split}/{{0..{int(text) - 1}}}.tar"


def _no_classes(images: str) -> UsageError:
    return UsageError(f"{images} has no class names; give a vocabulary with --classes")


def check_layout(settings: DataSettings) -> None:
    """Check that a local data set and its class names exist, without opening images.

    Raises:
        UsageError: names what is missing.
    """
    if is_remote(settings.images):
        return
    form = find_format(settings)
    if form == "cache":
        require_cache(settings.images)
        return
    if settings.classes is None and form not in ("coop", "clip-benchmark"):
        raise _no_classes(settings.images)
    require_classes(settings.classes, settings.templates)
    find_source(image_source_of(settings, form))
