"""The teacher's one pass: parts -> Dask workers -> store, going on where an earlier build stopped.

A task computes and commits one part by itself; the caller only hands out part numbers and counts. Batches
are cut within a part, so that the result does not depend on who computes what and when.
"""

import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.metadata import version
from itertools import pairwise
from os import cpu_count
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from dask.distributed import (
    Client,
    KilledWorker,
    LocalCluster,
    as_completed,
    get_worker,
)
from distributed.client import FutureCancelledError
from distributed.comm import CommClosedError
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from teacher_cache.encodings import ClassHead, encoding_of
from teacher_cache.errors import RppError, UsageError
from teacher_cache.images import (
    ImageReader,
    SampleTable,
    UnreadableImageError,
    decode_image,
    index_images,
)
from teacher_cache.openclip import LoadedModel, load_model
from teacher_cache.options import Place
from teacher_cache.progress import counting
from teacher_cache.relabel import ensure_vocabulary
from teacher_cache.store import (
    CacheHeader,
    CacheStore,
    PartRecord,
    disk_errors,
    part_rows,
    vocabulary_digest,
)
from teacher_cache.teacher import Precision, Teacher, choose_device
from teacher_cache.views import ViewPolicy, draw_crop, evaluation_crop
from teacher_cache.vocabulary import DEFAULT_TEMPLATE, Duplicates, Lemma, Vocabulary, load_vocabulary


class BuildSettings(BaseModel):
    """Settings of stage one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    images: str = Field(description="tar shards ('a/{00..99}.tar', 'a/*.tar') or an image folder")
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
    topk: int = Field(default=100, ge=1, description="classes a view that --encoding topk keeps")
    precision: Precision = Field(default="fp32", description="the teacher's autocast precision")
    device: str = Field(default="auto", description="auto, cpu, cuda or cuda:N")
    batch_size: int = Field(default=64, ge=1, description="views a forward pass")
    part_size: int = Field(
        default=8192, ge=1, description="samples a part, above 1024 in steps of 1024: what a kill can lose"
    )
    workers: int = Field(default=1, ge=1, description="local worker processes; 1 works in this process")
    threads: int = Field(
        default=min(16, cpu_count() or 1), ge=1, description="threads a worker that read and decode"
    )
    scheduler: str | None = Field(default=None, description="a running Dask scheduler, tcp://HOST:PORT")
    strict: bool = Field(default=False, description="stop at the first unreadable image")

    @property
    def encoding_record(self) -> dict[str, Any]:
        """The encoding with its options, as the header records it."""
        return {"name": self.encoding} | ({"k": self.topk} if self.encoding == "topk" else {})

    @property
    def images_place(self) -> str:
        """The image source, named so that it is found from anywhere."""
        return str(Path(self.images).expanduser().absolute())


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


@dataclass(frozen=True)
class PartTask:
    """All that a worker needs to compute any part."""

    path: str
    teacher: str
    pretrained: str | None
    settings: dict[str, Any]
    topic: str


def build_cache(settings: BuildSettings, on_note: Callable[[str], None] = lambda note: None) -> BuildResult:
    """Run the teacher over all parts that the cache at `settings.out` does not have yet.

    Args:
        on_note: called with each remark for the user as it comes up.

    Raises:
        UsageError: settings that cannot be followed, or that differ from what the cache was begun with.
        RppError: the build stopped; what was committed stays and the next build goes on.
    """
    started = time.monotonic()
    vocabulary = load_vocabulary(settings.classes, settings.templates, settings.lemma, settings.duplicates)
    samples, notes = index_images(settings.images, vocabulary)
    if vocabulary.duplicate_names:
        shared = sum(vocabulary.duplicate_names.values())
        notes.append(f"{shared} classes share their name with another and cannot be told apart by it")
    notes += encoding_of(settings.encoding_record).notes(len(vocabulary))
    for note in notes:
        on_note(note)
    loaded = load_model(settings.teacher, settings.pretrained)
    teacher = Teacher(loaded, choose_device(settings.device), settings.precision)
    store = _open_or_create(settings, teacher, vocabulary, samples)
    with store.locked():
        with disk_errors(store.path):
            store.mend_metadata()
            ensure_vocabulary(store, store.header.vocabulary, vocabulary, teacher)
            store.locate_images(samples, settings.images_place)
        missing = store.missing()
        task = PartTask(
            path=store.folder.absolute,
            teacher=loaded.name,
            pretrained=loaded.pretrained,
            settings=settings.model_dump(mode="json"),
            topic=f"rpp-{uuid.uuid4().hex}",
        )
        if missing:
            with disk_errors(store.path):
                _compute(task, store.header, missing, settings, teacher)
        skipped = len(store.skipped())
    return BuildResult(
        path=store.path,
        samples=len(samples),
        parts_total=store.header.parts,
        parts_computed=len(missing),
        skipped=skipped,
        seconds=time.monotonic() - started,
        notes=notes,
    )


def _open_or_create(
    settings: BuildSettings, teacher: Teacher, vocabulary: Vocabulary, samples: SampleTable
) -> CacheStore:
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
        images=settings.images_place,
        software=f"rpp {version('rpp')}",
        passes=[settings.view_policy.views],
    )
    if CacheStore.exists(settings.out):
        store = CacheStore.open(settings.out, writable=True)
        store.header.require_equal(header, settings.out)
        return store
    with disk_errors(settings.out):
        features_CD = teacher.class_features(vocabulary).numpy()
        return CacheStore.create(settings.out, header, samples, vocabulary, features_CD)


def _embedding_width(teacher: Teacher) -> int:
    height, width = teacher.renderer.size
    return int(teacher.image_features(torch.zeros(1, 3, height, width, dtype=torch.uint8)).shape[1])


def _compute(
    task: PartTask, header: CacheHeader, missing: list[int], settings: BuildSettings, teacher: Teacher
) -> None:
    rows = sum(header.rows(part).stop - header.rows(part).start for part in missing)
    done = header.samples - rows
    with _client(settings) as client, counting("samples", header.samples) as counter:
        counter.start_at(done)
        client.subscribe_topic(task.topic, lambda event: counter(event[1]))
        if settings.scheduler is None and settings.workers == 1:
            _in_process[task.topic] = (teacher, threading.Event())
        futures = [
            client.submit(
                compute_part, task, part, pure=False, priority=-position, key=f"{task.topic}-{part}"
            )
            for position, part in enumerate(missing)
        ]
        try:
            for future in as_completed(futures):
                future.result()
        except (KilledWorker, CommClosedError, FutureCancelledError) as error:
            raise RppError(
                f"Dask lost its workers or the scheduler ({error}); what is committed is safe: run the same "
                "command again"
            ) from error
        except KeyboardInterrupt as error:
            raise RppError(
                "stopped; what is committed is safe: run the same command again to go on"
            ) from error
        finally:
            if task.topic in _in_process:
                _in_process.pop(task.topic)[1].set()
            client.cancel(futures)
            client.unsubscribe_topic(task.topic)


@contextmanager
def _client(settings: BuildSettings) -> Iterator[Client]:
    logging.getLogger("distributed").setLevel(logging.ERROR)
    # a task's error reaches the user once, through its future
    logging.getLogger("distributed.worker").setLevel(logging.CRITICAL)
    if settings.scheduler:
        try:
            client = Client(settings.scheduler)  # waits as Dask is configured
        except (OSError, TimeoutError, ValueError) as error:
            raise UsageError(f"no Dask scheduler answers at {settings.scheduler}: {error}") from error
        with client:
            yield client
        return
    in_process = settings.workers == 1
    with (
        LocalCluster(
            n_workers=settings.workers,
            threads_per_worker=1,
            processes=not in_process,
            # None would still take port 8787, and warn where another cluster has it
            dashboard_address="127.0.0.1:0",
            scheduler_kwargs={"dashboard": False},
            memory_limit=0,
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


# The worker of this process, if there is one: the model it shares with the caller, and the sign to stop
# between two batches (a thread cannot be killed).
_in_process: dict[str, tuple[Teacher, threading.Event]] = {}


@lru_cache(maxsize=1)
def _load_on_worker(name: str, pretrained: str | None) -> LoadedModel:
    return load_model(name, pretrained)


_loading = threading.Lock()


def _worker_teacher(task: PartTask, settings: BuildSettings, header: CacheHeader) -> Teacher:
    if task.topic in _in_process:
        return _in_process[task.topic][0]
    with _loading:
        loaded = _load_on_worker(task.teacher, task.pretrained)
    if loaded.digest != header.teacher["weights_digest"]:
        raise RppError(
            f"worker {get_worker().address} loads other weights for {task.teacher} ({loaded.digest}) than "
            f"the cache was begun with ({header.teacher['weights_digest']})"
        )
    device = choose_device(settings.device)
    name = str(get_worker().name)
    if device == torch.device("cuda") and name.isdecimal():  # one device a local worker
        device = torch.device("cuda", int(name) % torch.cuda.device_count())
    return Teacher(loaded, device, settings.precision)


def compute_part(task: PartTask, part: int) -> PartRecord:
    """Worker side: read, decode, forward and commit one part."""
    settings = BuildSettings(**task.settings)
    store = CacheStore.open(task.path, writable=True)
    teacher = _worker_teacher(task, settings, store.header)
    stop = _in_process[task.topic][1] if task.topic in _in_process else threading.Event()

    def counted(samples: int) -> None:
        get_worker().log_event(task.topic, samples)
        if stop.is_set():
            raise RppError("stopped")

    head = ClassHead(torch.from_numpy(store.class_features()), float(store.header.teacher["logit_scale"]))
    arrays, seconds, skipped = part_arrays(
        store.header, store.samples, teacher, head.to(teacher.device), settings, part, counted
    )
    return store.commit(part, arrays, seconds, skipped)


def part_arrays(
    header: CacheHeader,
    samples: SampleTable,
    teacher: Teacher,
    head: ClassHead,
    settings: BuildSettings,
    part: int,
    on_batch: Callable[[int], None] = lambda samples: None,
) -> tuple[dict[str, NDArray[Any]], dict[str, float], list[dict[str, Any]]]:
    """All arrays of one part, the seconds spent by stage, and the samples that could not be read.

    `read` and `decode` are summed over threads, `forward` is the teacher's own time.
    """
    rows, views = header.rows(part), header.views_of(part)
    count, encoding = rows.stop - rows.start, encoding_of(header.encoding)
    arrays: dict[str, NDArray[Any]] = {
        name: np.full((count, len(views), *(size for _, size in spec.axes)), spec.fill, dtype=spec.dtype)
        for name, spec in header.per_view.items()
    }
    arrays |= {"valid": np.zeros(count, dtype=np.bool_), "labels": samples.labels[rows]}
    locations, keys = samples.locations(rows), samples.keys(rows)
    reader, policy = ImageReader(), settings.view_policy
    seconds = {"read": 0.0, "decode": 0.0, "forward": 0.0}
    skipped: list[dict[str, Any]] = []
    height, width = teacher.renderer.size

    def pixels(position: int) -> NDArray[np.uint8] | UnreadableImageError:
        t0 = time.perf_counter()
        try:
            content = reader.read(*locations[position])
            t1 = time.perf_counter()
            image = decode_image(content)
        except UnreadableImageError as error:
            return error
        shown = np.empty((len(views), 3, height, width), dtype=np.uint8)
        for number, view in enumerate(views):
            crop = (
                evaluation_crop(teacher.renderer.preprocess, *image.size)
                if view == 0
                else draw_crop(policy, rows.start + position, view, *image.size)
            )
            arrays["crops"][position, number] = crop
            shown[number] = teacher.renderer.render(image, view, crop)
        seconds["read"] += t1 - t0
        seconds["decode"] += time.perf_counter() - t1
        return shown

    per_batch = settings.batch_size  # images; a forward pass takes one view of each
    bounds = [*range(0, count, per_batch), count]
    with ThreadPoolExecutor(settings.threads) as pool:
        ahead = [pool.map(pixels, range(*span)) for span in list(pairwise(bounds))[:2]]
        spans = list(pairwise(bounds))
        for number, (first, last) in enumerate(spans):
            decoded = list(ahead.pop(0))
            if number + 2 < len(spans):
                ahead.append(pool.map(pixels, range(*spans[number + 2])))
            good = [p for p, found in enumerate(decoded, first) if isinstance(found, np.ndarray)]
            for position, found in enumerate(decoded, first):
                if isinstance(found, UnreadableImageError):
                    if settings.strict:
                        raise RppError(f"{keys[position]} ({locations[position][0]}): {found}")
                    skipped.append(
                        {"row": rows.start + position, "key": keys[position], "reason": str(found)}
                    )
            if good:
                started = time.perf_counter()
                # View by view: a view's batches, and with them its last bits, do not depend on how many
                # views its pass has.
                for at in range(len(views)):
                    batch = torch.from_numpy(np.stack([decoded[p - first][at] for p in good]))
                    for name, values in encoding.encode(teacher.image_features(batch), head).items():
                        arrays[name][good, at] = values
                arrays["valid"][good] = True
                seconds["forward"] += time.perf_counter() - started
            on_batch(last - first)
    if len(skipped) == count and count > 1:
        raise RppError(
            f"none of the {count} images of part {part} could be read (first: {skipped[0]['key']}: "
            f"{skipped[0]['reason']}): that is no damage of single images; the part was not committed"
        )
    written = header.arrays_of(part)
    return {name: values for name, values in arrays.items() if name in written}, seconds, skipped
