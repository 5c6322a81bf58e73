"""Batches by step number: the same wherever a run begins, however it reads, and shared by processes."""

import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data._utils import signal_handling

from student_train.data.join import Batch, Join
from student_train.data.order import Order, select_rows
from student_train.data.pixels import PixelWorkers
from teacher_cache import TeacherCache, open_cache
from teacher_cache.errors import UsageError
from teacher_cache.teacher.openclip import load_model
from teacher_cache.teacher.teacher import Teacher

FEATURES = "image_features"


@pytest.fixture(scope="module")
def cache(cache_path: Path) -> TeacherCache:
    return open_cache(cache_path)


@pytest.fixture(scope="module")
def teacher(cache: TeacherCache) -> Teacher:
    return Teacher(load_model(cache.teacher["model"]), torch.device("cpu"))


def image_join(
    cache: TeacherCache, teacher: Teacher, batch_size: int = 32, seed: int = 0, **how: Any
) -> Join:
    rows = select_rows(cache.labels, cache.valid, len(cache.vocabulary))
    pixels = PixelWorkers(cache.samples, cache.header.part_size, teacher.renderer, workers=0)
    return Join(cache, rows, batch_size, seed, pixels=pixels, **how)


def same(a: Batch, b: Batch) -> bool:
    parts = [(a.labels, b.labels), (a.teacher[FEATURES], b.teacher[FEATURES]), (a.pixels, b.pixels)]
    return (
        np.array_equal(a.rows, b.rows)
        and np.array_equal(a.views, b.views)
        and all((x is None and y is None) or torch.equal(x, y) for x, y in parts)
    )


def test_batches_hold_the_views_they_name(cache: TeacherCache, teacher: Teacher) -> None:
    batches = list(image_join(cache, teacher).batches(0, 6))
    assert {view for batch in batches for view in batch.views} == {0, 1, 2}
    for batch in batches:
        assert batch.pixels is not None
        stored = torch.stack(
            [cache.image_features(int(r), int(v))[0] for r, v in zip(batch.rows, batch.views, strict=True)]
        )
        assert torch.equal(batch.teacher[FEATURES], stored)
        assert (teacher.image_features(batch.pixels) - stored.float()).abs().max() < 1e-3
        assert batch.labels.tolist() == cache.labels[batch.rows].tolist()


@pytest.mark.parametrize("first", [1, 9, 13])
def test_batches_from_step_k_are_those_of_an_undisturbed_run(
    cache: TeacherCache, teacher: Teacher, first: int
) -> None:
    join = image_join(cache, teacher)  # 9 steps an epoch
    whole = list(join.batches(0, 20))
    late = list(image_join(cache, teacher).batches(first, 20))
    assert len(late) == 20 - first
    assert all(same(a, b) for a, b in zip(whole[first:], late, strict=True))
    assert not same(whole[0], whole[9]), "epochs have different orders"


def test_order_depends_on_the_seed(cache: TeacherCache, teacher: Teacher) -> None:
    a = next(image_join(cache, teacher, seed=0).batches(0, 1))
    b = next(image_join(cache, teacher, seed=1).batches(0, 1))
    assert not np.array_equal(a.rows, b.rows)


@pytest.mark.parametrize("first", [0, 3, 41, 60])
@pytest.mark.parametrize("reader", ["memory", "blocks"])
def test_feature_batches_are_the_same_however_they_are_read(
    cache: TeacherCache, reader: Any, first: int
) -> None:
    """Steps that begin within a window, at its end and across it; 42 steps an epoch and some samples over."""
    rows = select_rows(cache.labels, cache.valid, 300)

    def join() -> Join:
        join = Join(cache, rows, 7, 0, student_features=cache, reader=reader)
        join.order = Order(rows, cache.num_views, 0, window_rows=40)
        return join

    batches = list(join().batches(first, 90))
    assert len(batches) == 90 - first
    rows_then, views_then = join().step_samples(first)
    assert np.array_equal(batches[0].rows, rows_then)
    assert np.array_equal(batches[0].views, views_then)
    for batch in batches:
        assert batch.student_features is batch.teacher[FEATURES]
        for row, view, feature in zip(batch.rows, batch.views, batch.teacher[FEATURES], strict=True):
            assert torch.equal(feature, cache.image_features(int(row), int(view))[0])


def test_processes_share_a_step(cache: TeacherCache, teacher: Teacher) -> None:
    whole = list(image_join(cache, teacher, 31).batches(0, 12))
    parts = [list(image_join(cache, teacher, 31, rank=r, ranks=3).batches(0, 12)) for r in range(3)]
    for one, *of_step in zip(whole, *parts, strict=True):
        assert np.array_equal(one.rows, np.concatenate([part.rows for part in of_step]))
        assert torch.equal(one.pixels, torch.cat([part.pixels for part in of_step]))
        assert torch.equal(one.teacher[FEATURES], torch.cat([part.teacher[FEATURES] for part in of_step]))
        assert all(torch.equal(part.step_labels, one.labels) for part in of_step)
        assert sum(part.share for part in of_step) == pytest.approx(1)
        assert sum(part.labelled_share for part in of_step) == pytest.approx(1)
        assert one.share == one.labelled_share == 1


def test_a_step_must_have_samples_for_every_process(cache: TeacherCache) -> None:
    with pytest.raises(UsageError, match="a step of 2 samples cannot be shared by 3 processes"):
        Join(cache, np.arange(300), 2, 0, student_features=cache, ranks=3)


def test_no_soft_labels_read_nothing_of_the_teacher(cache: TeacherCache, teacher: Teacher) -> None:
    batch = next(image_join(cache, teacher, soft_labels=False).batches(0, 1))
    assert batch.teacher == {}
    assert batch.pixels is not None


def test_workers_end_without_an_error(cache: TeacherCache, teacher: Teacher) -> None:
    """torch's own handler, which any DataLoader of the main thread leaves behind, raises if one does not."""
    before = signal.getsignal(signal.SIGCHLD)
    signal_handling._set_SIGCHLD_handler()
    try:
        pixels = PixelWorkers(cache.samples, cache.header.part_size, teacher.renderer, workers=2)
        for _ in range(5):
            join = Join(cache, np.arange(300), 40, 0, pixels=pixels)
            assert len(list(join.batches(0, 2))) == 2
    finally:
        signal.signal(signal.SIGCHLD, before)
