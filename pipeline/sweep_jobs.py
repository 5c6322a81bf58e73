"""Run the jobs of a sweep in processes of their own, on this machine or on Dask workers.

A process runs one job after another, since importing torch takes as long as a small run. If it dies, only its
current job fails, with a reason. If the sweep stops or dies, each job writes a checkpoint and ends.
"""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing, suppress
from pathlib import Path
from queue import SimpleQueue
from select import select

import torch
from dask.distributed import KilledWorker, get_worker
from dask.distributed import as_completed as dask_as_completed

from pipeline.sweep_process import Job
from teacher_cache.command_settings import ComputeSettings
from teacher_cache.compute.workers import dask_client, scheduler_needed

POLL_SECONDS = 0.2  # between two checks whether a job has ended or is to stop
LONGEST_REASON = 500  # characters
Done = Callable[[str, str | None], None]  # name of a job, and why it failed or None


def run_here(jobs: Mapping[str, Job], processes: int, on_done: Done, inherited: Iterable[int] = ()) -> None:
    """Run jobs on this machine in a number of processes, which share its CUDA devices and cores.

    Not a LocalCluster of Dask: it cannot pass file descriptors to its workers or give each its own
    environment, and takes seconds to start.

    Args:
        on_done: called when a job has ended.
        inherited: file descriptors that the processes keep open until they end, such as the sweep's lock.

    Raises:
        KeyboardInterrupt: after the jobs have been stopped.
    """
    stop = threading.Event()
    runners = [Runner(environment, inherited) for environment in _environments(processes)]
    idle: SimpleQueue[Runner] = SimpleQueue()
    for runner in runners:
        idle.put(runner)

    def work(job: Job) -> str | None:
        runner = idle.get()
        try:
            return runner.run(job, stop.is_set)
        finally:
            idle.put(runner)

    with ThreadPoolExecutor(processes) as pool:
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


def _environments(processes: int) -> list[dict[str, str]]:
    """Return the environment variables of each process that divide threads and CUDA devices among them."""
    if processes == 1:
        return [{}]
    environments: list[dict[str, str]] = [{} for _ in range(processes)]
    if "OMP_NUM_THREADS" not in os.environ:
        for environment in environments:
            environment["OMP_NUM_THREADS"] = str(max(1, torch.get_num_threads() // processes))
    if count := torch.cuda.device_count():
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        devices = visible if len(visible) == count and all(visible) else [str(n) for n in range(count)]
        for number, environment in enumerate(environments):
            environment["CUDA_VISIBLE_DEVICES"] = devices[number % count]
    return environments


@scheduler_needed("what is done is kept")
def run_on_dask(jobs: Mapping[str, Job], scheduler: str, on_done: Done) -> None:
    """Run jobs on the workers of a Dask scheduler, as many at a time as the workers have threads.

    Raises:
        UsageError: no scheduler answers.
        RppError: the connection to the scheduler is lost.
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

    with closing(Runner()) as runner:
        return runner.run(job, stopped)


class Runner:
    """A process that runs jobs. It is started with the first job, and again after it has died."""

    def __init__(self, environment: Mapping[str, str] | None = None, inherited: Iterable[int] = ()) -> None:
        """Args:
        environment: variables that differ from those of this process.
        inherited: file descriptors that the process keeps open.
        """
        self._environment, self._inherited = {**os.environ, **(environment or {})}, tuple(inherited)
        self._process: subprocess.Popen[bytes] | None = None

    def run(self, job: Job, stopped: Callable[[], bool]) -> str | None:
        """Run one job.

        Args:
            stopped: checked repeatedly; if it returns True, the job writes a checkpoint and the process ends.

        Returns:
            Why the job failed, in one line; None if it succeeded.
        """
        if stopped():
            return "stopped"
        process = self._process = self._process or self._start(job.folder)
        assert process.stdin is not None
        assert process.stdout is not None
        with suppress(BrokenPipeError):  # it has died; its exit code tells more
            process.stdin.write(job.model_dump_json().encode() + b"\n")
            process.stdin.flush()
        while not (answered := select([process.stdout], [], [], POLL_SECONDS)[0]):
            if stopped():
                self.close()
                return "stopped"
            if process.poll() is not None:  # its children may keep the output open
                break
        if answered and (answer := process.stdout.readline()):
            failed: str | None = json.loads(answer)["failed"]
            return failed
        code = self.close()
        if code < 0:
            name = signal.Signals(-code).name
            return f"killed by {name}" + (" (did the memory run out?)" if name == "SIGKILL" else "")
        return f"its process ended with exit code {code}: {_last_line(job.log)} (see {job.log})"

    def _start(self, folder: Path) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", "pipeline.sweep_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=self._environment,
            cwd=folder,
            pass_fds=self._inherited,
            start_new_session=True,  # Ctrl-C reaches only the sweep, which stops its jobs
        )

    def close(self) -> int:
        """End the process, after a checkpoint if it runs a job; return its exit code."""
        process, self._process = self._process, None
        if process is None:
            return 0
        with suppress(BrokenPipeError), process:  # closes its input, and waits
            pass
        return process.returncode


def _last_line(log: Path) -> str:
    """Return the last line of a log: of a traceback the exception."""
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError as error:
        return f"no log, {error.strerror}"
    return next((line for line in reversed(lines) if line.strip()), "its log is empty")[:LONGEST_REASON]
