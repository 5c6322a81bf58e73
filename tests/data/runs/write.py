"""Write a stopped run of each optimizer, and the student it ends with: `python -m tests.data.runs.write OUT`.

The cache is rebuilt from the demo's teacher and pictures; their weights and pixels are in the repository.
"""

import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from pipeline.demo.clips import STUDENT, unpack_clip
from student_train.model.settings import PromptSettings
from student_train.training.checkpoint import Checkpoint
from student_train.training.loop import train
from student_train.training.settings import TrainSettings
from tests.student_train.conftest import PICTURES, build_with

STOPPED_AFTER = 8  # of the twelve steps
RUNS: dict[str, dict[str, Any]] = {
    "sgd": {"towers": "both", "optimizer": "sgd", "lr": 0.02},
    "adamw": {"towers": "text", "optimizer": "adamw", "lr": 0.002, "classes_per_step": 90},
}


def settings(cache: Path, out: Path, towers: str, **others: Any) -> TrainSettings:
    """Twelve steps, ten of which make an epoch."""
    prompts = PromptSettings(towers=towers, prompt_depth=2, prompt_length=2)
    values = {"epochs": 2, "max_steps": 12, "batch_size": 30, "checkpoint_every": 4, "log_every": 1, **others}
    return TrainSettings(
        cache=cache, out=out, prompts=prompts, device="cpu", workers=0, log=("none",), **values
    )


def environment() -> dict[str, str]:
    """The libraries and the processor on which bits depend."""
    return {"torch": torch.__version__, "cpu": torch.backends.cpu.get_cpu_capability()}


def without_places(record: Any, folder: Path) -> Any:
    """A record of a run with paths relative to the repository or to the folder of the run."""
    text = json.dumps(record).replace(f"{folder}/", "").replace(f"{PICTURES.parents[2]}/", "")
    return json.loads(text)


def write(cache: Path, out: Path, name: str) -> None:
    """`OUT/NAME` as it is after its second checkpoint, and `OUT/NAME.safetensors` of the finished run."""
    run, kept = cache.parent / name, out / name
    save = Checkpoint.save

    def save_and_copy(checkpoint: Checkpoint, step: int) -> None:
        save(checkpoint, step)
        if step == STOPPED_AFTER:
            shutil.copytree(run, kept, ignore=shutil.ignore_patterns("*.lock"))

    Checkpoint.save = save_and_copy  # type: ignore[method-assign]
    train(settings(cache, run, **RUNS[name]))
    Checkpoint.save = save  # type: ignore[method-assign]
    record = json.loads((kept / "settings.json").read_text())
    (kept / "settings.json").write_text(json.dumps(without_places(record, cache.parent), indent=1))
    save_file(load_file(run / "student.safetensors"), out / f"{name}.safetensors")
    (out / "environment.json").write_text(json.dumps(environment()) + "\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        cache = build_with(unpack_clip(STUDENT, Path(folder)), Path(folder) / "demo.zarr")
        for each in RUNS:
            write(cache, Path(sys.argv[1]), each)
