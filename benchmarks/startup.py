"""Processor seconds and megabytes of commands that need no model: help, refusals, reading records.

python benchmarks/startup.py --json

Each command runs in a process of its own, `python -c pass` beside them, and the median of several rounds is
printed. The commands are those that `tests/test_startup.py` looks into for what they import.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer

from pipeline.demo.clips import STUDENT, unpack_clip

PROGRAMS = {"rpp": "pipeline.cli", "rpp-cache": "teacher_cache.cli", "rpp-train": "student_train.cli"}
DEMO = Path(__file__).parents[1] / "pipeline" / "demo"

# Words of a command behind its program; a folder without a cache, run or file in it is meant by `nothing`.
HELP = [
    *(f"{program} {option}" for program in PROGRAMS for option in ("--help", "--version")),
    *(
        f"rpp-cache {verb} --help"
        for verb in ["build", "info", "verify", "relabel", "extend", "stats", "export"]
    ),
    *(
        f"rpp {verb} --help"
        for verb in [
            "run",
            "sweep",
            "compare",
            "eval",
            "predict",
            "import",
            "report",
            "models",
            "demo",
            "export",
        ]
    ),
    *(f"rpp export {what} --help" for what in ("classifier", "huggingface", "onnx")),
]
REFUSALS = [
    "rpp-train --lr -1 --cache nothing",
    "rpp-train --learning-rate 1 --cache nothing",
    "rpp-train --cache nothing",
    "rpp-train",
    "rpp-cache build",
    "rpp-cache build --images nothing.tar --classes imagenet-1k --out new --teacher ViT-B-32 --part-size 0",
    "rpp-cache build --images nothing.tar --classes imagenet-1k --out new --teacher ViT-B-32",
    "rpp-cache build --images . --classes nothing.txt --out new --teacher ViT-B-32",
    "rpp-cache build --images . --classes imagenet-1k --out new --teacher ViT-B-32 --pretrained nothing.pt",
    "rpp-cache info nothing",
    "rpp-cache verify nothing",
    "rpp-cache stats nothing",
    "rpp-cache export nothing --out new.parquet",
    "rpp-cache relabel nothing --name german --classes german.csv",
    "rpp-cache extend nothing --views 2",
    "rpp run nothing.toml",
    "rpp sweep nothing.toml",
    "rpp compare nothing nothing",
    "rpp eval --student nothing --images nothing.tar",
    "rpp eval --student zero-shot --images nothing --cache nothing --metrics magic",
    "rpp predict nothing.jpg --student nothing --classes imagenet-1k",
    "rpp import nothing.pt --model ViT-B-16 --pretrained openai --out new",
    "rpp report nothing",
    "rpp export classifier --student nothing --classes imagenet-1k --out new",
    "rpp export huggingface --student nothing --out new",
    "rpp export onnx --student nothing --out new.onnx",
]
RECORDS = ["rpp-cache info cache", "rpp-cache verify cache", "rpp compare run-0 run-1"]


@dataclass(frozen=True)
class Cost:
    """Median over the rounds, of one command.

    Attributes:
        cpu_seconds: user and system time of the process.
        megabytes: the largest resident memory it had.
        exit_code: of the last round.
    """

    cpu_seconds: float
    megabytes: float
    exit_code: int


def call(words: str) -> list[str]:
    """The command line of a command as Python runs it, so that no installed script is needed."""
    program, *arguments = words.split()
    return [sys.executable, "-m", PROGRAMS[program], *arguments]


def cost(command: list[str], folder: Path, rounds: int, **environment: str) -> Cost:
    """Run a command in `folder` and measure it."""
    seconds, megabytes, code = [], [], 0
    for _ in range(rounds):
        process = subprocess.Popen(
            command,
            cwd=folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": str(DEMO.parents[1])} | environment,
        )
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = code = os.waitstatus_to_exitcode(status)
        seconds.append(used.ru_utime + used.ru_stime)
        megabytes.append(used.ru_maxrss / (1024 if sys.platform != "darwin" else 1024**2))
    return Cost(round(statistics.median(seconds), 3), round(statistics.median(megabytes), 1), code)


def make_records(folder: Path) -> None:
    """The demo's cache, and two runs of one step on it."""
    train = (
        f"rpp-train --cache cache --max-steps 1 --log none --workers 0 --images {DEMO}/pictures/noto.parquet"
    )
    for command in (
        f"rpp-cache build --images {DEMO}/pictures/noto.parquet --classes {DEMO}/pictures/classes.txt "
        f"--teacher {unpack_clip(STUDENT, folder)} --out cache",
        f"{train} --out run-0",
        f"{train} --out run-1 --seed 1",
    ):
        env = os.environ | {"PYTHONPATH": str(DEMO.parents[1])}
        subprocess.run(call(command), cwd=folder, check=True, capture_output=True, env=env)


def measure(rounds: int, say: Callable[[str], None]) -> dict[str, Cost]:
    """Costs of all commands, by their words."""
    costs = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_records(folder)
        (folder / "nothing").mkdir()
        costs["python -c pass"] = cost([sys.executable, "-c", "pass"], folder, rounds)
        completion = {
            "_RPP_TRAIN_COMPLETE": "complete_bash",
            "COMP_WORDS": "rpp-train --opt",
            "COMP_CWORD": "1",
        }
        named = "import sys; sys.argv = ['rpp-train']; from student_train.cli import main; main()"
        costs["completion of rpp-train"] = cost([sys.executable, "-c", named], folder, rounds, **completion)
        for words in (*HELP, *REFUSALS, *RECORDS):
            costs[words] = cost(call(words), folder, rounds)
            say(f"{costs[words].cpu_seconds:6.2f} s {costs[words].megabytes:6.0f} MB  {words}")
    return costs


def main(
    rounds: Annotated[int, typer.Option(help="processes a command")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON on standard output")] = False,
) -> None:
    """Print what commands cost before any model is loaded."""
    costs = measure(rounds, lambda line: print(line, file=sys.stderr, flush=True))
    if as_json:
        print(json.dumps({words: asdict(found) for words, found in costs.items()}, indent=1))
        return
    for words, found in costs.items():
        print(f"{found.cpu_seconds:6.2f} s {found.megabytes:6.0f} MB  {words}")


if __name__ == "__main__":
    typer.run(main)
