"""What each process of `test_distributed.py` runs under torchrun: a list of runs, one after the other.

Called with a JSON list of [kind, settings of rank 0, what differs in rank 1]. What a run raised, and how it
ended, goes to PROCESS-RANK.json in the folder of the runs.
"""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from student_train.training.loop import train
from student_train.training.losses.hard import HardLoss
from student_train.training.settings import TrainSettings
from teacher_cache.errors import RppError

RANK = int(os.environ["RANK"])


def when_logged(out: Path, lines: int, act: Any) -> None:
    """Act in a thread as soon as the run has logged so many steps."""

    def wait() -> None:
        metrics = out / "metrics.jsonl"
        while not (metrics.exists() and len(metrics.read_text().splitlines()) > lines):
            time.sleep(0.002)
        act()

    threading.Thread(target=wait, daemon=True).start()


def break_and_stop() -> None:
    """From here on every loss is not a number, and the second process is to stop behind the third step."""
    steps, compute = 0, HardLoss.__call__

    def broken(*arguments: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == 3 and RANK == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return compute(*arguments) * torch.nan

    HardLoss.__call__ = broken  # type: ignore[method-assign]


def main() -> None:
    torch.set_num_threads(1)
    # torchrun ends the process that is left as soon as the other died: not before it could say how it fared
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    dist.init_process_group("gloo")  # once for all runs
    compute = HardLoss.__call__
    folder, runs = Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text())
    said = []
    for kind, values, of_second in runs:
        settings = TrainSettings(**values, **(of_second if RANK == 1 else {}))
        if kind == "stop" and RANK == 1:
            when_logged(Path(values["out"]), 3, lambda: os.kill(os.getpid(), signal.SIGTERM))
        if kind == "die" and RANK == 1:
            when_logged(Path(values["out"]), 3, lambda: os._exit(7))
        if kind == "break":
            break_and_stop()
        try:
            done = train(settings)
            said.append(["done", done.steps, done.mode])
        except RppError as error:
            said.append([type(error).__name__, str(error), error.exit_code])
        HardLoss.__call__ = compute  # type: ignore[method-assign]
        (folder / f"process-{RANK}.json").write_text(json.dumps(said))


main()
