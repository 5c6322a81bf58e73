"""Build a cache: create it or open an unfinished one, and compute the missing parts.

`compute/part.py` computes a part; `compute/cluster.py` hands parts to workers.
"""

import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from teacher_cache.classes.vocabulary import Vocabulary, load_vocabulary
from teacher_cache.command_settings import BuildSettings, ComputeSettings
from teacher_cache.compat.dynamo import require_compiler
from teacher_cache.compute.cluster import Work, compute_parts
from teacher_cache.compute.decoding import decoder_difference, difference_text
from teacher_cache.compute.workers import on_this_machine
from teacher_cache.conventions import ConventionOptions, recorded_conventions
from teacher_cache.distribution import rpp_version
from teacher_cache.errors import CacheDamagedError, CacheMismatchError, RppError, UsageError, printable
from teacher_cache.images.index import index_images
from teacher_cache.images.sources import absolute_source, find_source
from teacher_cache.images.table import SampleTable
from teacher_cache.model_names import canonical_model_name, canonical_pretrained, is_weights_file
from teacher_cache.pace import paces
from teacher_cache.pixels.device_decoders import require_device_decoder
from teacher_cache.preflight import require_bokeh, require_model
from teacher_cache.relabel import ensure_vocabulary
from teacher_cache.stopping import stoppable
from teacher_cache.store.cache_store import CacheStore
from teacher_cache.store.header import CacheHeader, part_rows
from teacher_cache.store.local_folder import disk_errors
from teacher_cache.store.presence import require_writable_place
from teacher_cache.store.vocabularies import vocabulary_digest
from teacher_cache.teacher.openclip import LoadedModel, load_model
from teacher_cache.teacher.registry import earlier_choice
from teacher_cache.teacher.teacher import Teacher, choose_device


@dataclass(frozen=True)
class BuildResult:
    """Result of a build.

    Attributes:
        pace: of the parts computed now: the fields of `Pace`, for each group of parts with equal resources.
    """

    path: str
    samples: int
    parts_total: int
    parts_computed: int
    skipped: int
    seconds: float
    notes: list[str] = field(default_factory=list)
    pace: list[dict[str, Any]] = field(default_factory=list)


def build_cache(settings: BuildSettings, on_note: Callable[[str], None] = lambda note: None) -> BuildResult:
    """Run the teacher over all parts that the cache at `settings.out` does not have yet.

    Args:
        on_note: called with each remark for the user.

    Raises:
        UsageError: settings that cannot be used, or that differ from those of the existing cache.
        RppError: the build stopped; what was committed stays and the next build continues.
    """
    started = time.monotonic()
    if settings.compile and settings.scheduler is None:
        require_compiler(choose_device(settings.device))
    if settings.decode_on_device and settings.scheduler is None:
        require_device_decoder(choose_device(settings.device))
    require_bokeh(settings)
    with stoppable():
        vocabulary, samples, notes = load_inputs(settings, on_note)
        loaded = load_requested(settings, on_note)
        teacher = Teacher(loaded, choose_device(settings.device), settings.precision)
        store = open_or_create(settings, teacher, vocabulary, samples)
        computed: list[int] = []
        # a finished cache may be shared and read-only
        if store.parts.missing() or store.folder.is_writable():
            with disk_errors(store.path), store.locked(settings.lock):
                store.repair_metadata()
                ensure_vocabulary(store, store.header.vocabulary, vocabulary, lambda: teacher)
                store.locate_images(samples, absolute_source(settings.images))
                computed = compute_missing(store, settings, teacher, on_note)
    return BuildResult(
        path=store.path,
        samples=len(samples),
        parts_total=store.header.parts,
        parts_computed=len(computed),
        skipped=len(store.parts.skipped()),
        seconds=time.monotonic() - started,
        notes=notes,
        pace=pace_of(store, computed),
    )


def is_built(settings: BuildSettings) -> bool:
    """Return whether the cache at `settings.out` is finished and no setting is known to differ.

    Loads no teacher. A teacher, images or class names that are not at their place are not compared: a
    finished cache does not need them. If the result is false, `build_cache` compares everything.
    """
    try:
        store = CacheStore.open(settings.out)
        header = store.header
        if store.parts.missing():
            return False
    except UsageError:  # there is no cache yet, or the build reports what is wrong with it
        return False
    policy = settings.view_policy.model_dump()
    if policy["views"] in header.passes:  # `rpp-cache extend` added the others
        policy["views"] = header.views
    try:
        requested = replace(
            header,
            part_size=part_rows(settings.part_size, header.samples),
            encoding=settings.encoding_for(header.classes).record,
            teacher=header.teacher | {"precision": settings.precision},
            view_policy=policy,
            max_pixels=settings.max_pixels,
            decoder=decoder_of(settings),
            pixels=settings.pixels,
        )
        header.require_equal(requested, settings.out)
    except CacheMismatchError:
        return False
    recorded = header.teacher["model"], header.teacher["pretrained"]
    named = canonical_model_name(settings.teacher), canonical_pretrained(settings.pretrained)
    with suppress(UsageError):
        require_model(settings.teacher, settings.pretrained)
        if named != recorded:
            return False
    with suppress(UsageError):
        vocabulary = load_vocabulary(
            settings.classes, settings.templates, settings.lemma, settings.duplicates
        )
        if vocabulary_digest(vocabulary) != header.vocabulary_digest:
            return False
    with suppress(RppError):
        if absolute_source(settings.images) != header.images and find_source(settings.images):
            return False
    return True


def compute_missing(
    store: CacheStore,
    settings: ComputeSettings,
    teacher: Teacher,
    on_note: Callable[[str], None] = lambda note: None,
) -> list[int]:
    """Compute and commit the parts of all passes that the cache does not have yet; return their numbers.

    Args:
        store: open for writing and locked.
        teacher: the cache's own.

    Raises:
        UsageError: no scheduler answers, or the cache cannot be written.
        RppError: the work stopped; what was committed stays and the next call continues.
    """
    if store.header.decoder != "pillow" and store.parts.missing():
        on_note(difference_text(store.header.decoder_difference))
    here = on_this_machine(settings) if settings.scheduler is None else settings
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


def pace_of(store: CacheStore, parts: list[int]) -> list[dict[str, Any]]:
    """Return the pace of committed parts, as `BuildResult` has it."""
    return [asdict(pace) for pace in paces(store.header, store.parts.records(parts))]


def load_inputs(
    settings: BuildSettings, on_note: Callable[[str], None]
) -> tuple[Vocabulary, SampleTable, list[str]]:
    """Return the vocabulary, the samples, and remarks for the user, which also go to `on_note`."""
    require_writable_place(settings.out)
    vocabulary = load_vocabulary(settings.classes, settings.templates, settings.lemma, settings.duplicates)
    known = _known_samples(settings.out)
    samples, notes = index_images(settings.images, vocabulary, known, settings.labels)
    notes = [*notes, *map(printable, vocabulary.remarks)]
    notes += settings.encoding_for(len(vocabulary)).notes(len(vocabulary))
    notes += settings.lowered(len(vocabulary))
    for note in notes:
        on_note(note)
    return vocabulary, samples, notes


def load_requested(settings: BuildSettings, on_note: Callable[[str], None]) -> LoadedModel:
    """Load the teacher that the settings name.

    A weights file keeps the conventions that an existing cache records, unless the settings state some.

    Raises:
        UsageError: as `load_model`.
    """
    given = ConventionOptions(**{name: getattr(settings, name) for name in ConventionOptions.model_fields})
    stored: dict[str, Any] = {}
    with suppress(CacheDamagedError):
        if given == ConventionOptions() and is_weights_file(settings.pretrained):
            stored = CacheStore.open(settings.out).header.teacher if CacheStore.exists(settings.out) else {}
    loaded = load_model(settings.teacher, settings.pretrained, "cpu", recorded_conventions(stored) or given)
    for note in (*loaded.notes, earlier_choice(stored, loaded.conventions) if stored else ""):
        if note:
            on_note(note)
    return loaded


def _known_samples(out: str) -> SampleTable | None:
    """Return the sample table of an existing cache, so that an unchanged source is not read again."""
    with suppress(CacheDamagedError):
        if CacheStore.exists(out):
            store = CacheStore.open(out)
            return store.samples if store.samples_are_intact() else None
    return None


def open_or_create(
    settings: BuildSettings, teacher: Teacher, vocabulary: Vocabulary, samples: SampleTable
) -> CacheStore:
    """Open the cache at `settings.out`, or create it without parts.

    Raises:
        CacheMismatchError: it was created with different settings.
        UsageError: it cannot be written, or is not a cache, or its images cannot be decoded as asked.
    """
    header = header_of(settings, teacher, vocabulary, samples)
    if CacheStore.exists(settings.out):
        store = CacheStore.open(settings.out, writable=True)
        store.header.require_equal(header, settings.out)
        return store
    if header.decoder != "pillow":
        header = replace(header, decoder_difference=decoder_difference(settings, header, samples, teacher))
    with disk_errors(settings.out):
        features_CD = teacher.class_features(vocabulary).numpy()
        return CacheStore.create(settings.out, header, samples, vocabulary, features_CD, settings.lock)


def header_of(
    settings: BuildSettings, teacher: Teacher, vocabulary: Vocabulary, samples: SampleTable
) -> CacheHeader:
    """Return the header of a cache with these settings.

    Raises:
        UsageError: a cache with these settings could not be opened.
    """
    header = CacheHeader(
        samples=len(samples),
        part_size=part_rows(settings.part_size, len(samples)),
        embedding=_embedding_width(teacher),
        classes=len(vocabulary),
        encoding=settings.encoding_for(len(vocabulary)).record,
        teacher=teacher.describe(),
        view_policy=settings.view_policy.model_dump(),
        vocabulary=Path(settings.classes).stem.lower(),
        vocabulary_digest=vocabulary_digest(vocabulary),
        sample_table_digest=samples.digest,
        images=absolute_source(settings.images),
        software=f"rpp {rpp_version()}",
        passes=[settings.view_policy.views],
        max_pixels=settings.max_pixels,
        decoder=decoder_of(settings),
        pixels=settings.pixels,
    )
    try:
        return CacheHeader.from_record(asdict(header))
    except ValueError as error:
        raise UsageError(f"cannot create a cache with these settings: {error}") from error


def decoder_of(settings: BuildSettings) -> Literal["pillow", "nvjpeg"]:
    """Return what decodes JPEG images, as a header records it."""
    return "nvjpeg" if settings.decode_on_device else "pillow"


def _embedding_width(teacher: Teacher) -> int:
    height, width = teacher.renderer.size
    return int(teacher.image_features(torch.zeros(1, 3, height, width, dtype=torch.uint8)).shape[1])
