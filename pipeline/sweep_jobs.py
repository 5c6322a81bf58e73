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
import traceback
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import CancelledError, ThreadPoolExecutor, as_completed
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from select import select
from typing import Any

import torch
from dask.distributed import KilledWorker, get_worker
from dask.distributed import as_completed as dask_as_completed
from distributed.comm import CommClosedError
from pydantic import BaseModel, ConfigDict

from pipeline.run import train_and_evaluate, write_results
from student_train.evaluate import EvalSettings, evaluate
from student_train.run_record import FREE_ON_RESUME
from student_train.settings import TrainSettings
from teacher_cache.cluster import ComputeSettings, dask_client
from teacher_cache.errors import RppError

STDIN, STDOUT, STDERR = 0, 1, 2
POLL_SECONDS = 0.2  # how often a run's end, and the wish to stop it, are looked for
LONGEST_REASON = 500  # characters


class Job(BaseModel):
    """What one process does: train and evaluate, or evaluate alone.

    Attributes:
        train: None: the evaluations are all.
        results: where they go; of a run its own `results.json`.
        log: what the process prints.
        folder: the working directory, from which relative places start.
    """

    model_config = ConfigDict(frozen=True)

    train: TrainSettings | None
    evals: tuple[EvalSettings, ...]
    results: Path
    log: Path
    folder: Path

    @property
    def asked(self) -> dict[str, Any]:
        """What the results are of: written beside them, so that another wish is seen as one."""
        train = self.train and self.train.model_dump(mode="json", exclude=FREE_ON_RESUME)
        return {"train": train, "evals": [settings.model_dump(mode="json") for settings in self.evals]}

    def found(self) -> dict[str, Any] | None:
        """The results, if they are there already and are those of this job."""
        try:
            results = json.loads(self.results.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        whole = isinstance(results, dict) and results.get("asked") == self.asked
        return results if whole and len(results.get("evals", ())) == len(self.evals) else None


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
        except (CommClosedError, CancelledError) as error:
            raise RppError(
                "the Dask scheduler is gone; what is done is kept: run the same command again"
            ) from error
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
            [sys.executable, "-m", "pipeline.sweep_jobs"],
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


def main() -> None:
    """Do the jobs that come on standard input, a line each; answer each on standard output with a line."""
    jobs: SimpleQueue[bytes] = SimpleQueue()
    busy = threading.Event()

    def take() -> None:
        with open(STDIN, "rb", closefd=False) as lines:
            for line in lines:
                jobs.put(line)
        jobs.put(b"")  # whoever started this process has ended, however that was
        if busy.is_set():
            os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=take, daemon=True).start()
    with os.fdopen(os.dup(STDOUT), "wb", buffering=0) as answers:
        while line := jobs.get():
            busy.set()
            failed = do_job(Job.model_validate_json(line))
            busy.clear()
            answers.write(json.dumps({"failed": failed}).encode() + b"\n")


def do_job(job: Job) -> str | None:
    """Do a job in this process, whose output goes to the job's log; gives why it failed, if it did."""
    with open(job.log, "ab", buffering=0) as log:
        for stream in (STDOUT, STDERR):
            os.dup2(log.fileno(), stream)
    try:
        before = {"asked": job.asked}
        if job.train is None:
            write_results(job.results, before | {"evals": [evaluate(settings) for settings in job.evals]})
        else:
            train_and_evaluate(job.train, job.evals, before, lambda line: print(line, flush=True))
    except RppError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return str(error)
    except Exception as error:
        traceback.print_exc()
        return f"{type(error).__name__}: {str(error)[:LONGEST_REASON]} (see {job.log})"
    return None


if __name__ == "__main__":
    main()
