"""Parts computed by Dask workers: handed out, counted, and what a worker does with one.

A worker opens the cache and the teacher once. It computes one part at a time, and commits it by itself while
it computes the next; the caller hands out part numbers and counts. A worker that dies loses what it was
computing, and another one redoes it.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from typing import Any

import numpy as np
import torch
from dask.distributed import Client, KilledWorker, get_worker, secede, wait
from numpy.typing import NDArray

from teacher_cache.command_settings import ComputeSettings, Precision
from teacher_cache.compat.distributed import is_wanted, threads_of_worker
from teacher_cache.compute.part import part_arrays
from teacher_cache.compute.workers import (
    MOST_DECODING_THREADS,
    cuda_devices,
    dask_client,
    local_workers,
    scheduler_needed,
)
from teacher_cache.cores import usable_cores
from teacher_cache.encodings import ClassHead
from teacher_cache.errors import RppError
from teacher_cache.progress import Counter, counting
from teacher_cache.stopping import stoppable
from teacher_cache.store import CacheStore
from teacher_cache.teacher.openclip import load_model
from teacher_cache.teacher.teacher import Teacher, choose_device

PARTS_AHEAD = 2  # parts that a worker holds: one to compute, one to go on with
LOOK_EVERY_SECONDS = 2.0  # how often lost and new workers are looked for
MOST_SET_BACK_SECONDS = 10.0  # Dask sends at times of day
REPORT_EVERY_SECONDS = 0.5  # how often a worker says how far it is


@dataclass(frozen=True)
class Work:
    """All that a worker needs to compute any part. `name` is unlike that of any other build."""

    name: str
    path: str
    teacher: str
    pretrained: str | None
    precision: Precision
    settings: ComputeSettings


def compute_parts(work: Work, store: CacheStore, teacher: Teacher, on_note: Callable[[str], None]) -> int:
    """Compute and commit all parts that the cache does not have yet; returns how many those were.

    Args:
        teacher: used where the work is done in this process.

    Raises:
        UsageError: no scheduler answers.
        RppError: stopped, or a part that cannot be computed. What is committed stays.
    """
    header, missing = store.header, store.parts.missing()
    if not missing:
        return 0
    sizes = {part: header.rows(part).stop - header.rows(part).start for part in range(header.parts)}
    clock = Clock()
    # a later pass reads what the first one found readable
    passes = [list(parts) for _, parts in groupby(missing, lambda part: part < header.parts_per_pass)]
    with (
        stoppable(),
        dask_client(work.settings) as client,
        counting("samples", sum(sizes.values())) as counter,
    ):
        progress = PartProgress(counter, sizes, missing)
        client.subscribe_topic(work.name, lambda event: progress.report(*event[1]))
        in_process = work.settings.scheduler is None and local_workers(work.settings) == 1
        threads = torch.get_num_threads()
        try:
            if in_process:
                _teachers[work.name] = teacher
            for parts in passes:
                _hand_out(client, work, parts, progress, clock, on_note)
        finally:
            if in_process:
                del _teachers[work.name]
                _opened.cache_clear()
                torch.set_num_threads(threads)
            client.unsubscribe_topic(work.name)
    return len(missing)


@scheduler_needed("what is committed is safe")
def _hand_out(
    client: Client,
    work: Work,
    parts: list[int],
    progress: "PartProgress",
    clock: "Clock",
    on_note: Callable[[str], None],
) -> None:
    """Give every worker `PARTS_AHEAD` parts and no more: a worker that comes later finds parts left, and Dask
    blames a worker's death on all that it holds. What Dask gives up after several deaths is tried once more
    at the end, alone: of two parts on one worker one may be innocent."""
    waiting, suspects, running = deque(parts), deque[int](), dict[Any, int]()
    suspected, deadly = set[int](), dict[int, KilledWorker]()
    lonely = False
    try:
        while waiting or suspects or running:
            clock.look()
            workers = client.nthreads()
            progress.take_back_all_but(set(workers))
            if not workers and not lonely:
                on_note("no Dask worker is there; waiting for one")
            lonely = not workers
            room = PARTS_AHEAD * max(1, len(workers)) - len(running)
            chosen = [waiting.popleft() for _ in range(min(room, len(waiting)))]
            if suspects and not (chosen or running):
                chosen = [suspects.popleft()]
            for part in chosen:
                key = f"{work.name}-{part}{'-alone' * (part in suspected)}"
                future = client.submit(compute_part, work, part, key=key, pure=False, priority=-part)
                running[future] = part
            try:
                done = wait(list(running), timeout=LOOK_EVERY_SECONDS, return_when="FIRST_COMPLETED").done
            except TimeoutError:
                continue
            for future in done:
                part = running.pop(future)
                error = future.exception()
                if error is None:
                    progress.finished(part)
                elif not isinstance(error, KilledWorker):
                    raise error
                elif part in suspected:
                    deadly[part] = error
                else:
                    suspects.append(part)
                    suspected.add(part)
    finally:
        client.cancel(list(running))
    if deadly:
        part, killed = next(iter(deadly.items()))
        deaths = 2 * (killed.allowed_failures + 1)
        others = f" (so did parts {', '.join(map(str, [*deadly][1:]))})" if len(deadly) > 1 else ""
        raise RppError(
            f"part {part} cannot be computed: it was begun {deaths} times and its worker died each time, the "
            f"last at {killed.last_worker.address}{others}. The workers' logs say why, or the system's where "
            "memory ran out; all other parts are committed: run the same command again for these"
        )


class Clock:
    """Ends a build whose clock is set back: Dask sends at times of day, and would stand still until it is as
    late again as it was."""

    def __init__(self) -> None:
        self._ahead = time.time() - time.monotonic()

    def look(self) -> None:
        """Go on if it was not set back since the last look.

        Raises:
            RppError: it was.
        """
        ahead = time.time() - time.monotonic()
        if (behind := self._ahead - ahead) > MOST_SET_BACK_SECONDS:
            raise RppError(
                f"the clock was set back by {behind:.0f} s, and Dask would stand still for as long; what is "
                "committed is safe: run the same command again"
            )
        self._ahead = ahead


class PartProgress:
    """Counts samples that are done, and takes back those that were lost with their worker."""

    def __init__(self, counter: Counter, sizes: dict[int, int], missing: list[int]) -> None:
        self._counter, self._sizes = counter, sizes
        self._begun: dict[int, tuple[str, int]] = {}  # part -> worker, samples
        self._lock = threading.Lock()  # reports come on Dask's thread
        self._todo = set(missing)
        self._done = sum(size for part, size in sizes.items() if part not in self._todo)
        counter.start_at(self._done)

    def report(self, part: int, worker: str, samples: int) -> None:
        """A worker has so many samples of a part."""
        with self._lock:
            if part in self._todo:
                self._begun[part] = (worker, samples)
                self._show()

    def finished(self, part: int) -> None:
        """A part is committed."""
        with self._lock:
            self._todo.discard(part)
            self._begun.pop(part, None)
            self._done += self._sizes[part]
            self._show()

    def take_back_all_but(self, workers: set[str]) -> None:
        """Only these workers are there: what others had begun is lost."""
        with self._lock:
            lost = [part for part, (worker, _) in self._begun.items() if worker not in workers]
            for part in lost:
                del self._begun[part]
            if lost:
                self._show()

    def _show(self) -> None:
        done = self._done + sum(samples for _, samples in self._begun.values())
        parts = f"{len(self._sizes) - len(self._todo)}/{len(self._sizes)}"
        if done != self._counter.done or parts != self._counter.fields.get("parts"):
            self._counter.reach(done, parts=parts)


@dataclass(frozen=True)
class Opened:
    """What a worker keeps from part to part."""

    store: CacheStore
    teacher: Teacher
    head: ClassHead


_teachers: dict[str, Teacher] = {}  # of builds whose worker is this process: the caller's own teacher
_opening = threading.Lock()
_computing = threading.Lock()  # a Dask worker may have several threads; the device is one


@lru_cache(maxsize=2)
def _opened(work: Work) -> Opened:
    store = CacheStore.open(work.path, writable=True)
    teacher = _teachers.get(work.name) or _load_teacher(work, store)
    head = ClassHead(torch.from_numpy(store.class_features()), float(store.header.teacher["logit_scale"]))
    return Opened(store, teacher, head.to(teacher.device))


def _load_teacher(work: Work, store: CacheStore) -> Teacher:
    loaded = load_model(work.teacher, work.pretrained)
    expected = store.header.teacher["weights_digest"]
    if loaded.digest != expected:
        raise RppError(
            f"worker {get_worker().address} loads other weights for {work.teacher} ({loaded.digest}) than "
            f"the cache was begun with ({expected})"
        )
    device = choose_device(work.settings.device)
    devices = cuda_devices(work.settings)
    if devices > 1:  # our own local cluster, which numbers its workers
        device = torch.device("cuda", int(get_worker().name) % devices)
    return Teacher(loaded, device, work.precision)


def _readable(store: CacheStore, part: int) -> NDArray[np.bool_] | None:
    """Which rows of a part of a later pass the first pass could read."""
    number, first = divmod(part, store.header.parts_per_pass)
    return store.parts.sample_arrays(range(first, first + 1))["valid"] if number else None


def compute_part(work: Work, part: int) -> None:
    """Compute and commit one part, as a Dask task."""
    worker, settings = get_worker(), work.settings
    key = worker.get_current_task()
    with _opening:
        opened = _opened(work)
    store, header = opened.store, opened.store.header
    if part in store.parts.committed():  # by a worker that died before it could say so
        return
    last_report = 0.0

    def on_batch(samples: int) -> None:
        nonlocal last_report
        if not is_wanted(worker, key):
            raise RppError("stopped")  # a thread cannot be killed: the caller is gone or wants no more
        if time.monotonic() - last_report > REPORT_EVERY_SECONDS:
            worker.log_event(work.name, (part, worker.address, samples))
            last_report = time.monotonic()

    rows = header.rows(part)
    with _computing:
        on_batch(0)
        # by thread, and a task may come on any
        torch.set_num_threads(settings.torch_threads or threads_of_worker())
        try:
            computed = part_arrays(
                header,
                part,
                store.samples.part(rows),
                opened.teacher,
                opened.head,
                batch_size=settings.batch_size,
                threads=settings.threads or min(MOST_DECODING_THREADS, usable_cores()),
                strict=settings.strict,
                readable=_readable(store, part),
                on_batch=on_batch,
            )
        except torch.OutOfMemoryError as error:
            raise RppError(
                f"{opened.teacher.device} of {worker.address} has no room for {settings.batch_size} images "
                "at once: choose a smaller --batch-size; what is committed is safe"
            ) from error
    secede()  # the next part begins while this one is written
    store.parts.commit(part, computed.arrays, computed.seconds, computed.skipped)
