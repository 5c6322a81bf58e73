"""A sweep of an earlier version is continued, also by sources whose settings and records have a new field."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.sweep_record import read_sweep
from tests.student_train.conftest import demo_cache_path as demo_cache_path

ROOT = Path(__file__).parents[2]
OLD = ROOT / "tests" / "data" / "sweeps"
EXTENDED = {
    "student_train/training/settings.py": ("TrainSettings",),
    "student_train/evaluation/settings.py": ("DataOptions",),
    "pipeline/settings.py": ("SweepSettings",),
    "pipeline/sweep_record.py": ("SweepRow", "SweepRecord"),
}

CONTINUE = """
from pathlib import Path
from pipeline import SweepSettings, run_sweep
run_sweep(Path("recipe.toml"), SweepSettings(set=("train.temperature=1,2",), out=Path("sweep")))
"""


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources with one more field, which has a default, in each class."""
    copy = tmp_path_factory.mktemp("extended")
    for package in ("teacher_cache", "student_train", "pipeline"):
        ignored = shutil.ignore_patterns("demo", "__pycache__")
        shutil.copytree(ROOT / package, copy / package, ignore=ignored)
    for file, classes in EXTENDED.items():
        text = (copy / file).read_text()
        for name in classes:
            before, start, after = text.partition(f"class {name}(BaseModel):\n")
            assert start
            head, config, rest = after.partition("    model_config = ")
            line, _, rest = rest.partition("\n")
            text = f"{before}{start}{head}{config}{line}\n    added: int = 3\n{rest}"
        (copy / file).write_text(text)
    return copy


@pytest.mark.parametrize("sources", ["these", "extended"])
def test_a_sweep_of_an_earlier_version_is_continued(
    sources: str, extended: Path, demo_cache_path: Path, tmp_path: Path
) -> None:
    out = tmp_path / "sweep"
    shutil.copytree(OLD / "rpp-0.1.0", out)
    shutil.copy(OLD / "recipe.toml", tmp_path)
    (tmp_path / "demo.zarr").symlink_to(demo_cache_path)
    before = read_sweep(out)
    assert [row.state for row in before.rows] == ["done", "waiting"]
    kept = {path: path.stat().st_mtime_ns for path in (out / before.rows[0].run).iterdir()}
    ended = subprocess.run(
        [sys.executable, "-c", CONTINUE],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT if sources == "these" else extended)},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    text = (out / "sweep.json").read_text()
    assert ('"added": 3' in text) == (sources == "extended")
    after = read_sweep(out) if sources == "these" else None
    if after is not None:
        assert [row.state for row in after.rows] == ["done", "done"]
        assert after.rows[0] == before.rows[0]
        assert after.zero_shot == before.zero_shot
    assert {path: path.stat().st_mtime_ns for path in kept} == kept, "the first run is not trained again"
