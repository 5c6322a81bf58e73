"""Stage one as a whole: its settings, the cache it makes or goes on with, and the parts that are missing.

How a part is computed is in `part.py`, by whom in `cluster.py`.
"""

import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, model_validator

from teacher_cache.cluster import Work, compute_parts
from teacher_cache.distribution import rpp_version
from teacher_cache.encodings import encoding_of
from teacher_cache.errors import CacheDamagedError, UsageError
from teacher_cache.images import SampleTable, absolute_source, index_images
from teacher_cache.images.decode import MAX_PIXELS, MOST_PIXELS
from teacher_cache.openclip import load_model
from teacher_cache.options import Place
from teacher_cache.relabel import ensure_vocabulary
from teacher_cache.stopping import stoppable
from teacher_cache.store import CacheHeader, CacheStore, disk_errors, part_rows, vocabulary_digest
from teacher_cache.teacher import Precision, Teacher, choose_device
from teacher_cache.views import ViewPolicy
from teacher_cache.vocabulary import DEFAULT_TEMPLATE, Duplicates, Lemma, Vocabulary, load_vocabulary
from teacher_cache.workers import ComputeSettings


class BuildSettings(ComputeSettings):
    """Settings of stage one."""

    images: str = Field(
        description="tar shards ('a/{00..99}.tar'), Parquet files or an image folder; a path or a URL"
    )
    classes: str = Field(description="vocabulary: imagenet-21k and its kin, or a .txt, .csv or .json file")
    out: Place = Field(description="the cache to write or to go on with")
    teacher: str = Field(description="open_clip model name, or a folder with open_clip_config.json")
    pretrained: str | None = Field(default=None, description="pretrained tag or weights file")
    templates: str = Field(
        default=DEFAULT_TEMPLATE, description="one text with {}, a file of them, imagenet or imagenet-simple"
    )
    lemma: Lemma = Field(default="first", description="which of a synset's names to use")
    duplicates: Duplicates = Field(default="lemma", description="what to do with names that occur twice")
    view_policy: ViewPolicy = ViewPolicy()
    encoding: Literal["factored", "factored-int8", "topk", "dense"] = Field(
        default="factored", description="how logits are stored; docs/format.md says what each loses"
    )
    topk: int | None = Field(
        default=None, ge=1, description="classes a view that --encoding topk keeps [default: 100]"
    )
    max_pixels: int = Field(
        default=MAX_PIXELS,
        ge=1,
        le=MOST_PIXELS,
        description="an image of more pixels is unreadable and never decoded",
    )
    precision: Precision = Field(default="fp32", description="the teacher's autocast precision")
    part_size: int = Field(
        default=8192, ge=1, description="samples a part, above 1024 in steps of 1024: what a kill can lose"
    )

    @property
    def encoding_record(self) -> dict[str, Any]:
        """The encoding with its options, as the header records it."""
        return {"name": self.encoding} | ({"k": self.topk or 100} if self.encoding == "topk" else {})

    @model_validator(mode="after")
    def _topk_of_topk(self) -> "BuildSettings":
        if self.topk is not None and self.encoding != "topk":
            raise UsageError(f"--topk {self.topk} belongs to --encoding topk, not to {self.encoding}")
        return self


@dataclass(frozen=True)
class BuildResult:
    """What a build did."""

    path: str
    samples: int
    parts_total: int
    parts_computed: int
    skipped: int
    seconds: float
    notes: list[str] = field(default_factory=list)


def build_cache(settings: BuildSettings, on_note: Callable[[str], None] = lambda note: None) -> BuildResult:
    """Run the teacher over all parts that the cache at `settings.out` does not have yet.

    Args:
        on_note: called with each remark for the user as it comes up.

    Raises:
        UsageError: settings that cannot be followed, or that differ from what the cache was begun with.
        RppError: the build stopped; what was committed stays and the next build goes on.
    """
    started = time.monotonic()
    with stoppable():
        vocabulary, samples, notes = load_inputs(settings, on_note)
        loaded = load_model(settings.teacher, settings.pretrained)
        teacher = Teacher(loaded, choose_device(settings.device), settings.precision)
        store = open_or_create(settings, teacher, vocabulary, samples)
        computed = 0
        # a finished cache may be another's, shared for reading alone
        if store.missing() or store.folder.is_writable():
            with disk_errors(store.path), store.locked():
                store.mend_metadata()
                ensure_vocabulary(store, store.header.vocabulary, vocabulary, teacher)
                store.locate_images(samples, absolute_source(settings.images))
                computed = compute_missing(store, settings, teacher, on_note)
    return BuildResult(
        path=store.path,
        samples=len(samples),
        parts_total=store.header.parts,
        parts_computed=computed,
        skipped=len(store.skipped()),
        seconds=time.monotonic() - started,
        notes=notes,
    )


def compute_missing(
    store: CacheStore,
    settings: ComputeSettings,
    teacher: Teacher,
    on_note: Callable[[str], None] = lambda note: None,
) -> int:
    """Compute and commit the parts that the cache does not have yet, of whatever pass; returns their number.

    Args:
        store: open for writing and locked.
        teacher: the one that the cache was begun with.

    Raises:
        UsageError: no scheduler answers, or the cache cannot be written.
        RppError: the work stopped; what was committed stays and the next call goes on.
    """
    here = settings.on_this_machine() if settings.scheduler is None else settings
    work = Work(
        name=f"rpp-{uuid.uuid4().hex}",
        path=store.folder.absolute,
        teacher=teacher.loaded.name,
        pretrained=teacher.loaded.pretrained,
        precision=teacher.precision,
        settings=ComputeSettings(**{name: getattr(here, name) for name in ComputeSettings.model_fields}),
    )
    with disk_errors(store.path):
        return compute_parts(work, store, teacher, on_note)


def load_inputs(
    settings: BuildSettings, on_note: Callable[[str], None]
) -> tuple[Vocabulary, SampleTable, list[str]]:
    """The vocabulary, the samples, and what there is to remark about them, as it was told to `on_note`."""
    vocabulary = load_vocabulary(settings.classes, settings.templates, settings.lemma, settings.duplicates)
    samples, notes = index_images(settings.images, vocabulary, _known_samples(settings.out))
    notes = list(notes)
    if vocabulary.duplicate_names:
        shared = sum(vocabulary.duplicate_names.values())
        notes.append(f"{shared} classes share their name with another and cannot be told apart by it")
    notes += encoding_of(settings.encoding_record).notes(len(vocabulary))
    for note in notes:
        on_note(note)
    return vocabulary, samples, notes


def _known_samples(out: str) -> SampleTable | None:
    """The sample table of a cache that was begun there: a source that did not change is not read again."""
    with suppress(CacheDamagedError):
        if CacheStore.exists(out):
            store = CacheStore.open(out)
            return store.samples if store.samples_are_sound() else None
    return None


def open_or_create(
    settings: BuildSettings, teacher: Teacher, vocabulary: Vocabulary, samples: SampleTable
) -> CacheStore:
    """The cache at `settings.out`: the one that was begun there, or a new one without parts.

    Raises:
        CacheMismatchError: it was begun with something else, naming both.
        UsageError: it cannot be written, or is no cache.
    """
    header = header_of(settings, teacher, vocabulary, samples)
    if CacheStore.exists(settings.out):
        store = CacheStore.open(settings.out, writable=True)
        store.header.require_equal(header, settings.out)
        return store
    with disk_errors(settings.out):
        features_CD = teacher.class_features(vocabulary).numpy()
        return CacheStore.create(settings.out, header, samples, vocabulary, features_CD)


def header_of(
    settings: BuildSettings, teacher: Teacher, vocabulary: Vocabulary, samples: SampleTable
) -> CacheHeader:
    """The header of the cache that these settings ask for."""
    header = CacheHeader(
        samples=len(samples),
        part_size=part_rows(settings.part_size, len(samples)),
        embedding=_embedding_width(teacher),
        classes=len(vocabulary),
        encoding=settings.encoding_record,
        teacher=teacher.describe(),
        view_policy=settings.view_policy.model_dump(),
        vocabulary=Path(settings.classes).stem.lower(),
        vocabulary_digest=vocabulary_digest(vocabulary),
        sample_table_digest=samples.digest,
        images=absolute_source(settings.images),
        software=f"rpp {rpp_version()}",
        passes=[settings.view_policy.views],
        max_pixels=settings.max_pixels,
    )
    try:
        return CacheHeader.from_record(asdict(header))
    except ValueError as error:  # nobody could open it
        raise UsageError(f"no cache can be so: {error}") from error


def _embedding_width(teacher: Teacher) -> int:
    height, width = teacher.renderer.size
    return int(teacher.image_features(torch.zeros(1, 3, height, width, dtype=torch.uint8)).shape[1])
