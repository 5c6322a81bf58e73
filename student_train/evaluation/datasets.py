"""Data sets to evaluate on: a place and a layout -> images with labels, classes, templates.

How the field lays data sets out is in `dataset_layouts.py`; image sources themselves are stage one's.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from student_train.data.order import subset_classes
from student_train.evaluation.dataset_layouts import format_of, image_source_of, vocabulary_of, with_templates
from student_train.evaluation.settings import DataSettings
from teacher_cache.classes.vocabulary import Vocabulary
from teacher_cache.errors import UsageError
from teacher_cache.images import SampleTable, index_images
from teacher_cache.images.sources import find_source
from teacher_cache.softlabels import TeacherCache, open_cache


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
            with_templates(cache.vocabulary, settings, cache.vocabulary.templates),
            _chosen(cache.labels, len(cache.vocabulary), settings),
            settings.class_subset,
            [],
        )
    vocabulary = vocabulary_of(settings, form)
    samples, notes = index_images(image_source_of(settings, form), vocabulary)
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
    vocabulary_of(settings, form)
    find_source(image_source_of(settings, form))


def _chosen(labels: NDArray[np.int32], classes: int, settings: DataSettings) -> NDArray[np.int64]:
    if settings.class_subset != "present":
        return subset_classes(classes, settings.class_subset)
    present = np.unique(labels[labels >= 0]).astype(np.int64)
    if len(present) == 0:
        raise UsageError(f"no image of {settings.images} has a class of the vocabulary")
    return present
