"""A process of a sweep: reads jobs from standard input and runs one after another.

Imports neither Dask nor stage one's build: a run needs neither, and importing them takes seconds.
"""

import io
import json
import os
import signal
import sys
import threading
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from pydantic import BaseModel, ConfigDict

from pipeline.student_run import Evaluated, train_and_evaluate, write_results
from student_train.evaluation.evaluate import evaluate
from student_train.evaluation.feature_store import FeatureStore
from student_train.evaluation.settings import EvalSettings
from student_train.runs.record import FREE_ON_RESUME
from student_train.training.settings import TrainSettings
from teacher_cache.errors import RppError, UsageError

STDIN, STDOUT, STDERR = 0, 1, 2


class Request(BaseModel):
    """The settings that decide the results of a job.

    Attributes:
        train: None for the frozen model, which is only evaluated.
    """

    model_config = ConfigDict(frozen=True)

    train: TrainSettings | None
    evals: tuple[EvalSettings, ...]

    def record(self) -> dict[str, Any]:
        """Return the request as it is stored with the results, without options that change no result."""
        return self.model_dump(mode="json", include={"train", "evals"}, exclude={"train": FREE_ON_RESUME})


class JobResults(BaseModel):
    """The results of a finished job, as its file has them."""

    asked: Request
    train: dict[str, Any] | None = None
    evals: list[dict[str, Any]]


class Job(Request):
    """A run to train and evaluate, or the frozen model to evaluate.

    Attributes:
        results: file of the results; a run's own `results.json`.
        features: folder of features of frozen models, which the jobs of a sweep share.
        log: file for everything that the job prints.
        folder: working directory, from which relative paths start.
    """

    results: Path
    features: Path
    log: Path
    folder: Path

    def stored_results(self) -> JobResults | None:
        """Return the results, or None if there are none of this request or not of all evaluations.

        The stored request is read through today's settings: options that are newer than it have defaults.
        """
        try:
            found = JobResults.model_validate_json(self.results.read_bytes())
        except (OSError, ValueError, UsageError):  # missing, damaged, or settings that are refused today
            return None
        same = found.asked.record() == self.record()
        return found if same and len(found.evals) == len(self.evals) else None


def main() -> None:
    """Run the jobs that arrive on standard input, one JSON line each; answer each with one JSON line."""
    for stream in (sys.stdout, sys.stderr):  # they go to the logs of jobs, which are UTF-8 in any locale
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    jobs: SimpleQueue[bytes] = SimpleQueue()
    busy = threading.Event()

    def receive() -> None:
        with open(STDIN, "rb", closefd=False) as lines:
            for line in lines:
                jobs.put(line)
        jobs.put(b"")  # the process that sends jobs has closed the pipe, or has died
        if busy.is_set():
            os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=receive, daemon=True).start()
    with os.fdopen(os.dup(STDOUT), "wb", buffering=0) as answers:
        while line := jobs.get():
            busy.set()
            try:
                failed = run_job(Job.model_validate_json(line))
            finally:
                busy.clear()
            answers.write(json.dumps({"failed": failed}).encode() + b"\n")


def run_job(job: Job) -> str | None:
    """Run a job in this process, with its output in the job's log.

    Any exception but an `RppError` ends the process, with the traceback in the log.

    Returns:
        Why the job failed; None if it succeeded.
    """
    with open(job.log, "ab", buffering=0) as log:
        for stream in (STDOUT, STDERR):
            os.dup2(log.fileno(), stream)
    before, store = {"asked": job.record()}, FeatureStore(job.features)
    try:
        if job.train is None:
            found = [evaluate(settings, store) for settings in job.evals]
            write_results(job.results, before | {"evals": found})
        else:
            evals = [Evaluated(settings) for settings in job.evals]
            train_and_evaluate(job.train, evals, before, lambda line: print(line, flush=True), store)
    except RppError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return str(error)
    return None


if __name__ == "__main__":
    main()
