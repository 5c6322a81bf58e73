"""Statistics computed block by block equal a plain computation over all rows."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from teacher_cache import TeacherCache, open_cache
from teacher_cache.build import build_cache
from teacher_cache.command_settings import ViewPolicy
from teacher_cache.errors import UsageError
from teacher_cache.stats import sample_rows, teacher_statistics
from tests.teacher_cache.inputs import settings, webdataset_members, write_shard

ENCODINGS: list[dict[str, Any]] = [
    {"encoding": "factored"},
    {"encoding": "factored-int8"},
    {"encoding": "topk", "topk": 3},
    {"encoding": "dense"},
]


@pytest.fixture(scope="module", params=ENCODINGS, ids=lambda record: record["encoding"])
def opened(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, teacher: Path, names: Path
) -> TeacherCache:
    """30 samples of two views in parts of 11: two without a hard label, two unreadable."""
    folder = tmp_path_factory.mktemp("stats")
    members = dict(webdataset_members(0, 30))
    del members["000004.cls"], members["000020.cls"]
    members["000007.jpg"] = members["000029.jpg"] = b"no image"
    images = write_shard(folder / "a.tar", members.items())
    more = {"part_size": 11, "view_policy": ViewPolicy(views=2), **request.param}
    build_cache(settings(images, names, folder / "zarr", teacher, **more))
    return open_cache(folder / "zarr")


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several blocks, several pieces each."""
    monkeypatch.setattr("teacher_cache.stats.CHUNK_ROWS", 8)
    monkeypatch.setattr("teacher_cache.softlabels.PIECE_ROWS", 3)


def plain_statistics(
    cache: TeacherCache, rows: np.ndarray, temperatures: list[float], view: int
) -> dict[str, Any]:
    """The same in numpy, all rows at once."""
    soft = {t: cache.soft_labels(rows, t, view).double().numpy() for t in temperatures}
    ranking = np.argsort(-cache.logits(rows, view).numpy(), axis=1, kind="stable")
    labels = cache.labels[rows]
    has = labels >= 0
    mistakes = [(int(a), int(b)) for a, b in zip(labels[has], ranking[has, 0], strict=True) if a != b]
    return {
        "top1": np.mean(ranking[has, 0] == labels[has]),
        "top5": np.mean((ranking[has, :5] == labels[has, None]).any(axis=1)),
        "entropy": [float(np.mean(-(p * np.log(p)).sum(axis=1))) for p in soft.values()],
        "mistakes": mistakes,
    }


@pytest.mark.parametrize("view", [0, 1])
def test_statistics_equal_a_plain_computation(opened: TeacherCache, view: int) -> None:
    temperatures, done = [0.5, 1.0, 4.0], []
    found = teacher_statistics(opened, temperatures, view, pairs=99, on_rows=done.append)
    rows = np.flatnonzero(opened.valid)
    plain = plain_statistics(opened, rows, temperatures, view)
    assert (found["rows"], found["labelled"]) == (28, 26)
    assert sum(done) == 28
    assert len(done) == 4  # blocks
    assert found["top1"] == pytest.approx(plain["top1"])
    assert found["top5"] == pytest.approx(plain["top5"]) == 1.0
    by_temperature = found["temperatures"]
    assert [line["temperature"] for line in by_temperature] == temperatures
    assert [line["entropy"] for line in by_temperature] == pytest.approx(plain["entropy"], rel=1e-4)
    effective = [line["effective_classes"] for line in by_temperature]
    assert effective == pytest.approx(np.exp(plain["entropy"]), rel=1e-4)
    pairs = {(pair["label"], pair["predicted"]): pair["count"] for pair in found["confused"]}
    assert pairs == {pair: plain["mistakes"].count(pair) for pair in plain["mistakes"]}
    counts = [pair["count"] for pair in found["confused"]]
    assert counts == sorted(counts, reverse=True)
    names = opened.vocabulary.names
    for pair in found["confused"]:
        assert pair["label_name"] == names[pair["label"]]
        assert pair["predicted_name"] == names[pair["predicted"]]
    assert teacher_statistics(opened, [1.0], view, pairs=1)["confused"] == found["confused"][:1]


def test_a_sample_is_rows_drawn_by_the_seed(opened: TeacherCache) -> None:
    rows = sample_rows(opened, 9, seed=3)
    assert len(set(rows)) == 9
    assert opened.valid[rows].all()
    assert (np.diff(rows) > 0).all()
    assert not np.array_equal(rows, sample_rows(opened, 9, seed=4))
    assert len(sample_rows(opened, 1000, seed=3)) == 28
    found = teacher_statistics(opened, [2.0], sample=9, seed=3)
    plain = plain_statistics(opened, rows, [2.0], 0)
    assert found["rows"] == 9
    assert found["top1"] == pytest.approx(plain["top1"])
    assert found["temperatures"][0]["entropy"] == pytest.approx(plain["entropy"][0], rel=1e-4)


def test_without_hard_labels_there_is_no_accuracy(opened: TeacherCache, tmp_path: Path) -> None:
    shutil.copytree(opened.path, tmp_path / "zarr")
    bare = open_cache(tmp_path / "zarr")
    bare.labels[:] = -1
    found = teacher_statistics(bare, [1.0])
    assert (found["labelled"], found["top1"], found["top5"], found["confused"]) == (0, None, None, [])
    assert found["temperatures"] == teacher_statistics(opened, [1.0])["temperatures"]


def test_wrong_use(opened: TeacherCache) -> None:
    with pytest.raises(UsageError, match="no temperature"):
        teacher_statistics(opened, [])
    with pytest.raises(UsageError, match="above zero, not -1"):
        teacher_statistics(opened, [1.0, -1.0])
    with pytest.raises(UsageError, match="view 2 is not in the cache, which has views 0 to 1"):
        teacher_statistics(opened, [1.0], view=2)
    opened_without = open_cache(opened.path)
    opened_without.valid[:] = False
    with pytest.raises(UsageError, match="nothing to compute statistics from"):
        teacher_statistics(opened_without, [1.0])
