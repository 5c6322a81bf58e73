"""SIGKILL of builds, Dask workers and runs at random moments."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from teacher_cache.store.cache_store import CacheStore
from teacher_cache.store.verify import verify_store
from tests.faults.attempts import Attempts
from tests.faults.conftest import KILLS, SEED, Inputs, Record
from tests.teacher_cache.inputs import assert_same_arrays

pytestmark = pytest.mark.faults
KILLS_A_ROUND = 8  # then the call is left to end
EXACT = ("step", "loss", "hard_loss", "soft_loss", "accuracy", "lr", "gradient_norm", "clipped_steps")


def committed(cache: Path) -> dict[str, int]:
    """Return the modification time of each part's record."""
    return {path.name: path.stat().st_mtime_ns for path in (cache / "parts").glob("*.json")}


def views_of(cache: Path) -> dict[str, bytes]:
    """Return the files of the rendered views."""
    return {path.name: path.read_bytes() for path in (cache / "pixels").glob("*") if path.is_file()}


@pytest.mark.parametrize("pixels", ["none", "jpeg95"])
def test_builds(attempts: Attempts, inputs: Inputs, undisturbed: Path, tmp_path: Path, pixels: str) -> None:
    """Committed parts are not computed again, and the result is the same."""
    record = Record(
        "SIGKILL of a build" + " with --pixels jpeg95" * (pixels != "none"),
        "the same call continues; no committed part is computed again; same arrays",
    )
    chance, kills, number = random.Random(SEED), 0, 0
    build = [*inputs.build, f"--pixels={pixels}"]
    usual = attempts.call(*build, f"--out={tmp_path / 'first.zarr'}").seconds
    expected = undisturbed if pixels == "none" else tmp_path / "first.zarr"
    while kills < KILLS:
        out, number, in_round, kept = tmp_path / f"{number}.zarr", number + 1, 0, dict[str, int]()
        while True:
            after = chance.uniform(0, usual) if in_round < KILLS_A_ROUND and kills < KILLS else None
            ended = attempts.call(*build, f"--out={out}", kill_after=after)
            assert not ended.left
            now = committed(out)
            assert kept.items() <= now.items()
            kept = now
            if ended.code == 0:
                break
            assert ended.code == -9, ended.stderr
            kills, in_round = kills + 1, in_round + 1
        assert not verify_store(CacheStore.open(out))
        assert_same_arrays(out, expected)
        assert views_of(out) == views_of(expected)
        record("killed, gone on with, same arrays", in_round)


def test_dask_workers(attempts: Attempts, inputs: Inputs, undisturbed: Path, tmp_path: Path) -> None:
    """A build whose workers die completes, or reports it and the next build completes."""
    record = Record(
        "SIGKILL of a Dask worker",
        "the build continues, or ends with one line and a second call completes; same arrays",
    )
    chance = random.Random(SEED)
    for number in range(max(1, KILLS // 5)):
        out = tmp_path / f"{number}.zarr"
        command = [*inputs.build, f"--out={out}", "--workers=2"]
        when = chance.uniform(0.5, 15) if number else 0.0  # the first dies while it is being started
        ended = attempts.call(*command, kill_workers=[when])
        assert not ended.left
        if ended.code != 0:
            assert ended.is_one_line_error, ended.stderr
            assert attempts.call(*inputs.build, f"--out={out}").code == 0
        assert_same_arrays(out, undisturbed)
        record(
            "the build went on, same arrays" if ended.code == 0 else "one sentence, second call, same arrays"
        )


def figures(run: Path) -> list[list[Any]]:
    """Return the lines of a run's log without times."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [[line[name] for name in EXACT] for line in lines]


@pytest.mark.parametrize("mode", ["text", "both"])
def test_runs(attempts: Attempts, inputs: Inputs, undisturbed: Path, tmp_path: Path, mode: str) -> None:
    """In feature mode, and in image mode with two decoding processes: same tensors, same figures."""
    record = Record(
        f"SIGKILL of a run, {'cached features' if mode == 'text' else 'images, 2 decoding processes'}",
        "`--resume` continues; same tensors, same metrics; no process is left behind",
    )
    others = [f"--towers={mode}", "--workers=2"]
    first = attempts.call(*inputs.train(undisturbed, tmp_path / "first", *others))
    assert first.code == 0, first.stderr
    chance, kills, number = random.Random(SEED), 0, 0
    while kills < KILLS:
        out, number, in_round, was_started = tmp_path / str(number), number + 1, 0, False
        while True:
            after = chance.uniform(0, first.seconds) if in_round < KILLS_A_ROUND and kills < KILLS else None
            again = ["--resume"] if was_started else []
            ended = attempts.call(*inputs.train(undisturbed, out, *others, *again), kill_after=after)
            assert not ended.left
            if ended.code == 0:
                break
            assert ended.code == -9, ended.stderr
            kills, in_round, was_started = kills + 1, in_round + 1, (out / "settings.json").exists()
        ours, theirs = (
            load_file(out / "student.safetensors"),
            load_file(tmp_path / "first/student.safetensors"),
        )
        assert ours.keys() == theirs.keys()
        assert all(ours[name].equal(theirs[name]) for name in ours)
        assert figures(out) == figures(tmp_path / "first")
        record("killed, gone on with, same tensors and figures", in_round)
