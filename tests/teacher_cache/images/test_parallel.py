"""Headers of many files are read at a time, in order, with progress."""

import time
from pathlib import Path

import pytest

from teacher_cache.images.parallel import map_files
from tests.teacher_cache.inputs import indexed, write_shards


def test_results_are_in_the_order_of_the_files() -> None:
    def late(number: int) -> int:
        time.sleep(0.02 if number == 0 else 0)
        return number

    assert map_files("numbers", late, range(40)) == list(range(40))


def test_progress_is_shown_when_indexing_takes_long_and_not_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_shards(tmp_path, shards=3, samples=1)
    indexed(tmp_path)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("teacher_cache.images.parallel.QUIET_SECONDS", 0.0)
    indexed(tmp_path)
    assert "shards 3/3" in capsys.readouterr().err
