"""Open a data set for evaluation: images with labels, classes, templates.

The layouts are in `dataset_layouts.py`, image sources in stage one.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from student_train.data.order import subset_classes
from student_train.evaluation.dataset_layouts import (
    find_format,
    image_source_of,
    vocabulary_of,
    with_templates,
)
from student_train.evaluation.settings import DataSettings
from teacher_cache.classes.vocabulary import Vocabulary
from teacher_cache.errors import UsageError, printable
from teacher_cache.images.index import index_images
from teacher_cache.images.sources import find_source
from teacher_cache.images.table import SampleTable
from teacher_cache.softlabels import TeacherCache, open_cache


@dataclass(frozen=True)
class Dataset:
    """A data set whose images are not read yet.

    Attributes:
        images: `images` of the settings.
        source: table of the images, or a cache with their features.
        vocabulary: all classes, with the templates of the settings or of the data set, if any.
        classes: ascending indices of the classes to choose among.
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
    """Find a data set and read its classes, labels and image locations.

    Raises:
        UsageError: no data set, another layout than requested, no class names, or labels that do not fit.
    """
    form = find_format(settings)
    if form == "cache":
        cache = open_cache(settings.images, settings.classes)
        return Dataset(
            settings.images,
            cache,
            with_templates(cache.vocabulary, settings, cache.vocabulary.templates),
            _chosen(cache.labels, len(cache.vocabulary), settings),
            settings.class_subset,
            [],
        )
    vocabulary = vocabulary_of(settings, form)
    source = image_source_of(settings, form)
    samples, notes = index_images(source, vocabulary, labels=settings.labels)
    notes = [*notes, *map(printable, vocabulary.notes)]
    classes = _chosen(samples.labels, len(vocabulary), settings)
    return Dataset(settings.images, samples, vocabulary, classes, settings.class_subset, notes)


def check_dataset(settings: DataSettings) -> None:
    """Check that a data set can be opened, without reading the list of its images.

    Raises:
        UsageError: see `open_dataset`.
    """
    form = find_format(settings)
    if form == "cache":
        open_cache(settings.images, settings.classes)
        return
    vocabulary_of(settings, form)
    find_source(image_source_of(settings, form))


def _chosen(labels: NDArray[np.int32], classes: int, settings: DataSettings) -> NDArray[np.int64]:
    if settings.class_subset != "present":
        return subset_classes(classes, settings.class_subset)
    present = np.unique(labels[labels >= 0]).astype(np.int64)
    if len(present) == 0:
        raise UsageError(f"no image of {settings.images} has a class of the vocabulary")
    return present
