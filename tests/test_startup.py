"""Imports of commands before any work: help, completion and refusals import neither torch nor a store.

Each command runs in a fresh process, and what it imported is looked at, not how long it took:
`benchmarks/startup.py` measures that, over the same commands.
"""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from pipeline.settings import DemoSettings, SweepSettings
from student_train.evaluation.settings import EvalOptions, PredictSettings
from student_train.interchange.settings import (
    ClassifierSettings,
    HuggingFaceSettings,
    ImportSettings,
    OnnxSettings,
)
from student_train.training.settings import TrainSettings
from teacher_cache.command_settings import BuildSettings, ExtendSettings, RelabelSettings
from teacher_cache.settings import flat_fields, panels_of
from tests.student_train.conftest import cache_path as cache_path
from tests.student_train.conftest import demo_cache_path as demo_cache_path
from tests.student_train.conftest import run_of as run_of

ROOT = Path(__file__).parents[1]


def load_benchmark() -> Any:
    """`benchmarks/startup.py`, whose commands are these tests'."""
    spec = importlib.util.spec_from_file_location("startup", ROOT / "benchmarks" / "startup.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["startup"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


STARTUP = load_benchmark()
MODELS = {"torch", "torchvision", "open_clip", "timm", "transformers"}
HEAVY = MODELS | {"dask", "distributed", "zarr", "pyarrow"}
RUN = """
import json, sys
from importlib import import_module
main = import_module(sys.argv[1]).main
sys.argv = sys.argv[2:]
try:
    main()
except SystemExit as ended:
    code = ended.code
sys.stderr.write("\\n" + json.dumps([code or 0, sorted({name.partition(".")[0] for name in sys.modules})]))
"""


def call(words: str, folder: Path, **environment: str) -> tuple[int, set[str], str]:
    """Return a command's exit code, the packages that its process imported, and its output."""
    program, *arguments = words.split()
    command = [sys.executable, "-c", RUN, STARTUP.PROGRAMS[program], program, *arguments]
    env = os.environ | {"PYTHONPATH": str(ROOT)} | environment
    ended = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    printed, _, report = ended.stderr.rpartition("\n")
    code, imported = json.loads(report)
    return code, set(imported), ended.stdout + printed


@pytest.mark.parametrize("words", STARTUP.HELP)
def test_help_imports_nothing_heavy_and_names_every_default(words: str, tmp_path: Path) -> None:
    code, imported, printed = call(words, tmp_path, COLUMNS="400", TERM="dumb")
    assert code == 0
    assert not imported & HEAVY
    assert "<bool>" not in printed, "a type beside a flag"
    optional = [line for line in printed.splitlines() if "│    --" in line or "│ --" in line]
    assert bool(optional) == words.endswith("--help")
    assert not [line for line in optional if "<" in line and "default: " not in line]


@pytest.mark.parametrize("words", STARTUP.REFUSALS)
def test_refusals_of_options_import_nothing_heavy(words: str, tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    code, imported, printed = call(words, tmp_path)
    assert code == 2
    assert "Traceback" not in printed
    assert not imported & HEAVY
    assert [path.name for path in tmp_path.iterdir()] == ["nothing"], "nothing was written"


def test_completion_imports_nothing_heavy(tmp_path: Path) -> None:
    asked = {"_RPP_TRAIN_COMPLETE": "complete_bash", "COMP_WORDS": "rpp-train --opt", "COMP_CWORD": "1"}
    code, imported, printed = call("rpp-train", tmp_path, **asked)
    assert (code, printed.split()) == (0, ["--optimizer"])
    assert not imported & HEAVY


def test_reading_a_cache_needs_no_model(cache_path: Path, tmp_path: Path) -> None:
    for verb, said in (("info", "samples: "), ("verify", "ok")):
        code, imported, printed = call(f"rpp-cache {verb} {cache_path}", tmp_path)
        assert (code, said in printed) == (0, True)
        assert not imported & MODELS


def test_reading_runs_needs_no_model(run_of: Callable[[str], Path], tmp_path: Path) -> None:
    run_path = run_of("text")
    code, imported, printed = call("rpp compare" + f" {run_path}" * 8, tmp_path)
    assert (code, "loss" in printed) == (0, True)
    assert not imported & HEAVY
    # a pipe has no width: in 80 columns it would be several tables
    assert len([line for line in printed.splitlines() if line.startswith("│ loss")]) == 1
    code_of_metrics = (
        "import sys; from pathlib import Path; from student_train import read_metrics\n"
        f"assert list(read_metrics(Path({str(run_path)!r})))\n"
        "print(*sys.modules)"
    )
    loaded = subprocess.check_output([sys.executable, "-c", code_of_metrics], cwd=ROOT, text=True)
    assert not {name.partition(".")[0] for name in loaded.split()} & HEAVY


def test_versions_are_named(tmp_path: Path) -> None:
    _, _, printed = call("rpp-train --version", tmp_path)
    found = dict(line.split(" ", 1) for line in printed.splitlines())
    assert list(found) == ["rpp", "Python", "torch", "open_clip", "zarr", "CUDA"]
    code = "import torch, open_clip, zarr; print(torch.__version__, open_clip.__version__, zarr.__version__)"
    real = subprocess.check_output([sys.executable, "-c", code], text=True).split()
    assert [found["torch"], found["open_clip"], found["zarr"]] == real


@pytest.mark.parametrize(
    "settings",
    [
        *(BuildSettings, ExtendSettings, RelabelSettings, TrainSettings, EvalOptions, PredictSettings),
        *(ImportSettings, ClassifierSettings, HuggingFaceSettings, OnnxSettings, SweepSettings, DemoSettings),
    ],
)
def test_every_option_is_in_one_panel(settings: type[BaseModel]) -> None:
    placed = [name for names in panels_of(settings).values() for name in names]
    assert sorted(placed) == sorted(flat_fields(settings))
    assert len(panels_of(settings)) > 1
