"""Whole sweeps of ten short runs with prompts in both towers: from original images, and from rendered views.

JPEGs of 500 x 375 (made here: `build_overhead.photo`) with two views each, a small CLIP for images of
224 x 224 that is teacher and student, one cache. The same ten runs (five temperatures, two seeds) read the
originals and then the views that `rpp-cache render` stored; each sweep is a process of `rpp sweep`, whose
start counts. `share` is the part of a sweep that was spent in training steps, by its own record. Rendering is
timed on its own: it is done once.

    python benchmarks/pixels_sweep.py --json
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from pixels import write_cache
from timing import machine

from pipeline.sweep_record import read_sweep
from teacher_cache.command_settings import RenderSettings
from teacher_cache.render import render_cache

TEMPERATURES = "0.5,1,2,4,8"
SEEDS = 2
MODEL = {
    "embed_dim": 128,
    "vision_cfg": {"image_size": 224, "patch_size": 32, "layers": 4, "width": 128, "head_width": 32},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "layers": 4, "width": 96, "heads": 3},
}
RECIPE = """
[train]
cache = "{cache}"
out = "run"
pixels = "{pixels}"
epochs = {epochs}
batch_size = 64
device = "cpu"
log = ["none"]
"""


def swept(cache: Path, folder: Path, pixels: str, epochs: int, jobs: int) -> dict[str, Any]:
    """Run the sweep of one kind in a process of its own and return its seconds."""
    recipe = folder / f"{pixels}.toml"
    recipe.write_text(RECIPE.format(cache=cache, pixels=pixels, epochs=epochs))
    started = time.perf_counter()
    rpp = [sys.executable, "-m", "pipeline.cli", "sweep", str(recipe), "--out", str(folder / pixels)]
    chosen = ["--set", f"train.temperature={TEMPERATURES}", "--seeds", str(SEEDS), "--jobs", str(jobs)]
    subprocess.run([*rpp, *chosen], check=True, stdout=sys.stderr, env=os.environ | {"COLUMNS": "120"})
    seconds = time.perf_counter() - started
    record = read_sweep(folder / pixels)
    runs = [row.train for row in record.rows if row.train]
    return {
        "seconds": round(seconds, 1),
        "runs": len(runs),
        "seconds_in_training": round(sum(run["seconds"] for run in runs), 1),
        "seconds_waiting_for_pixels": round(sum(run["wait_seconds"] for run in runs), 1),
        "share": record.training_share(),
        "last_loss": runs[-1]["loss"],
    }


def main(
    count: Annotated[int, typer.Option(help="pictures")] = 512,
    epochs: Annotated[int, typer.Option(help="passes of a run over the pictures")] = 5,
    jobs: Annotated[int, typer.Option(help="runs at a time")] = 1,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Render, run both sweeps and print their seconds."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        cache = write_cache(folder, count, MODEL)
        started = time.perf_counter()
        rendered = render_cache(cache, RenderSettings(pixels="jpeg95"))
        render_seconds = time.perf_counter() - started
        found = {pixels: swept(cache, folder, pixels, epochs, jobs) for pixels in ("originals", "rendered")}
    report = {
        "ratio": round(found["originals"]["seconds"] / found["rendered"]["seconds"], 2),
        **found,
        "render_seconds": round(render_seconds, 1),
        "bytes_per_view": rendered.bytes_per_view,
        "pictures": count,
        "machine": machine(),
    }
    if as_json:
        print(json.dumps(report))
        return
    for name, value in report.items():
        print(f"{name:16} {value}")


if __name__ == "__main__":
    typer.run(main)
