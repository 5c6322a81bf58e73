"""Write a sweep of two runs of which one is done: `python -m tests.data.sweeps.write CACHE OUT`.

CACHE is a cache of the demo's pictures by the demo's teacher (the tests' fixture `demo_cache_path`).
"""

import os
import shutil
import sys
import tempfile
from pathlib import Path

from pipeline import SweepSettings, run_sweep
from pipeline.sweep_record import SweepRow

RECIPE = Path(__file__).with_name("recipe.toml").resolve()
SETTINGS = SweepSettings(set=("train.temperature=1,2",), out=Path("sweep"))


def write(cache: Path, out: Path) -> None:
    """Run the sweep in a folder of its own, so that all its paths are relative; remove the second run."""
    cache, out = cache.resolve(), out.resolve()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        Path("demo.zarr").symlink_to(cache)
        shutil.copy(RECIPE, "recipe.toml")
        record = run_sweep(Path("recipe.toml"), SETTINGS)
        second = record.rows[1]
        shutil.rmtree(Path("sweep", second.run))
        record.rows[1] = SweepRow(settings=second.settings, seed=second.seed, run=second.run)
        record.write(Path("sweep"))
        shutil.rmtree("sweep/logs")
        shutil.copytree("sweep", out)
        os.chdir(out)


if __name__ == "__main__":
    write(Path(sys.argv[1]), Path(sys.argv[2]))
