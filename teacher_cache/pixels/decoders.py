"""Decode batches of pixels ahead of their use, on threads or in processes.

Shapes: V views, B images of a batch, H and W pixels.
"""

import os
import pickle
import select
import signal
import subprocess
import sys
import time
import weakref
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from multiprocessing.spawn import get_executable
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFile
from torch import Tensor

from teacher_cache.errors import RppError
from teacher_cache.pixels.process import TOKEN, Failure, Piece, ProcessOptions
from teacher_cache.pixels.shared_memory import PixelSlots, memory_file

BATCHES_AHEAD = 2  # batches that are decoded while the consumer has another one
PIECE = 16  # the most images that a process takes at a time
LEAST_PIECE = 4  # a message costs the parent as much as ten requests in it
PIECES_PER_PROCESS = 3  # that wait or are decoded; the pipe of tasks holds 4,096
PIECES_PER_BATCH = 256
KEPT_BATCHES = 16  # that the consumer may keep in shared memory; of more it gets copies
REQUEST_BYTES = 64 << 10  # the most of a pickled request or reply, with paths of 4,096 characters
NICENESS = 10
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
# glibc would give the memory of each image back, and the system clear it again for the next one: 325 page
# faults and up to 0.5 ms of 3 an image (`benchmarks/input.py`).
KEEP_MEMORY = {"MALLOC_TRIM_THRESHOLD_": str(64 << 20), "MALLOC_MMAP_THRESHOLD_": str(32 << 20)}
PATIENCE_SECONDS = 1.0
POLL_SECONDS = 1.0
PORTABLE = 1  # cudaHostRegisterPortable: pinned for all devices of the process


class PixelJob(Protocol):
    """Decodes images of one source. A process that decodes gets a pickled copy.

    Its module must not import torch, which takes seconds in each process.
    """

    def __call__(self, request: Any, into: NDArray[np.uint8]) -> Any:
        """Fill `into` [V, H, W, 3] with the pixels of an image's views; return what the caller wants to know.

        An image that cannot be read leaves zeros, and is reported in what is returned: exceptions are bugs.

        Args:
            request: which image, as plain values.
        """
        ...


@dataclass(frozen=True)
class BatchRequest:
    """A batch to decode.

    Attributes:
        views, images: its V and B.
        requests: place of an image in the batch, and what the job takes; all other places are zero.
    """

    views: int
    images: int
    requests: Sequence[tuple[int, Any]]


class Decoders(ABC):
    """Decodes batches, some of them ahead of the caller. Used from one thread.

    Attributes:
        number: how many images are decoded at a time.
    """

    def __init__(self, size: tuple[int, int], ahead: int, number: int) -> None:
        self._size, self._ahead, self.number = size, ahead, number

    def decode(self, batches: Iterable[BatchRequest]) -> Iterator[tuple[Tensor, list[Any]]]:
        """Yield the pixels of each batch, [V, B, H, W, 3] uint8, and what the job returned, by request.

        A batch is started when the one `ahead` before it is taken, which bounds memory. Pixels do not change
        while a tensor of them exists. If they are pinned, keep one until the device has copied them.

        Raises:
            RppError: a process ended, or memory is missing.
        """
        todo = iter(batches)
        ahead = deque(self._start(batch) for batch in islice(todo, self._ahead))
        while ahead:
            finish = ahead.popleft()
            decoded = finish()
            del finish  # it has the pixels
            ahead.extend(self._start(following) for following in islice(todo, 1))
            yield decoded
            del decoded

    @abstractmethod
    def _start(self, batch: BatchRequest) -> Callable[[], tuple[Tensor, list[Any]]]:
        """Start a batch; return a function that waits for it."""

    @abstractmethod
    def close(self) -> None:
        """End threads or processes. Pixels that were yielded stay."""

    def __enter__(self) -> "Decoders":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class ThreadDecoders(Decoders):
    """Decodes on threads of this process; with 0 threads on the caller's, when a batch is taken."""

    def __init__(self, job: PixelJob, size: tuple[int, int], threads: int, *, pin: bool = False) -> None:
        """Args:
        size: H and W.
        pin: decode into page-locked memory, from which CUDA copies while it computes.
        """
        super().__init__(size, BATCHES_AHEAD if threads else 1, max(1, threads))
        self._job, self._pin = job, pin
        self._pool = ThreadPoolExecutor(threads, initializer=_lower_priority) if threads else None

    def _start(self, batch: BatchRequest) -> Callable[[], tuple[Tensor, list[Any]]]:
        shape = (batch.views, batch.images, *self._size, 3)
        pixels = torch.zeros(shape, dtype=torch.uint8, pin_memory=self._pin)
        into, job = pixels.numpy(), self._job
        if self._pool is None:
            return lambda: (pixels, [job(request, into[:, place]) for place, request in batch.requests])
        futures = [self._pool.submit(job, request, into[:, place]) for place, request in batch.requests]
        return lambda: (pixels, [future.result() for future in futures])

    def close(self) -> None:
        """See `Decoders`."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


@dataclass
class _Decoding:
    """A batch that processes decode: its pixels, and what the job returned for each piece, by its number."""

    pixels: NDArray[np.uint8]
    pieces: int
    replies: dict[int, list[Any]] = field(default_factory=dict)


@dataclass
class _Pinning:
    """Page-locks blocks of shared memory.

    Attributes:
        works: whether it was asked for, and the system permits it.
    """

    works: bool

    def __call__(self, memory: NDArray[np.uint8]) -> Callable[[], object]:
        """Page-lock a block; return what undoes it."""
        if self.works and torch.cuda.is_available():
            cudart, address = torch.cuda.cudart(), memory.ctypes.data
            self.works = int(cudart.cudaHostRegister(address, memory.nbytes, PORTABLE)) == 0
            if self.works:
                return partial(cudart.cudaHostUnregister, address)
            with suppress(RuntimeError):
                torch.zeros(
                    1, device="cuda"
                )  # the next kernel would report the error, which has been handled
        return lambda: None


class ProcessDecoders(Decoders):
    """Decodes in processes of its own, which write into memory that this process shares with them.

    The processes import what the job needs, and neither this program's main module nor torch. They can be
    started by daemonic processes, such as those of Dask.
    """

    def __init__(
        self,
        job: PixelJob,
        size: tuple[int, int],
        processes: int,
        largest: tuple[int, int],
        *,
        option: str,
        pin: bool = False,
        register: bool = False,
        reply_bytes: int = 0,
    ) -> None:
        """Args:
        size: H and W.
        largest: V and B of the largest batch.
        option: the option that sets the number of processes, for messages.
        pin: yield page-locked memory.
        register: page-lock the shared memory itself, which saves a copy. A consumer then has to keep a tensor
            of the pixels until the device has copied them.
        reply_bytes: the most that a reply to a request has beyond `REQUEST_BYTES`.

        Raises:
            RppError: the processes cannot be started.
            OSError: neither memory nor the folder for temporary files has the space.
        """
        views, images = largest
        self._piece = max(
            min(PIECE, max(LEAST_PIECE, -(-images // (2 * processes)))), -(-images // PIECES_PER_BATCH)
        )
        ahead = max(BATCHES_AHEAD, -(-PIECES_PER_PROCESS * processes * self._piece // images))
        super().__init__(size, ahead, processes)
        self._option, self._pin = option, pin
        self._pinning = _Pinning(register and pin)
        self._slots = PixelSlots(ahead + 2, views * images * size[0] * size[1] * 3, self._pinning)
        try:
            self._messages, _ = memory_file(0)
        except OSError:
            self._slots.close()
            raise
        self._message_bytes = self._piece * REQUEST_BYTES
        self._reply_bytes = self._message_bytes + self._piece * reply_bytes
        self._running: dict[int, tuple[_Decoding, int]] = {}  # by offset of the message
        self._free_messages: deque[int] = deque()
        self._last_message = 0
        self._checked = time.monotonic()
        self._job_bytes = os.pwrite(self._messages, pickle.dumps(job), 0)
        self._unread, self._tasks = os.pipe()
        self._replies, replies = os.pipe()
        os.set_blocking(self._tasks, False)  # it is never full
        self._processes: list[subprocess.Popen[bytes]] = []
        descriptors = [self._unread, self._tasks, self._replies, self._messages]
        self._end = weakref.finalize(self, _end, os.getpid(), self._processes, descriptors, self._slots)
        try:
            for _ in range(processes):
                self._processes.append(self._process(replies))
        except OSError as error:
            self.close()
            raise RppError(
                f"cannot start a process that decodes images ({error}); use fewer {option}"
            ) from error
        finally:
            os.close(replies)
        self._poll = select.poll()
        self._poll.register(self._replies, select.POLLIN)

    @property
    def place(self) -> str:
        """Where the shared memory is: `memory`, or a folder."""
        return self._slots.place

    def _process(self, replies: int) -> "subprocess.Popen[bytes]":
        options = ProcessOptions(
            tasks=self._unread,
            replies=replies,
            messages=self._messages,
            pixels=self._slots.descriptor,
            slot_bytes=self._slots.slot_bytes,
            job_bytes=self._job_bytes,
            message_bytes=self._message_bytes,
            reply_bytes=self._reply_bytes,
            nice=NICENESS,
            parent=os.getpid(),
            pillow=(ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS),
        )
        # A signal to all processes of a terminal stops this one, which finishes its step with these. They
        # inherit the mask, so that it counts from their start.
        stops = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
        before = signal.pthread_sigmask(signal.SIG_BLOCK, stops)
        try:
            return subprocess.Popen(
                options.command(os.fsdecode(get_executable())),
                stdin=subprocess.DEVNULL,
                pass_fds=options.descriptors,
                env=KEEP_MEMORY | os.environ | ONE_THREAD,
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _start(self, batch: BatchRequest) -> Callable[[], tuple[Tensor, list[Any]]]:
        shape = (batch.views, batch.images, *self._size, 3)
        try:
            slot, pixels = self._slots.take(shape)
        except OSError as error:
            raise RppError(f"no memory for another batch of pixels: {error}") from error
        if len(batch.requests) < batch.images:
            pixels[:, sorted(set(range(batch.images)) - {place for place, _ in batch.requests})] = 0
        starts = range(0, len(batch.requests), self._piece)
        decoding = _Decoding(pixels, len(starts))
        for number, start in enumerate(starts):
            piece = Piece(slot, shape, list(batch.requests[start : start + self._piece]))
            self._send(pickle.dumps(piece), decoding, number)
        del pixels
        return lambda: self._finished(decoding)

    def _send(self, message: bytes, decoding: _Decoding, number: int) -> None:
        if self._free_messages:
            offset = self._free_messages.popleft()
        else:
            self._last_message += 1
            offset = (self._message_bytes + self._reply_bytes) * self._last_message
        if len(message) > self._message_bytes:
            raise ValueError(f"a request of {len(message):,} bytes; at most {self._message_bytes:,}")
        self._running[offset] = decoding, number
        os.pwrite(self._messages, message, offset)
        os.write(self._tasks, TOKEN.pack(offset, len(message)))

    def _finished(self, decoding: _Decoding) -> tuple[Tensor, list[Any]]:
        while len(decoding.replies) < decoding.pieces:
            tokens = os.read(self._replies, 64 * TOKEN.size) if self._poll.poll(1000 * POLL_SECONDS) else b""
            if time.monotonic() > self._checked + POLL_SECONDS or not tokens:
                self._check_processes()
            for offset, length in TOKEN.iter_unpack(tokens):
                self._receive(offset, os.pread(self._messages, length, offset + self._message_bytes))
        replies = [reply for number in range(decoding.pieces) for reply in decoding.replies[number]]
        pixels = torch.from_numpy(decoding.pixels)
        if self._pin and not self._pinning.works:
            pixels = torch.empty(pixels.shape, dtype=torch.uint8, pin_memory=True)
            np.copyto(pixels.numpy(), decoding.pixels)  # torch would use several threads
        elif self._slots.in_use > self._ahead + KEPT_BATCHES:
            pixels = pixels.clone()
        return pixels, replies

    def _receive(self, offset: int, message: bytes) -> None:
        decoding, number = self._running.pop(offset)
        self._free_messages.append(offset)
        replies = pickle.loads(message)
        if isinstance(replies, Failure):
            raise RuntimeError(f"in a process that decodes images:\n{replies.text}")
        decoding.replies[number] = replies

    def _check_processes(self) -> None:
        for process in self._processes:
            code = process.poll()
            if code is not None:
                how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
                raise RppError(
                    f"a process that decodes images ended ({how}); if memory ran out, use fewer "
                    f"{self._option}"
                )
        self._checked = time.monotonic()

    def close(self) -> None:
        """See `Decoders`. A piece that a process is decoding is lost."""
        self._end()
        self._running.clear()


def open_decoders(
    job: PixelJob,
    size: tuple[int, int],
    processes: int,
    *,
    threads: int,
    largest: tuple[int, int],
    option: str,
    pin: bool = False,
    register: bool = False,
    reply_bytes: int = 0,
    on_note: Callable[[str], None] = lambda note: None,
) -> Decoders:
    """Return processes that decode; with 0 processes, and where they cannot share memory, threads.

    Args:
        threads: of this process, in place of processes.
        on_note: called with a remark for the user where memory cannot be shared as it should.
        job, size, largest, option, pin, register, reply_bytes: as `ProcessDecoders`.

    Raises:
        RppError: the processes cannot be started.
    """
    if processes:
        try:
            decoders = ProcessDecoders(
                job,
                size,
                processes,
                largest,
                option=option,
                pin=pin,
                register=register,
                reply_bytes=reply_bytes,
            )
        except OSError as error:
            on_note(f"images are decoded in {threads} threads: processes cannot share memory ({error})")
        else:
            if decoders.place != "memory":
                on_note(f"the pixels that processes share are in a file in {decoders.place}")
            return decoders
    return ThreadDecoders(job, size, threads, pin=pin)


def _end(
    owner: int, processes: "list[subprocess.Popen[bytes]]", descriptors: list[int], slots: PixelSlots
) -> None:
    if os.getpid() != owner:  # a fork; the processes are not its children
        return
    unread = descriptors[0]
    os.set_blocking(unread, False)
    with suppress(BlockingIOError):
        while os.read(unread, 1 << 16):
            pass  # tasks that are not started
    for descriptor in descriptors:
        os.close(descriptor)
    for process in processes:
        try:
            process.wait(PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    slots.close()


def _lower_priority() -> None:
    """On Linux each thread has its own priority. Decoding then takes the processor time that the forward pass
    leaves, and all of it while that waits for pixels."""
    if sys.platform == "linux":
        os.nice(NICENESS)
