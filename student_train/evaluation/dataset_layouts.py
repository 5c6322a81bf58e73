"""How the field lays data sets out: image sources, CoOp's split files, CLIP_benchmark's folders, caches.

Knows names and text files; images are looked for, and not read. Nothing here takes time to import.
"""

import os
from pathlib import Path

from student_train.evaluation.settings import DataSettings, Format
from teacher_cache.classes.templates import load_templates
from teacher_cache.classes.vocabulary import Vocabulary, load_vocabulary
from teacher_cache.errors import UsageError
from teacher_cache.files.text_file import read_text
from teacher_cache.images.remote import is_remote
from teacher_cache.images.sources import find_source
from teacher_cache.preflight import require_classes
from teacher_cache.store.presence import require_cache

CLASSNAMES, TEMPLATES, DATASET_TYPE = (
    "classnames.txt",
    "zeroshot_classification_templates.txt",
    "dataset_type.txt",
)


def format_of(settings: DataSettings) -> Format:
    """How the data set is laid out: as was said, or by its look.

    Raises:
        UsageError: nothing there, or not what was said.
    """
    path = Path(settings.images)
    looks: Format
    if os.path.isfile(path / "zarr.json") or settings.images.rstrip("/").endswith(".zarr"):
        looks = "cache"
    elif os.path.isfile(path / CLASSNAMES):
        looks = "clip-benchmark"
    elif path.suffix == ".json":
        looks = "coop"
        if not os.path.isfile(path):
            raise UsageError(f"no split file at {path}")
    else:
        found = find_source(settings.images)
        looks = "coop" if found.part else found.kind
    if settings.format not in ("auto", looks):
        raise UsageError(f"{settings.images} is laid out as '{looks}', not as '{settings.format}'")
    return looks


def vocabulary_of(settings: DataSettings, form: Format) -> Vocabulary:
    """The classes, with the templates that the settings name or the data set brings."""
    folder = Path(settings.images)
    own: tuple[str, ...] = ()
    if form == "clip-benchmark":
        own = load_templates(str(folder / TEMPLATES)) if (folder / TEMPLATES).is_file() else ()
        if settings.classes is None:
            return with_templates(_own_classes(folder), settings, own)
    classes = settings.classes or (settings.images.partition("#")[0] if form == "coop" else None)
    if classes is None:
        raise _no_classes(settings.images)
    names = load_vocabulary(classes, lemma=settings.lemma, duplicates=settings.duplicates)
    return with_templates(names, settings, own)


def with_templates(vocabulary: Vocabulary, settings: DataSettings, own: tuple[str, ...]) -> Vocabulary:
    """The vocabulary with the templates that the settings name, else with the data set's own."""
    templates = own if settings.templates is None else load_templates(settings.templates)
    return Vocabulary(vocabulary.names, vocabulary.ids, templates)


def image_source_of(settings: DataSettings, form: Format) -> str:
    """The image source of stage one that holds the data set's images."""
    if form == "clip-benchmark":
        return _shards(Path(settings.images), settings.split)
    if form == "coop" and "#" not in settings.images:
        return f"{settings.images}#{settings.split}"
    return settings.images


def _own_classes(folder: Path) -> Vocabulary:
    """The names of CLIP_benchmark's `classnames.txt`. Its labels are line numbers, whatever the names are."""
    names = tuple(line.strip() for line in _text(folder / CLASSNAMES).splitlines())
    if not names:
        raise UsageError(f"{folder / CLASSNAMES} names no class; write one name a line")
    if not all(names):  # CLIP_benchmark would take it for a class
        raise UsageError(f"{folder / CLASSNAMES}: line {names.index('') + 1} is empty; take it out")
    return Vocabulary(names, tuple(map(str, range(len(names)))), ())


def _text(path: Path) -> str:
    try:
        return read_text(path)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from error


def _shards(folder: Path, split: str) -> str:
    """The shards of one part, as an image source: those that `nshards.txt` counts."""
    kind = folder / DATASET_TYPE
    if kind.is_file() and (found := _text(kind).strip()) != "classification":
        raise UsageError(f"{folder} is a data set for {found}; what can be evaluated is classification")
    if not os.path.isdir(folder / split):
        parts = sorted(path.parent.name for path in folder.glob("*/*.tar"))
        raise UsageError(f"{folder} has no part '{split}', only {', '.join(dict.fromkeys(parts)) or 'none'}")
    count = folder / split / "nshards.txt"
    if not count.is_file():
        return f"{folder / split}/*.tar"
    text = _text(count).strip()
    if not text.isdecimal() or int(text) == 0:
        raise UsageError(f"{count} is no number of shards: {text[:40]!r}")
    return f"{folder / split}/{{0..{int(text) - 1}}}.tar"


def _no_classes(images: str) -> UsageError:
    return UsageError(f"{images} brings no class names; name a vocabulary with --classes")


def check_layout(settings: DataSettings) -> None:
    """Refuse a local data set that is not there, or whose class names are not, without opening its images.

    Raises:
        UsageError: what is missing.
    """
    if is_remote(settings.images):
        return
    form = format_of(settings)
    if form == "cache":
        require_cache(settings.images)
        return
    if settings.classes is None and form not in ("coop", "clip-benchmark"):
        raise _no_classes(settings.images)
    require_classes(settings.classes, settings.templates)
    find_source(image_source_of(settings, form))
