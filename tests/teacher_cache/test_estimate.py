"""A dry run reports the sizes of the cache that a build then writes, and writes nothing."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from teacher_cache.build import build_cache
from teacher_cache.command_settings import ViewPolicy
from teacher_cache.errors import CacheMismatchError
from teacher_cache.estimate import estimate_build
from teacher_cache.store.cache_store import CacheStore
from tests.teacher_cache.inputs import decoded_arrays, settings


def _paths(folder: Path) -> list[str]:
    return sorted(os.path.join(top, name) for top, _, names in os.walk(folder) for name in names)


def test_a_dry_run_reports_the_sizes_of_the_cache_and_writes_nothing(
    teacher: Path, shards: Path, names: Path, tmp_path: Path
) -> None:
    asked = settings(shards, names, tmp_path / "zarr", teacher, view_policy=ViewPolicy(views=3))
    found = estimate_build(asked)
    assert list(tmp_path.iterdir()) == []
    assert (found.samples, found.labelled, found.classes, found.views) == (12, 12, 5, 3)
    assert (found.parts_total, found.parts_missing) == (4, 4)
    build_cache(asked)
    stored = {name: values.nbytes for name, values in decoded_arrays(tmp_path / "zarr").items()}
    stored["vocabularies/animals/class_features"] = CacheStore.open(tmp_path / "zarr").class_features().nbytes
    assert {name: size for name, size in found.bytes.items() if name != "samples.parquet"} == stored
    table = (tmp_path / "zarr" / "samples.parquet").stat().st_size
    assert found.bytes["samples.parquet"] == pytest.approx(table, rel=0.05)
    assert found.bytes_total == sum(found.bytes.values())
    assert found.bytes_free is not None
    assert found.bytes_free > found.bytes_total


def test_stored_views_are_in_the_estimate(teacher: Path, shards: Path, names: Path, tmp_path: Path) -> None:
    """Both with and without them, whichever the build has."""
    without = estimate_build(settings(shards, names, tmp_path / "zarr", teacher))
    asked = settings(shards, names, tmp_path / "zarr", teacher, pixels="jpeg95")
    found = estimate_build(asked)
    build_cache(asked)
    tars = sum(path.stat().st_size for path in (tmp_path / "zarr" / "pixels").glob("*.tar"))
    # of each of the four tars: its end, up to a block of 10,240 bytes
    assert tars - 4 * 10_240 - 1_024 <= found.bytes["pixels"] <= tars
    assert (without.pixels, without.other_pixels["pixels"]) == ("none", "jpeg95")
    assert (found.pixels, found.other_pixels["pixels"]) == ("jpeg95", "none")
    assert without.other_pixels["bytes_total"] == found.bytes_total
    assert found.other_pixels["bytes_total"] == without.bytes_total


def test_the_time_is_that_of_the_missing_parts(
    cache: Path, teacher: Path, shards: Path, names: Path, tmp_path: Path
) -> None:
    out = tmp_path / "zarr"
    asked = settings(shards, names, out, teacher)
    build_cache(asked)
    store = CacheStore.open(out, writable=True)
    for part in (0, 3):
        store.parts.withdraw(part)
    before = _paths(out)
    found = estimate_build(asked)
    assert _paths(out) == before
    assert (found.parts_total, found.parts_missing) == (4, 2)
    assert found.seconds["class_features"] == 0
    assert found.seconds_total == pytest.approx(6 / found.views_per_second, abs=0.1)
    with pytest.raises(CacheMismatchError, match="view_seed"):
        estimate_build(settings(shards, names, cache, teacher, view_policy=ViewPolicy(view_seed=3)))


@pytest.mark.parametrize("as_json", [False, True])
def test_the_command_prints_the_estimate(as_json: bool, run: Any, arguments: dict[str, Any]) -> None:
    options = [item for pair in arguments.items() for item in pair]
    code, out, _ = run("build", "--dry-run", *(["--json"] if as_json else []), *options)
    assert code == 0
    assert not arguments["--out"].exists()
    if as_json:
        assert json.loads(out)["bytes"]["image_features"] == 12 * 48 * 2
        return
    lines = out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["samples", "parts", "space", "time", "pixels"]
    assert "12, of which 12 have a label; 5 classes" in lines[1]
    assert "image_features 1.2 kB" in lines[3]
    assert "1 worker" in lines[4]
    assert lines[5].startswith("pixels   none; with --pixels jpeg95 ")
