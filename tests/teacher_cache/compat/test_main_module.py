"""Plain scripts, without `if __name__ == "__main__":`, that start processes: each runs once and works."""

import pickle
import sys
import threading
from pathlib import Path

import pytest

from teacher_cache.compat.main_module import main_not_imported
from teacher_cache.softlabels import open_cache
from tests.plain_scripts import run_script

BUILD = """
from pathlib import Path

with open("runs.txt", "a") as file:
    file.write("run\\n")
from teacher_cache import BuildSettings, build_cache
build_cache(
    BuildSettings(
        images={images!r}, classes={classes!r}, teacher={teacher!r}, out="zarr", part_size=3, workers=2
    ),
)
"""


def test_a_build_with_workers(shards: Path, names: Path, teacher: Path, tmp_path: Path) -> None:
    script = BUILD.format(images=str(shards), classes=str(names), teacher=str(teacher))
    run_script(tmp_path, script, "plain.py")
    assert len(open_cache(tmp_path / "zarr")) == 12


class OfMain:
    """Pickled by reference to the main module."""


def test_the_main_module_stays_usable(monkeypatch: pytest.MonkeyPatch) -> None:
    main = sys.modules["__main__"]
    monkeypatch.setattr(main, "OfMain", OfMain, raising=False)
    monkeypatch.setattr(OfMain, "__module__", "__main__")
    with main_not_imported():
        assert not hasattr(sys.modules["__main__"], "__file__")
        assert isinstance(pickle.loads(pickle.dumps(OfMain())), OfMain)
        sys.modules["__main__"].added = 1  # type: ignore[attr-defined]
    assert sys.modules["__main__"] is main
    assert main.added == 1
    del main.added


def test_blocks_may_overlap_in_threads() -> None:
    main, entered, leave = sys.modules["__main__"], threading.Event(), threading.Event()

    def other() -> None:
        with main_not_imported():
            entered.set()
            leave.wait()

    thread = threading.Thread(target=other)
    with main_not_imported():
        thread.start()
        entered.wait()
    assert sys.modules["__main__"] is not main
    leave.set()
    thread.join()
    assert sys.modules["__main__"] is main
