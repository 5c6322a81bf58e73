"""SIGKILL at random moments of one build; RPP_KILLS=20 in the environment makes it twenty instead of five."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from teacher_cache.build import build_cache
from teacher_cache.store import CacheStore, verify_store
from tests.teacher_cache.inputs import assert_same_arrays, settings, write_shards

KILLS = int(os.environ.get("RPP_KILLS", "5"))

# Everything is imported once; each build is a fork of this process. Prints the parts' records at each kill.
DRIVER = """
import json, os, random, signal, sys, time
from pathlib import Path
import torch
from teacher_cache.cli import main

kills, parts = int(sys.argv.pop(1)), Path(sys.argv.pop(1))
random.seed(kills)
torch.set_num_threads(1)
records = lambda: {path.name: path.stat().st_mtime_ns for path in parts.glob("*.json")}
for number in range(kills):
    build = os.fork()
    if build == 0:
        main()
        os._exit(0)
    begun, last = time.monotonic(), 8 * number + 6  # a fast machine would be ready before the last kill
    if number % 4 == 0:  # at any moment, the cache may not be there yet
        seconds, enough = random.uniform(0, 2), last
    else:
        seconds, enough = 60, min(len(records()) + random.randint(0, 4), last)
    while time.monotonic() < begun + seconds and len(records()) < enough:
        time.sleep(0.002)
    time.sleep(random.uniform(0, 0.05))
    os.kill(build, signal.SIGKILL)
    _, status = os.waitpid(build, 0)
    print(json.dumps([os.WIFSIGNALED(status), records()]), flush=True)
"""


@pytest.mark.slow
def test_a_build_killed_at_random_moments_computes_nothing_twice_but_what_was_in_flight(
    teacher: Path, names: Path, tmp_path: Path
) -> None:
    source = write_shards(tmp_path / "shards", samples=15 * KILLS)
    asked = settings(source, names, tmp_path / "zarr", teacher)
    build_cache(asked.model_copy(update={"out": str(tmp_path / "undisturbed")}))
    options = ("images", "classes", "out", "teacher", "part_size", "batch_size", "threads", "device")
    arguments = [f"--{name.replace('_', '-')}={getattr(asked, name)}" for name in options]
    parts = tmp_path / "zarr" / "parts"
    command = [sys.executable, "-c", DRIVER, str(KILLS), str(parts), "build", *arguments]
    output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    kills = [json.loads(line) for line in output.splitlines()]
    assert [killed for killed, _ in kills] == [True] * KILLS
    result = build_cache(asked)
    final = {path.name: path.stat().st_mtime_ns for path in parts.glob("*.json")}
    assert 0 < result.parts_computed == 10 * KILLS - len(kills[-1][1])
    for _, records in kills:
        assert records.items() <= final.items()
    assert not verify_store(CacheStore.open(tmp_path / "zarr"))
    assert_same_arrays(tmp_path / "zarr", tmp_path / "undisturbed")
