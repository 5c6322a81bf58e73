"""The runs of a sweep in processes beside it: here, or on Dask's workers.

A process does one job after another, since importing torch takes as long as a small run. One that dies takes
only its job with it, and the outcome says why. What a job prints is in its log. Jobs end, with a checkpoint,
when whoever started them stops or is gone.
"""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from select import select

import torch
from dask.distributed import KilledWorker, get_worker
from dask.distributed import as_completed as dask_as_completed

from pipeline.sweep_process import Job
from teacher_cache.command_settings import ComputeSettings
from teacher_cache.compute.workers import dask_client, scheduler_needed

POLL_SECONDS = 0.2  # how often a run's end, and the wish to stop it, are looked for
Done = Callable[[str, str | None], None]  # a job's name, and why it failed, if it did


def run_here(jobs: Mapping[str, Job], at_once: int, on_done: Done, held: Iterable[int] = ()) -> None:
    """Run jobs on this machine, so many at a time; CUDA devices and cores are shared out among them.

    Args:
        on_done: called with a job's name and, if it failed, why.
        held: file descriptors that the runs keep open as long as they live.

    Raises:
        KeyboardInterrupt: after the runs have been stopped.
    """
    stop = threading.Event()
    runners = [Runner(environment, held) for environment in _shares(at_once)]
    slots: SimpleQueue[Runner] = SimpleQueue()
    for runner in runners:
        slots.put(runner)

    def work(job: Job) -> str | None:
        runner = slots.get()
        try:
            return runner.do(job, stop.is_set)
        finally:
            slots.put(runner)

    with ThreadPoolExecutor(at_once) as pool:
        names = {pool.submit(work, job): name for name, job in jobs.items()}
        try:
            for future in as_completed(names):
                on_done(names[future], future.result())
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise
        finally:
            for runner in runners:
                runner.close()


def _shares(at_once: int) -> list[dict[str, str]]:
    """Of each of the processes that run at a time, what its environment says of devices and threads."""
    if at_once == 1:
        return [{}]
    shares: list[dict[str, str]] = [{} for _ in range(at_once)]
    if "OMP_NUM_THREADS" not in os.environ:
        for share in shares:
            share["OMP_NUM_THREADS"] = str(max(1, torch.get_num_threads() // at_once))
    if count := torch.cuda.device_count():
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        devices = visible if len(visible) == count and all(visible) else [str(n) for n in range(count)]
        for number, share in enumerate(shares):
            share["CUDA_VISIBLE_DEVICES"] = devices[number % count]
    return shares


@scheduler_needed("what is done is kept")
def run_on_dask(jobs: Mapping[str, Job], scheduler: str, on_done: Done) -> None:
    """Run jobs on the workers of a Dask scheduler, as many at a time as these have threads.

    Raises:
        UsageError: no scheduler answers.
        RppError: the scheduler is gone.
    """
    with dask_client(ComputeSettings(scheduler=scheduler)) as client:
        tag = os.urandom(8).hex()
        names = {
            client.submit(_run_on_worker, job, key=f"rpp-sweep-{tag}-{number}", pure=False): name
            for number, (name, job) in enumerate(jobs.items())
        }
        try:
            for future in dask_as_completed(names):
                error = future.exception()
                if isinstance(error, KilledWorker):
                    on_done(names[future], f"its Dask worker died, {error.allowed_failures + 1} times")
                elif error is not None:
                    raise error
                else:
                    on_done(names[future], future.result())
        finally:
            client.cancel(list(names))


def _run_on_worker(job: Job) -> str | None:
    worker = get_worker()
    key = worker.get_current_task()

    def stopped() -> bool:
        task = worker.state.tasks.get(key)
        return task is None or task.state == "cancelled"

    runner = Runner()
    try:
        return runner.do(job, stopped)
    finally:
        runner.close()


class Runner:
    """A process that does jobs; begun with the first one, and anew when it has died."""

    def __init__(self, environment: Mapping[str, str] | None = None, held: Iterable[int] = ()) -> None:
        self._environment, self._held = {**os.environ, **(environment or {})}, tuple(held)
        self._process: subprocess.Popen[bytes] | None = None

    def do(self, job: Job, stopped: Callable[[], bool]) -> str | None:
        """Do one job.

        Args:
            stopped: asked now and then; true ends the process, with a checkpoint.

        Returns:
            Why it failed, on one line; None if it did not.
        """
        if stopped():
            return "stopped"
        process = self._process = self._process or self._begin(job.folder)
        assert process.stdin is not None
        assert process.stdout is not None
        with suppress(BrokenPipeError):  # it has died: its exit code says more
            process.stdin.write(job.model_dump_json().encode() + b"\n")
            process.stdin.flush()
        while not (answered := select([process.stdout], [], [], POLL_SECONDS)[0]):
            if stopped():
                self.close()
                return "stopped"
            if process.poll() is not None:  # processes that it began may hold its output open a little longer
                break
        if answered and (answer := process.stdout.readline()):
            why: str | None = json.loads(answer)["failed"]
            return why
        code = self.close()
        if code < 0:
            name = signal.Signals(-code).name
            return f"killed by {name}" + (" (did the memory run out?)" if name == "SIGKILL" else "")
        return f"its process ended with exit code {code}; see {job.log}"

    def _begin(self, folder: Path) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", "pipeline.sweep_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=self._environment,
            cwd=folder,
            pass_fds=self._held,
            start_new_session=True,  # the terminal's Ctrl-C is for the sweep, which ends its runs one by one
        )

    def close(self) -> int:
        """End the process: at once where it waits, with a checkpoint where it works; gives its exit code."""
        process, self._process = self._process, None
        if process is None:
            return 0
        with suppress(BrokenPipeError), process:  # closes its input, and waits
            pass
        return process.returncode
