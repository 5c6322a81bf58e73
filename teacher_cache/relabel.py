"""Add a vocabulary to a cache: only the teacher's text tower runs, over new names or new templates.

The cache must keep image features, which depends on its encoding.
"""

import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from teacher_cache.classes.templates import load_templates
from teacher_cache.classes.vocabulary import Vocabulary, load_vocabulary
from teacher_cache.command_settings import RelabelSettings
from teacher_cache.encodings import encoding_of
from teacher_cache.errors import UsageError, printable
from teacher_cache.store.cache_store import CacheStore
from teacher_cache.store.local_folder import disk_errors
from teacher_cache.store.vocabularies import vocabulary_digest
from teacher_cache.teacher.teacher import Teacher, recorded_teacher


@dataclass(frozen=True)
class RelabelResult:
    """Result of adding a vocabulary."""

    path: str
    name: str
    classes: int
    labelled_classes: int
    written: bool
    seconds: float
    notes: list[str] = field(default_factory=list)


def relabel_cache(path: str | os.PathLike[str], settings: RelabelSettings) -> RelabelResult:
    """Add a vocabulary to a cache; one that exists and is intact stays as it is.

    Raises:
        UsageError: the encoding keeps no image features, the name belongs to another vocabulary or is
            invalid, or the teacher is not the cache's.
    """
    started, path = time.monotonic(), os.fspath(path)
    if not re.fullmatch(r"\w[\w.-]*", settings.name):
        raise UsageError(f"invalid vocabulary name '{settings.name}': use letters, digits, '_', '-' and '.'")
    store = CacheStore.open(path, writable=True)
    encoding = encoding_of(store.header.encoding)
    if not encoding.keeps_image_features:
        raise UsageError(
            f"the encoding '{encoding.name}' of {path} keeps no image features, only logits of its own "
            "vocabulary: another vocabulary needs another build"
        )
    vocabulary = load_vocabulary(settings.classes, lemma=settings.lemma, duplicates=settings.duplicates)
    if settings.templates is None:
        templates = store.vocabulary().templates
    else:
        templates = load_templates(settings.templates)
    vocabulary = replace(vocabulary, templates=templates)

    def teacher() -> Teacher:
        return recorded_teacher(store.header.teacher, settings.teacher, settings.pretrained, settings.device)

    with disk_errors(path), store.locked(settings.lock):
        written = ensure_vocabulary(store, settings.name, vocabulary, teacher)
    known = store.vocabulary().classes_in(vocabulary)
    return RelabelResult(
        path=path,
        name=settings.name,
        classes=len(vocabulary),
        labelled_classes=int((known >= 0).sum()),
        written=written,
        seconds=time.monotonic() - started,
        notes=[printable(note) for note in vocabulary.remarks],
    )


def ensure_vocabulary(
    store: CacheStore, name: str, vocabulary: Vocabulary, teacher: Callable[[], Teacher]
) -> bool:
    """Compute and write a vocabulary's class features, unless they exist and are intact.

    Args:
        teacher: returns the teacher; called if they are computed.

    Returns:
        Whether they were written.

    Raises:
        UsageError: the name belongs to another vocabulary.
    """
    if not store.vocabulary_is_intact(name):  # absent, or damaged
        store.add_vocabulary(name, vocabulary, teacher().class_features(vocabulary).numpy())
        return True
    if vocabulary_digest(store.vocabulary(name)) != vocabulary_digest(vocabulary):
        raise UsageError(
            f"the cache {store.path} has another vocabulary '{name}' (other names, ids or templates); "
            "choose another --name"
        )
    return False
