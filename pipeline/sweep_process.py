"""What a process of a sweep does: one job after another, as they come on its standard input.

Imports neither Dask's scheduler and arrays nor stage one's build: a run needs none of them, and importing
them takes seconds.
"""

import json
import os
import signal
import sys
import threading
import traceback
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from pydantic import BaseModel, ConfigDict

from pipeline.student_run import train_and_evaluate, write_results
from student_train.evaluation.evaluate import evaluate
from student_train.evaluation.settings import EvalSettings
from student_train.runs.record import FREE_ON_RESUME
from student_train.training.settings import TrainSettings
from teacher_cache.errors import RppError

STDIN, STDOUT, STDERR = 0, 1, 2
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
    try:
        with open(job.log, "ab", buffering=0) as log:
            for stream in (STDOUT, STDERR):
                os.dup2(log.fileno(), stream)
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
