"""Compute parts on Dask workers: hand them out, count them, and the task that a worker runs.

A worker opens the cache and the teacher once. It computes one part at a time, and commits it while it
computes the next. The caller hands out part numbers and counts. If a worker dies, its unfinished parts are
computed again by another.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch
from dask.distributed import Client, KilledWorker, Worker, get_worker, secede, wait
from numpy.typing import NDArray

from teacher_cache.command_settings import ComputeSettings, Precision
from teacher_cache.compat.distributed import is_wanted, threads_of_worker
from teacher_cache.compute.decoding import part_decoders
from teacher_cache.compute.part import PartTask, part_arrays
from teacher_cache.compute.workers import (
    cuda_devices,
    dask_client,
    local_workers,
    scheduler_needed,
)
from teacher_cache.conventions import recorded_conventions
from teacher_cache.cores import usable_cores
from teacher_cache.encodings import ClassHead
from teacher_cache.errors import RppError
from teacher_cache.images.table import SampleTable
from teacher_cache.pixels.decoders import Decoders
from teacher_cache.progress import Counter, counting, print_remark
from teacher_cache.stopping import stoppable
from teacher_cache.store.cache_store import CacheStore
from teacher_cache.store.records import Resources
from teacher_cache.teacher.openclip import load_model
from teacher_cache.teacher.teacher import Teacher, choose_device

log = logging.getLogger(__name__)

PARTS_PER_WORKER = 2  # one to compute, one to start next
POLL_SECONDS = 2.0  # how often lost and new workers are looked for
REPORT_SECONDS = 0.5  # how often a worker reports its progress
IDLE_SECONDS = 60.0  # after which a worker of a cluster ends the processes that decode
PATIENCE_SECONDS = 10.0  # how long the end of a build waits for a part that is stopped


@dataclass(frozen=True)
class Work:
    """All that a worker needs to compute any part. `name` is unique to a build."""

    name: str
    path: str
    teacher: str
    pretrained: str | None
    precision: Precision
    settings: ComputeSettings


def compute_parts(
    work: Work, store: CacheStore, teacher: Teacher, on_note: Callable[[str], None]
) -> list[int]:
    """Compute and commit all parts that the cache does not have yet; return their numbers.

    Args:
        teacher: used if the only worker is in this process. Other workers load their own.

    Raises:
        UsageError: no scheduler answers.
        RppError: stopped, or a part cannot be computed. Committed parts stay.
    """
    header, missing = store.header, store.parts.missing()
    if not missing:
        return []
    sizes = {part: header.rows(part).stop - header.rows(part).start for part in range(header.parts)}
    # a later pass reads which rows the first one found readable
    passes = [list(parts) for _, parts in groupby(missing, lambda part: part < header.parts_per_pass)]
    threads = torch.get_num_threads()
    with (
        stoppable(),
        dask_client(work.settings, on_note) as client,
        counting("samples", sum(sizes.values())) as counter,
    ):
        progress = PartProgress(counter, sizes, missing)
        opened: Opened | None = None
        client.subscribe_topic(work.name, lambda event: progress.report(*event[1]))
        try:
            if work.settings.scheduler is None and local_workers(work.settings) == 1:
                (worker,) = client.cluster.workers.values()
                worker.rpp_opened = opened = _open(work, teacher, on_note)
            for parts in passes:
                _hand_out(client, work, parts, progress, on_note)
        finally:
            torch.set_num_threads(threads)
            client.unsubscribe_topic(work.name)
            if opened is not None and _computing.acquire(timeout=PATIENCE_SECONDS):
                opened.end_decoders()
                _computing.release()
    return missing


@scheduler_needed("what is committed is safe")
def _hand_out(
    client: Client, work: Work, parts: list[int], progress: "PartProgress", on_note: Callable[[str], None]
) -> None:
    """Give each worker at most `PARTS_PER_WORKER` parts, so that parts are left for workers that join later:
    Dask counts a worker's death against all tasks that the worker has. When Dask gives up a part, the part
    may have been a bystander, so it is tried once more at the end, with no other part running."""
    waiting, suspects, running = deque(parts), deque[int](), dict[Any, int]()
    suspected, deadly = set[int](), dict[int, KilledWorker]()
    without_workers = False
    try:
        while waiting or suspects or running:
            workers = client.nthreads()
            progress.forget_lost_workers(set(workers))
            if not workers and not without_workers:
                on_note("no Dask worker is connected; waiting for one")
            without_workers = not workers
            room = PARTS_PER_WORKER * max(1, len(workers)) - len(running)
            chosen = [waiting.popleft() for _ in range(min(room, len(waiting)))]
            if suspects and not (chosen or running):
                chosen = [suspects.popleft()]
            for part in chosen:
                key = f"{work.name}-{part}{'-again' * (part in suspected)}"
                future = client.submit(compute_part, work, part, key=key, pure=False, priority=-part)
                running[future] = part
            try:
                done = wait(list(running), timeout=POLL_SECONDS, return_when="FIRST_COMPLETED").done
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
            f"part {part} cannot be computed: it was started {deaths} times and its worker died each time, "
            f"the last at {killed.last_worker.address}{others}; see the workers' logs, or the system's if "
            "memory ran out. All other parts are committed: run the same command again for these"
        )


class PartProgress:
    """Counts samples that are done, without those that were lost with their worker."""

    def __init__(self, counter: Counter, sizes: dict[int, int], missing: list[int]) -> None:
        self._counter, self._sizes = counter, sizes
        self._started: dict[int, tuple[str, int]] = {}  # part -> worker, samples
        self._lock = threading.Lock()  # reports come on Dask's thread
        self._todo = set(missing)
        self._done = sum(size for part, size in sizes.items() if part not in self._todo)
        counter.start_at(self._done)

    def report(self, part: int, worker: str, samples: int) -> None:
        """Take a worker's count of samples of a part."""
        with self._lock:
            if part in self._todo:
                self._started[part] = (worker, samples)
                self._show()

    def finished(self, part: int) -> None:
        """Count a part that is committed."""
        with self._lock:
            self._todo.discard(part)
            self._started.pop(part, None)
            self._done += self._sizes[part]
            self._show()

    def forget_lost_workers(self, workers: set[str]) -> None:
        """Subtract the unfinished parts of all workers but these, which are connected."""
        with self._lock:
            lost = [part for part, (worker, _) in self._started.items() if worker not in workers]
            for part in lost:
                del self._started[part]
            if lost:
                self._show()

    def _show(self) -> None:
        done = self._done + sum(samples for _, samples in self._started.values())
        parts = f"{len(self._sizes) - len(self._todo)}/{len(self._sizes)}"
        if done != self._counter.done or parts != self._counter.fields.get("parts"):
            self._counter.reach(done, parts=parts)


@dataclass
class Opened:
    """What a worker keeps from part to part, as its attribute `rpp_opened`."""

    name: str
    store: CacheStore
    teacher: Teacher
    head: ClassHead
    on_note: Callable[[str], None]
    decoders: Decoders | None = None
    idle_timer: threading.Timer | None = None

    def decoders_for(self, settings: ComputeSettings, samples: SampleTable) -> Decoders:
        """Return what decodes the images of parts, opened at the first call."""
        self._stop_timer()
        if self.decoders is None:
            header = self.store.header
            self.decoders = part_decoders(settings, header, samples, self.teacher, self.on_note)
        return self.decoders

    def end_decoders(self) -> None:
        """End threads and processes that decode, between two parts."""
        self._stop_timer()
        if self.decoders is not None:
            self.decoders.close()
            self.decoders = None

    def end_decoders_later(self) -> None:
        """End them after `IDLE_SECONDS` without a part.

        A worker of a cluster is not told that a build ended.
        """

        def end() -> None:
            with _computing:
                if self.idle_timer is timer:
                    self.end_decoders()

        timer = threading.Timer(IDLE_SECONDS, end)
        timer.daemon = True
        self.idle_timer = timer
        timer.start()

    def _stop_timer(self) -> None:
        if self.idle_timer is not None:
            self.idle_timer.cancel()
            self.idle_timer = None


_opening = threading.Lock()
_computing = threading.Lock()  # a Dask worker may have several threads; they share one device


def _opened(worker: Worker, work: Work) -> Opened:
    """Return what the worker has opened for this build."""
    with _opening:
        opened: Opened | None = getattr(worker, "rpp_opened", None)
        if opened is None or opened.name != work.name:
            if opened is not None:
                with _computing:
                    opened.end_decoders()
            worker.rpp_opened = opened = None  # the last build's teacher makes room for this one's
            worker.rpp_opened = opened = _open(work)
        return opened


def _open(work: Work, teacher: Teacher | None = None, on_note: Callable[[str], None] = log.warning) -> Opened:
    store = CacheStore.open(work.path, writable=True)
    teacher = teacher or _load_teacher(work, store)
    head = ClassHead(torch.from_numpy(store.class_features()), float(store.header.teacher["logit_scale"]))
    return Opened(work.name, store, teacher, head.to(teacher.device), on_note)


def _load_teacher(work: Work, store: CacheStore) -> Teacher:
    conventions = recorded_conventions(store.header.teacher)
    loaded = load_model(work.teacher, work.pretrained, "cpu", conventions)
    expected = store.header.teacher["weights_digest"]
    if loaded.digest != expected:
        raise RppError(
            f"worker {get_worker().address} has other weights for {work.teacher} than the cache (expected "
            f"{expected}, found {loaded.digest})"
        )
    device = choose_device(work.settings.device)
    devices = cuda_devices(work.settings)
    if devices > 1:  # a local cluster, whose workers are numbered
        device = torch.device("cuda", int(get_worker().name) % devices)
    return Teacher(loaded, device, work.precision)


def _readable(store: CacheStore, part: int) -> NDArray[np.bool_] | None:
    """Return which rows of a later pass's part the first pass could read; None in the first pass."""
    number, first = divmod(part, store.header.parts_per_pass)
    return store.parts.sample_arrays(range(first, first + 1))["valid"] if number else None


def compute_part(work: Work, part: int) -> None:
    """Compute and commit one part, as a Dask task."""
    worker, settings = get_worker(), work.settings
    key = worker.get_current_task()
    opened = _opened(worker, work)
    store, header = opened.store, opened.store.header
    if part in store.parts.committed():  # by a worker that died before it reported that
        return
    last_report = 0.0

    def on_batch(samples: int) -> None:
        nonlocal last_report
        if not is_wanted(worker, key):
            raise RppError("stopped")  # the caller ended or cancelled the task; a thread cannot be killed
        if time.monotonic() - last_report > REPORT_SECONDS:
            worker.log_event(work.name, (part, worker.address, samples))
            last_report = time.monotonic()

    rows = header.rows(part)
    with _computing:
        on_batch(0)
        # a setting of the thread, and a task may run on any of them
        torch.set_num_threads(settings.torch_threads or threads_of_worker())
        if settings.compile and (seconds := opened.teacher.compile(settings.batch_size)):
            print_remark(f"compiled the teacher's image encoder in {seconds:.0f} s")
        samples = store.samples.part(rows)
        decoders = opened.decoders_for(settings, samples)
        resources = Resources(
            device=opened.teacher.device.type,
            decoders=decoders.number,
            # workers of a cluster may share their machine with others, which they do not know
            cores=max(1, usable_cores() // (1 if settings.scheduler else local_workers(settings))),
            torch_threads=torch.get_num_threads(),
        )
        try:
            computed = part_arrays(
                PartTask(header, part, samples, settings.strict, _readable(store, part)),
                opened.teacher,
                opened.head,
                batch_size=settings.batch_size,
                decoders=decoders,
                on_batch=on_batch,
            )
        except torch.OutOfMemoryError as error:
            raise RppError(
                f"{opened.teacher.device} of {worker.address} is out of memory with {settings.batch_size} "
                "images at a time: choose a smaller --batch-size; what is committed is safe"
            ) from error
        finally:
            if settings.scheduler:
                opened.end_decoders_later()
    secede()  # the next part starts while this one is written
    store.parts.commit(part, computed.arrays, computed.seconds, computed.skipped, resources, computed.encoded)
