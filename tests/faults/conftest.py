"""Inputs of the fault tests, and the table of the faults that were tried."""

import os
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from student_train.markdown import table
from tests.faults.attempts import Attempts
from tests.models import write_model
from tests.processes import ForkServer
from tests.teacher_cache.inputs import write_names, write_shards

KILLS = int(os.environ.get("RPP_KILLS", "5"))
SEED = int(os.environ.get("RPP_FAULTS_SEED", "0"))  # of all random moments and places
SAMPLES = 240
TRIED: dict[str, "Tried"] = {}


@dataclass
class Tried:
    """One fault: the promised result, and the result of each try."""

    promised: str
    ends: list[str] = field(default_factory=list)


class Record:
    """Records the results of a fault."""

    def __init__(self, fault: str, promised: str) -> None:
        self._tried = TRIED.setdefault(fault, Tried(promised))

    def __call__(self, end: str, times: int = 1) -> None:
        self._tried.ends += [end] * times


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Write the table for docs/reliability.md of the faults in this session."""
    if TRIED and (path := os.environ.get("RPP_FAULTS_TABLE")):
        rows = [
            [
                fault,
                str(len(tried.ends)),
                tried.promised,
                "; ".join(f"{tried.ends.count(end)} × {end}" for end in dict.fromkeys(tried.ends)),
            ]
            for fault, tried in TRIED.items()
        ]
        lines = table(["fault", "tried", "promised", "what happened"], rows)
        head = f"`RPP_KILLS={KILLS} RPP_FAULTS_SEED={SEED}`"
        Path(path).write_text("\n".join([head, "", *lines]) + "\n", encoding="utf-8")
        terminalreporter.write_line(f"{path}: {len(rows)} faults")


@pytest.fixture(scope="session")
def attempts(processes: ForkServer) -> Attempts:
    """Call commands in processes of their own."""
    return Attempts(processes)


@dataclass(frozen=True)
class Inputs:
    """Inputs of a build and of runs on its cache."""

    folder: Path
    shards: Path
    build: list[str]

    def train(self, cache: Path, out: Path, *others: str) -> list[str]:
        """Return the command of a run of 120 steps with a checkpoint every seven."""
        options = {
            "cache": cache,
            "out": out,
            "images": self.shards,
            "device": "cpu",
            "lr": 0.02,
            "epochs": 10,
        }
        options |= {"batch-size": 20, "log-every": 1, "checkpoint-every": 7, "log": "none"}
        return ["rpp-train", *(f"--{name}={value}" for name, value in options.items()), *others]


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    """Two shards of 120 images; a build of them has 24 parts."""
    folder = tmp_path_factory.mktemp("faults")
    folder.chmod(0o755)
    for above in folder.parents[:2]:  # a process without root's capabilities must get here
        above.chmod(0o755)
    shards = write_shards(folder / "shards", shards=2, samples=SAMPLES // 2)
    teacher = write_model(folder / "teacher", "gelu")
    options = {"images": shards, "classes": write_names(folder / "names.txt"), "teacher": teacher}
    options |= {"part-size": 10, "batch-size": 10, "device": "cpu", "views": 2, "threads": 2}
    return Inputs(
        folder, shards, ["rpp-cache", "build", *(f"--{name}={value}" for name, value in options.items())]
    )


@pytest.fixture(scope="session")
def undisturbed(inputs: Inputs, attempts: Attempts) -> Path:
    """The cache of an undisturbed build."""
    out = inputs.folder / "undisturbed.zarr"
    assert attempts.call(*inputs.build, f"--out={out}").code == 0
    return out
