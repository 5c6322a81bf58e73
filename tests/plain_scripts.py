"""Scripts without `if __name__ == "__main__":`, which write `runs.txt` when they run."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def run_script(folder: Path, script: str, *command: str) -> None:
    """Run a script, `plain.py`, as `python COMMAND`; it must end without an error, and run once."""
    (folder / "plain.py").write_text(script)
    ended = subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert "Traceback" not in ended.stderr
    assert (folder / "runs.txt").read_text() == "run\n"
