"""Data sets to evaluate on: a place and a format -> images with labels, classes, templates.

Knows how the field lays data sets out; image sources themselves are stage one's.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from student_train.order import ClassSubset, subset_classes
from teacher_cache.errors import UsageError
from teacher_cache.images import SampleTable, index_images
from teacher_cache.images.sources import find_source
from teacher_cache.softlabels import TeacherCache, open_cache
from teacher_cache.text_file import read_text
from teacher_cache.vocabulary import Duplicates, Lemma, Vocabulary, load_templates, load_vocabulary

Format = Literal["auto", "folder", "tars", "parquet", "list", "coop", "clip-benchmark", "cache"]

CLASSNAMES, TEMPLATES, DATASET_TYPE = (
    "classnames.txt",
    "zeroshot_classification_templates.txt",
    "dataset_type.txt",
)


class DataOptions(BaseModel):
    """As which classes images are looked at."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Format = Field(default="auto", description="how the data set is laid out")
    split: str = Field(default="test", description="which part, of CoOp's and CLIP_benchmark's layouts")
    classes: str | None = Field(
        default=None, description="vocabulary: a known name or a file [default: the data set's own]"
    )
    templates: str | None = Field(
        default=None,
        description="a text with {}, a file, imagenet or imagenet-simple [default: the data set's]",
    )
    lemma: Lemma = Field(default="first", description="which of a synset's names to use")
    duplicates: Duplicates = Field(default="lemma", description="what to do with names that occur twice")
    class_subset: ClassSubset | Literal["present"] = Field(
        default="all", description="choose among all, base (first half), new or present (with images) classes"
    )


class DataSettings(DataOptions):
    """Which images are looked at, and as which classes."""

    images: str = Field(
        description="an image source, CoOp's split_zhou_*.json, CLIP_benchmark's folder, or a cache"
    )


@dataclass(frozen=True)
class Dataset:
    """A data set that is found and read, up to its images.

    Attributes:
        images: what was asked for.
        source: the images' table, or a cache whose features stand for them.
        vocabulary: its classes; their templates are those that the data set brings, none if it brings none.
        classes: ascending indices of those to choose among.
        class_subset: how these were chosen.
        notes: remarks for the user.
    """

    images: str
    source: SampleTable | TeacherCache
    vocabulary: Vocabulary
    classes: NDArray[np.int64]
    class_subset: str
    notes: list[str]

    @property
    def labels(self) -> NDArray[np.int32]:
        """Class of each image in the vocabulary, [N] int32; -1 = none."""
        return self.source.labels


def open_dataset(settings: DataSettings) -> Dataset:
    """Find a data set and read its classes, labels and the places of its images.

    Raises:
        UsageError: nothing there, another format than was said, no classes named, or labels that do not fit.
    """
    form = format_of(settings)
    if form == "cache":
        cache = open_cache(settings.images, settings.classes)
        return Dataset(
            settings.images,
            cache,
            _with_templates(cache.vocabulary, settings, cache.vocabulary.templates),
            _chosen(cache.labels, len(cache.vocabulary), settings),
            settings.class_subset,
            [],
        )
    vocabulary = _vocabulary(settings, form)
    samples, notes = index_images(_image_source(settings, form), vocabulary)
    classes = _chosen(samples.labels, len(vocabulary), settings)
    return Dataset(settings.images, samples, vocabulary, classes, settings.class_subset, notes)


def check_dataset(settings: DataSettings) -> None:
    """Refuse a data set that is not there, without reading its images.

    Raises:
        UsageError: as `open_dataset`, but for what only the images show.
    """
    form = format_of(settings)
    if form == "cache":
        open_cache(settings.images, settings.classes)
        return
    _vocabulary(settings, form)
    find_source(_image_source(settings, form))


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


def _vocabulary(settings: DataSettings, form: Format) -> Vocabulary:
    """The classes, with the templates that the settings name or the data set brings."""
    folder = Path(settings.images)
    own: tuple[str, ...] = ()
    if form == "clip-benchmark":
        own = load_templates(str(folder / TEMPLATES)) if (folder / TEMPLATES).is_file() else ()
        if settings.classes is None:
            return _with_templates(_own_classes(folder), settings, own)
    classes = settings.classes or (settings.images.partition("#")[0] if form == "coop" else None)
    if classes is None:
        raise UsageError(f"{settings.images} brings no class names; name a vocabulary with --classes")
    names = load_vocabulary(classes, lemma=settings.lemma, duplicates=settings.duplicates)
    return _with_templates(names, settings, own)


def _with_templates(vocabulary: Vocabulary, settings: DataSettings, own: tuple[str, ...]) -> Vocabulary:
    templates = own if settings.templates is None else load_templates(settings.templates)
    return Vocabulary(vocabulary.names, vocabulary.ids, templates)


def _image_source(settings: DataSettings, form: Format) -> str:
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


def _chosen(labels: NDArray[np.int32], classes: int, settings: DataSettings) -> NDArray[np.int64]:
    if settings.class_subset != "present":
        return subset_classes(classes, settings.class_subset)
    present = np.unique(labels[labels >= 0]).astype(np.int64)
    if len(present) == 0:
        raise UsageError(f"no image of {settings.images} has a class of the vocabulary")
    return present
