"""Workers in separate processes, killed and stopped; progress; what workers keep."""

import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import dask
import pytest
import torch
from distributed import Client, LocalCluster
from distributed.utils import get_mp_context

from teacher_cache.build import build_cache
from teacher_cache.command_settings import ComputeSettings
from teacher_cache.compute import cluster
from teacher_cache.compute.cluster import PartProgress
from teacher_cache.compute.workers import dask_client, on_this_machine
from teacher_cache.errors import RppError
from teacher_cache.progress import counting
from teacher_cache.store.cache_store import CacheStore
from tests.processes import LIBRARIES, ForkServer, Process
from tests.teacher_cache.inputs import (
    assert_same_arrays,
    settings,
    webdataset_members,
    write_shard,
    write_shards,
)

# What a worker loads first: how many images it lives for, or which one it dies of.
PRELOAD = """
import os, signal
from teacher_cache.images import decode
from teacher_cache.pixels import drawn_views
seen = 0

def decode_or_die(content, **more):
    global seen
    seen += 1
    if {condition}:
        os.kill(os.getpid(), signal.SIGKILL)
    return decode.decode_picture(content, **more)

drawn_views.decode_picture = decode_or_die
"""
# Of six images each; a file tells the other worker.
DIES_IN_ITS_THIRD_PART = PRELOAD.format(condition="seen == 16 and not open('died', 'w').close()")
# The other worker would else compute all parts while the first one still loads its model.
WAITS_FOR_THE_DEATH = """
import os, time
from teacher_cache.images import decode
from teacher_cache.pixels import drawn_views

def decode_after_the_death(content, **more):
    end = time.monotonic() + 120
    while not os.path.exists('died') and time.monotonic() < end:
        time.sleep(0.02)
    return decode.decode_picture(content, **more)

drawn_views.decode_picture = decode_after_the_death
"""
DIES_OF_POISON = PRELOAD.format(condition="content == b'poison'")


@contextmanager
def _process(processes: ForkServer, module: str, *arguments: str, **how: Any) -> Iterator[Process]:
    """`python -m module ...`, ended with the block."""
    process = processes.start("python", "-m", module, *arguments, stdout=None, stderr=None, **how)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@contextmanager
def dask_scheduler(processes: ForkServer, folder: Path) -> Iterator[tuple[str, Process]]:
    """Run a Dask scheduler in a process of its own; gives its address and the process."""
    file = folder / "scheduler.json"
    options = ("--port", "0", "--no-dashboard", "--scheduler-file", str(file))
    with _process(processes, "distributed.cli.dask_scheduler", *options) as process:
        for _ in range(600):
            if file.exists() and (found := re.search(r"tcp://[\d.]+:\d+", file.read_text())):
                yield found[0], process
                return
            time.sleep(0.1)
        raise TimeoutError("the scheduler did not start")


def dask_worker(processes: ForkServer, address: str, name: str, *more: str, **how: Any) -> Any:
    """Run a Dask worker in a process of its own, started as `ForkServer.start` says; gives the process."""
    options = ("--name", name, "--nthreads", "1", "--no-nanny", "--no-dashboard")
    return _process(processes, "distributed.cli.dask_worker", address, *options, *more, **how)


@contextmanager
def forked_workers() -> Iterator[None]:
    """Local workers are forks of a process that has imported torch, which saves its import for each."""
    with dask.config.set({"distributed.worker.multiprocessing-method": "forkserver"}):
        get_mp_context()  # once it says itself what is imported there
        multiprocessing.set_forkserver_preload(list(LIBRARIES))
        yield


def _records(cache: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (cache / "parts").glob("*.json")}


def test_a_worker_killed_within_a_part_loses_only_that_part(
    processes: ForkServer, teacher: Path, names: Path, tmp_path: Path
) -> None:
    source = write_shards(tmp_path / "shards", samples=36)
    asked = settings(source, names, tmp_path / "zarr", teacher, part_size=6)
    build_cache(asked.model_copy(update={"out": str(tmp_path / "undisturbed")}))
    died = repr(str(tmp_path / "died"))
    (tmp_path / "preload.py").write_text(DIES_IN_ITS_THIRD_PART.replace("'died'", died))
    (tmp_path / "waits.py").write_text(WAITS_FOR_THE_DEATH.replace("'died'", died))
    at_the_kill: dict[str, int] = {}
    with (
        dask_scheduler(processes, tmp_path) as (address, _),
        dask_worker(processes, address, "left", "--preload", str(tmp_path / "preload.py")) as victim,
        dask_worker(processes, address, "right", "--preload", str(tmp_path / "waits.py")),
    ):
        with Client(address) as client:
            client.wait_for_workers(2, timeout=60)

        def watch() -> None:
            assert victim.wait() == -signal.SIGKILL
            at_the_kill.update(_records(tmp_path / "zarr"))

        watcher = threading.Thread(target=watch)
        watcher.start()
        built = build_cache(asked.model_copy(update={"scheduler": address}))
        watcher.join()
    assert built.parts_computed == 12
    assert_same_arrays(tmp_path / "zarr", tmp_path / "undisturbed")
    assert 1 <= len(at_the_kill) < 12
    assert at_the_kill.items() <= _records(tmp_path / "zarr").items()


XDIST = ("PYTEST_XDIST_TESTRUNUID", "PYTEST_XDIST_WORKER")


def decoders_of_all() -> list[int]:
    """Processes of this machine that decode, except those of tests that run in parallel with this one."""
    own = [f"{name}={os.environ.get(name)}".encode() for name in XDIST if name in os.environ]
    found = []
    for line in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            environment = (line.parent / "environ").read_bytes().split(b"\0")
            if b"teacher_cache.pixels.process" in line.read_bytes() and set(own) <= set(environment):
                found.append(int(line.parent.name))
    return found


def test_workers_of_dask_decode_in_processes(
    cache: Path, teacher: Path, shards: Path, names: Path, tmp_path: Path
) -> None:
    """A worker is a daemonic process, which may not have children of multiprocessing."""
    before, seen = set(decoders_of_all()), set[int]()
    asked = settings(shards, names, tmp_path / "zarr", teacher, threads=None, decode_processes=2)
    with (
        forked_workers(),
        LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address="127.0.0.1:0"
        ) as running,
    ):
        build_cache(asked.model_copy(update={"scheduler": running.scheduler_address}))
        seen |= set(decoders_of_all()) - before
        with Client(running) as client:
            daemonic = client.run(lambda: multiprocessing.current_process().daemon)
            idle = client.run(end_idle_decoders_of)
    assert all(daemonic.values())
    assert len(seen) in (2, 4), "one worker may have computed all parts"
    assert sum(idle.values()) == len(seen) / 2
    deadline = time.monotonic() + 20
    while set(decoders_of_all()) - before and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not set(decoders_of_all()) - before
    assert_same_arrays(tmp_path / "zarr", cache)


def end_idle_decoders_of(dask_worker: Any) -> bool:
    """As after a minute without a part; return whether that ended the worker's processes."""
    opened = getattr(dask_worker, "rpp_opened", None)
    if opened is None:
        return False
    opened.idle_timer.function()
    return opened.decoders is None and not multiprocessing.active_children()


def test_a_local_build_ends_its_decoders(
    cache: Path, teacher: Path, shards: Path, names: Path, tmp_path: Path
) -> None:
    before = set(decoders_of_all())
    build_cache(settings(shards, names, tmp_path / "zarr", teacher, threads=None, decode_processes=3))
    assert not set(decoders_of_all()) - before
    assert_same_arrays(tmp_path / "zarr", cache)


def test_a_part_that_kills_its_workers_ends_the_build_and_is_named(
    teacher: Path, names: Path, tmp_path: Path
) -> None:
    """It is tried again after all others, which are computed."""
    members = webdataset_members(0, 12)
    members[9] = (members[9][0], b"poison")
    source = write_shard(tmp_path / "poison.tar", members)
    (tmp_path / "preload.py").write_text(DIES_OF_POISON)
    deaths = {
        "distributed.worker.preload": [str(tmp_path / "preload.py")],
        "distributed.scheduler.allowed-failures": 0,
    }
    said = "part 1 cannot be computed: it was started 2 times and its worker died each time"
    with forked_workers(), dask.config.set(deaths), pytest.raises(RppError, match=said):
        build_cache(settings(source, names, tmp_path / "zarr", teacher, workers=2))
    assert CacheStore.open(tmp_path / "zarr").parts.committed() == [0, 2, 3]


def test_a_build_does_not_sample_the_stacks_of_its_threads(
    teacher: Path, shards: Path, names: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dask does, hundreds of times a build; before Python 3.12 a sample can deadlock the process."""
    samples: list[str] = []

    def sampled() -> dict[int, Any]:
        samples.append(threading.current_thread().name)
        return {}

    monkeypatch.setattr(sys, "_current_frames", sampled)
    build_cache(settings(shards, names, tmp_path / "zarr", teacher, part_size=1))
    assert samples == []


def test_nor_do_worker_processes() -> None:
    def samples(dask_worker: Any) -> bool:
        return "profile" in dask_worker.periodic_callbacks

    with forked_workers(), dask_client(ComputeSettings(workers=2)) as client:
        assert [*client.run(samples).values()] == [False] * 2


def test_a_lost_scheduler_ends_the_build_with_one_line(
    processes: ForkServer, teacher: Path, shards: Path, names: Path, tmp_path: Path
) -> None:
    with dask_scheduler(processes, tmp_path) as (address, scheduler):
        asked = settings(shards, names, tmp_path / "zarr", teacher, scheduler=address)
        notes: list[str] = []

        def on_note(note: str) -> None:
            notes.append(note)
            if "no Dask worker" in note:
                scheduler.kill()

        with (
            dask.config.set({"distributed.comm.timeouts.connect": "1s"}),
            pytest.raises(RppError, match=r"the Dask scheduler is gone; .*run the same command again"),
        ):
            build_cache(asked, on_note)
    assert any("no Dask worker is connected; waiting for one" in note for note in notes)


def test_a_stopped_build_leaves_no_work_on_the_workers_of_a_cluster(
    teacher: Path, names: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_shards(tmp_path / "shards", shards=1, samples=300, width=8, height=8)
    batches: list[int] = []

    def slowly(*given: Any, **options: Any) -> Any:
        on_batch = options["on_batch"]

        def counted(samples: int) -> None:
            batches.append(samples)
            if samples == 20:
                os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.05)
            on_batch(samples)

        return compute(*given, **options | {"on_batch": counted})

    compute = cluster.part_arrays
    monkeypatch.setattr(cluster, "part_arrays", slowly)
    with LocalCluster(
        n_workers=1, threads_per_worker=1, processes=False, dashboard_address="127.0.0.1:0"
    ) as running:
        asked = settings(
            source, names, tmp_path / "zarr", teacher, scheduler=running.scheduler_address, part_size=150
        )
        with pytest.raises(RppError, match="stopped; what is committed is safe"):
            build_cache(asked)
        for _ in range(100):
            before = len(batches)
            time.sleep(0.3)
            if len(batches) == before:
                break
        assert len(batches) < 30
    monkeypatch.undo()
    assert CacheStore.open(tmp_path / "zarr").parts.committed() == []


def test_a_worker_opens_cache_and_teacher_once_and_reads_no_other_rows(
    cache: Path, teacher: Path, shards: Path, names: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads, opens = [], []
    load, open_store = cluster.load_model, CacheStore.open
    monkeypatch.setattr(cluster, "load_model", lambda *given: [loads.append(given), load(*given)][1])
    with LocalCluster(
        n_workers=1, threads_per_worker=3, processes=False, dashboard_address="127.0.0.1:0"
    ) as running:
        asked = settings(shards, names, tmp_path / "zarr", teacher, scheduler=running.scheduler_address)
        CacheStore.open(build_cache(asked).path, writable=True).parts.withdraw(2)
        loads.clear()
        monkeypatch.setattr(
            CacheStore, "open", lambda *given, **more: [opens.append(more), open_store(*given, **more)][1]
        )
        for part in (0, 1, 3):
            open_store(tmp_path / "zarr", writable=True).parts.withdraw(part)
        build_cache(asked)
    assert (len(loads), opens.count({"writable": True})) == (1, 2)  # the caller writes to it as well
    assert_same_arrays(tmp_path / "zarr", cache)


def test_lack_of_device_memory_is_reported_with_the_remedy(
    teacher: Path, shards: Path, names: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*given: Any, **options: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(cluster, "part_arrays", full)
    with pytest.raises(
        RppError, match="is out of memory with 4 images at a time: choose a smaller --batch-size"
    ):
        build_cache(settings(shards, names, tmp_path / "zarr", teacher))


def test_progress_subtracts_lost_samples_and_never_exceeds_the_total() -> None:
    with counting("samples", 25) as counter:
        progress = PartProgress(counter, {0: 10, 1: 10, 2: 5}, [1, 2])
        assert counter.done == 10
        progress.report(1, "left", 8)
        progress.report(2, "right", 3)
        assert counter.done == 21
        progress.forget_lost_workers({"right"})
        assert counter.done == 13
        progress.report(1, "right", 4)
        progress.finished(2)
        progress.report(2, "right", 3)  # late: the part is counted
        assert counter.done == 19
        progress.finished(1)
        progress.forget_lost_workers(set())
        assert counter.done == 25


@pytest.mark.parametrize(("workers", "threads"), [(None, 6), (1, 6), (2, 3), (4, 1)])
def test_local_workers_share_the_cores(
    workers: int | None, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("teacher_cache.compute.workers.usable_cores", lambda: 6)
    asked = ComputeSettings(workers=workers, device="cpu")
    before = torch.get_num_threads()
    torch.set_num_threads(6)
    try:
        here = on_this_machine(asked)
    finally:
        torch.set_num_threads(before)
    assert (here.threads, here.torch_threads) == (threads, threads)
    chosen = on_this_machine(asked.model_copy(update={"threads": 9, "torch_threads": 5}))
    assert (chosen.threads, chosen.torch_threads) == (9, 5)


# Prints whether SIGHUP, the first signal, is blocked: here, in the two workers and in the resource tracker.
HANGUP = """
import os, re
from multiprocessing.resource_tracker import _resource_tracker
from pathlib import Path
from teacher_cache.command_settings import ComputeSettings
from teacher_cache.compute.workers import dask_client
with dask_client(ComputeSettings(workers=2, device="cpu")) as client:
    workers = set(client.run(os.getpid).values())
    for process in (os.getpid(), *workers, _resource_tracker._pid):
        status = Path(f"/proc/{process}/status").read_text()
        print(int(re.findall(r"SigBlk:\\s*(\\w+)", status)[0], 16) & 1)
"""


def test_a_closed_terminal_reaches_only_the_process_that_stops_the_others() -> None:
    ended = subprocess.run([sys.executable, "-c", HANGUP], capture_output=True, text=True)
    assert (ended.stdout.split(), ended.stderr) == (["0", "1", "1", "1"], "")
