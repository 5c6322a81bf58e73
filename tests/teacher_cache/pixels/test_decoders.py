"""Batches decoded in processes and in threads: equal, in order, unchanged while they exist; how they end."""

import errno
import gc
import os
import signal
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

from teacher_cache.errors import RppError
from teacher_cache.pixels import decoders as decoders_module
from teacher_cache.pixels.decoders import (
    KEPT_BATCHES,
    BatchRequest,
    Decoders,
    ProcessDecoders,
    ThreadDecoders,
    open_decoders,
)
from teacher_cache.pixels.process import TOKEN, next_token
from tests.teacher_cache.pixels import jobs

SIZE = (6, 5)


def children() -> set[int]:
    """Processes of this one, whichever thread started them."""
    tasks = Path(f"/proc/{os.getpid()}/task").glob("*/children")
    return {int(number) for task in tasks for number in task.read_text().split()}


def in_processes(
    job: Any = jobs.fill, processes: int = 2, largest: tuple[int, int] = (2, 40)
) -> ProcessDecoders:
    return ProcessDecoders(job, SIZE, processes, largest, option="--decode-processes")


def filled(number: int, images: int = 40, views: int = 2, left_out: tuple[int, ...] = ()) -> BatchRequest:
    """A batch whose images have numbers of their own, in descending order of their places."""
    places = [place for place in reversed(range(images)) if place not in left_out]
    return BatchRequest(views, images, [(place, (7 * number + place) % 250 + 1) for place in places])


def expected(batch: BatchRequest) -> np.ndarray:
    pixels = np.zeros((batch.views, batch.images, *SIZE, 3), np.uint8)
    for place, number in batch.requests:
        pixels[:, place] = number
    return pixels


@pytest.mark.parametrize("how", ["one process", "three processes", "threads", "the caller's thread"])
def test_batches_are_those_that_were_asked_for(how: str) -> None:
    """Of several sizes, with images left out in blocks that were used before."""
    batches = [
        filled(number, 40 - number % 3, 1 + number % 2, (3, 17) if number % 4 == 3 else ())
        for number in range(30)
    ]
    opened: dict[str, Decoders] = {
        "one process": in_processes(processes=1),
        "three processes": in_processes(processes=3),
        "threads": ThreadDecoders(jobs.fill, SIZE, 3),
        "the caller's thread": ThreadDecoders(jobs.fill, SIZE, 0),
    }
    with opened[how] as decoders:
        for batch, (pixels, replies) in zip(batches, decoders.decode(batches), strict=True):
            np.testing.assert_array_equal(pixels.numpy(), expected(batch))
            assert replies == [number for _, number in batch.requests]
        # a second use, as for the next part
        assert len(list(decoders.decode(batches[:3]))) == 3
    for other in opened.values():
        other.close()


def test_pixels_that_a_consumer_keeps_do_not_change() -> None:
    """Also more of them than blocks of memory are given out, views of them, and after the end."""
    batches = [filled(number) for number in range(KEPT_BATCHES + 20)]
    with in_processes() as decoders:
        kept = [pixels[:, ::2].permute(0, 1, 4, 2, 3) for pixels, _ in decoders.decode(batches)]
        assert decoders._slots.in_use <= decoders._ahead + KEPT_BATCHES + 1
    for batch, pixels in zip(batches, kept, strict=True):
        np.testing.assert_array_equal(pixels.permute(0, 1, 3, 4, 2).numpy(), expected(batch)[:, ::2])
    del kept, pixels
    assert decoders._slots.in_use == 0


def test_memory_does_not_grow_with_the_number_of_batches() -> None:
    with in_processes() as decoders:
        for _ in decoders.decode(filled(number) for number in range(50)):
            pass
        assert len(decoders._slots._maps) <= decoders._ahead + 2


def test_an_abandoned_batch_is_not_written_into_a_later_one() -> None:
    batches = [filled(number) for number in range(20)]
    with in_processes() as decoders:
        for _ in range(10):
            abandoned = decoders.decode(batches)
            next(abandoned)
            del abandoned
            gc.collect()
            for batch, (pixels, _) in zip(batches[5:8], decoders.decode(batches[5:8]), strict=True):
                np.testing.assert_array_equal(pixels.numpy(), expected(batch))


def test_a_process_imports_little_and_works_as_this_one_is_set_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1234)
    with in_processes(jobs.surroundings) as decoders:
        ((_, (found,)),) = decoders.decode([BatchRequest(1, 1, [(0, None)])])
    assert not found["modules"] & {
        "torch",
        "torchvision",
        "open_clip",
        "pyarrow",
        "pydantic",
        "dask",
        "pytest",
    }
    assert found["main"] is None
    assert found["nice"] == os.nice(0) + 10
    assert found["pillow"] == (True, 1234)


@pytest.mark.parametrize("job", ["drawn_views:DrawViews", "stored_views:RenderViews"])
def test_the_jobs_import_neither_torch_nor_a_table(job: str) -> None:
    """They are imported in each process that decodes."""
    import subprocess
    import sys

    module = {"drawn_views": "teacher_cache.pixels", "stored_views": "student_train.data"}[
        job.partition(":")[0]
    ]
    code = f"import sys; from {module} import {job.partition(':')[0]}; print(*sys.modules)"
    loaded = subprocess.check_output([sys.executable, "-c", code], text=True).split()
    assert not set(loaded) & {"torch", "torchvision", "open_clip", "pyarrow", "pydantic", "fsspec"}


def endless() -> Iterator[BatchRequest]:
    number = 0
    while True:
        yield filled(number)
        number += 1


def test_a_killed_process_is_one_sentence_and_a_signal_to_all_is_ignored() -> None:
    before = children()
    with in_processes() as decoders:
        decoded = decoders.decode(endless())
        next(decoded)
        processes = children() - before
        assert len(processes) == 2
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            for process in processes:
                os.kill(process, number)
        next(decoded)
        os.kill(min(processes), signal.SIGKILL)
        with pytest.raises(RppError) as raised:
            list(decoded)  # the other one takes no more than the pieces that are left
    said = "a process that decodes images ended (signal SIGKILL); if memory ran out, use fewer "
    assert str(raised.value) == f"{said}--decode-processes"
    assert children() <= before


def test_processes_end_when_they_are_closed_and_when_they_are_forgotten() -> None:
    before = children()
    with in_processes() as decoders:
        next(decoders.decode(endless()))
        assert len(children() - before) == 2
    assert children() <= before
    forgotten = in_processes()
    gone = weakref.ref(forgotten)
    next(forgotten.decode(endless()))
    del forgotten
    gc.collect()
    assert gone() is None
    assert children() <= before


def test_a_bug_in_a_process_shows_its_traceback() -> None:
    with in_processes(jobs.fail) as decoders, pytest.raises(RuntimeError, match=r"(?s)in fail.*not there"):
        list(decoders.decode([filled(0)]))


def test_a_reply_that_does_not_fit_is_not_written_over_another() -> None:
    with (
        in_processes(jobs.talk, largest=(1, 4)) as decoders,
        pytest.raises(RuntimeError, match=r"a reply of 300,\d+ bytes"),
    ):
        list(decoders.decode([BatchRequest(1, 4, [(0, 10), (1, 300_000)])]))


def test_other_threads_run_while_pixels_are_awaited() -> None:
    with in_processes() as decoders:
        done: list[int] = []
        thread = threading.Thread(
            target=lambda: done.extend(len(of) for of, _ in decoders.decode([filled(1)]))
        )
        thread.start()
        thread.join(60)
    assert done == [2]


class TestMemory:
    """Where processes share memory, and what happens if they cannot."""

    def opened(self, notes: list[str]) -> Decoders:
        return open_decoders(
            jobs.fill, SIZE, 2, threads=3, largest=(2, 40), option="--workers", on_note=notes.append
        )

    def test_it_is_not_in_the_shared_memory_folder(self) -> None:
        """Which has 64 MB in a container of Docker."""
        before = set(os.listdir("/dev/shm"))
        notes: list[str] = []
        with self.opened(notes) as decoders:
            list(decoders.decode([filled(0)]))
            assert isinstance(decoders, ProcessDecoders)
            assert decoders.place == "memory"
            links = {os.readlink(path) for path in Path("/proc/self/fd").iterdir() if os.path.islink(path)}
            assert any(link.startswith("/memfd:rpp-pixels") for link in links)
            assert set(os.listdir("/dev/shm")) <= before
        assert notes == []

    def test_without_it_a_file_without_a_name_is_used(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        monkeypatch.delattr(os, "memfd_create")
        notes: list[str] = []
        with self.opened(notes) as decoders:
            assert notes == [f"the pixels that processes share are in a file in {tmp_path}"]
            assert list(tmp_path.iterdir()) == []
            for batch, (pixels, _) in zip([filled(1)], decoders.decode([filled(1)]), strict=True):
                np.testing.assert_array_equal(pixels.numpy(), expected(batch))

    def test_without_space_threads_decode(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The space is asked for before anything is written: a write beyond it would end the process."""

        def full(descriptor: int, offset: int, size: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        monkeypatch.delattr(os, "memfd_create")
        monkeypatch.setattr(os, "posix_fallocate", full)
        before, notes = children(), list[str]()
        descriptors = len(os.listdir("/proc/self/fd"))
        with self.opened(notes) as decoders:
            assert isinstance(decoders, ThreadDecoders)
            list(decoders.decode([filled(0)]))
        said = "images are decoded in 3 threads: processes cannot share memory"
        assert notes == [f"{said} ([Errno 28] No space left on device)"]
        assert children() <= before
        assert len(os.listdir("/proc/self/fd")) == descriptors

    def test_without_space_for_another_batch_the_message_says_so(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(descriptor: int, offset: int, size: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        with in_processes() as decoders:
            monkeypatch.setattr(os, "posix_fallocate", full)
            with pytest.raises(RppError, match=r"no memory for another batch of pixels: .*No space left"):
                list(decoders.decode(endless()))

    def test_a_process_that_cannot_be_started_is_one_sentence(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(decoders_module, "get_executable", lambda: "/no/such/python")
        with pytest.raises(
            RppError, match=r"cannot start a process that decodes images .*use fewer --workers"
        ):
            self.opened([])


def test_pixels_are_tensors_of_the_shared_memory() -> None:
    """Nothing is copied in this process."""
    with in_processes() as decoders:
        decoded = decoders.decode([filled(0), filled(1)])
        pixels, _ = next(decoded)
        assert any(
            pixels.data_ptr() == np.frombuffer(of, np.uint8).ctypes.data for of in decoders._slots._maps
        )
        assert pixels.dtype == torch.uint8


def test_a_process_ends_quietly_where_the_parent_empties_the_pipe() -> None:
    """Blocking is a property of the pipe, which parent and processes share."""
    tasks, parents = os.pipe()
    os.write(parents, bytes(TOKEN.size))
    os.set_blocking(tasks, False)
    assert next_token(tasks) == bytes(TOKEN.size)
    assert next_token(tasks) == b""
    os.close(tasks)
    os.close(parents)
