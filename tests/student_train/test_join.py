"""Which samples, in which order, in which crop."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from student_train.join import Batch, Join, epoch_order, read_pixels, select_rows, subset_classes
from teacher_cache import TeacherCache, open_cache
from teacher_cache.errors import UsageError
from teacher_cache.images import ImageReader, decode_image
from teacher_cache.openclip import load_model
from teacher_cache.teacher import Teacher
from teacher_cache.views import ViewPolicy, draw_crop

FEATURES = "image_features"


@pytest.fixture(scope="module")
def cache(cache_path: Path) -> TeacherCache:
    return open_cache(cache_path)


@pytest.fixture(scope="module")
def teacher(cache: TeacherCache) -> Teacher:
    return Teacher(load_model(cache.teacher["model"]), torch.device("cpu"))


def image_join(cache: TeacherCache, teacher: Teacher, batch_size: int = 32, seed: int = 0) -> Join:
    rows = select_rows(cache.labels, cache.valid, len(cache.vocabulary))
    return Join(cache, rows, batch_size, seed, renderer=teacher.renderer)


def same(a: Batch, b: Batch) -> bool:
    parts = [(a.labels, b.labels), (a.teacher[FEATURES], b.teacher[FEATURES]), (a.pixels, b.pixels)]
    return (
        np.array_equal(a.rows, b.rows)
        and np.array_equal(a.views, b.views)
        and all((x is None and y is None) or torch.equal(x, y) for x, y in parts)
    )


def test_replayed_crops_are_the_pixels_that_the_teacher_got(cache: TeacherCache, teacher: Teacher) -> None:
    """Stage one draws a crop and renders it; stage two renders from the stored crop. Same pixels, and the
    teacher says of them what the cache holds."""
    rows, reader = np.arange(0, 300, 7), ImageReader()
    policy = ViewPolicy(**cache.header.view_policy)
    for view in range(cache.num_views):
        views = np.full(len(rows), view)
        replayed = read_pixels(
            cache.samples, rows, views, cache.crops(rows, view), teacher.renderer, reader, map
        )
        for row, pixels in zip(rows.tolist(), replayed, strict=True):
            image = decode_image(reader.read(*cache.samples.locations([row])[0]))
            crop = draw_crop(policy, row, view, image.width, image.height)
            assert np.array_equal(pixels.numpy(), teacher.renderer.render(image, view, crop))
        said = teacher.image_features(replayed)
        assert (said - cache.image_features(rows, view).float()).abs().max() < 1e-3


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


@given(
    rows=st.sets(st.integers(0, 20_000), min_size=1, max_size=300),
    seed=st.integers(0, 5),
    epoch=st.integers(0, 5),
    window=st.integers(1, 4),
)
@settings(max_examples=50)
def test_an_epoch_has_every_row_once_and_blocks_stay_in_their_window(
    rows: set[int], seed: int, epoch: int, window: int
) -> None:
    array = np.array(sorted(rows))
    order = epoch_order(array, seed, epoch, window)
    assert sorted(order.tolist()) == array.tolist()
    blocks = order // 1024
    changes = [np.flatnonzero(blocks == block) for block in np.unique(blocks)]
    for at in changes:  # between the first and the last row of a block lie rows of few other blocks
        assert len(np.unique(blocks[at[0] : at[-1] + 1])) <= window


def test_epochs_and_seeds_differ_in_order() -> None:
    rows = np.arange(5000)
    first = epoch_order(rows, 3, 0)
    np.testing.assert_array_equal(epoch_order(rows, 3, 0), first)
    for other in (epoch_order(rows, 3, 1), epoch_order(rows, 4, 0), rows):
        assert (first == other).mean() < 0.01


def test_features_of_many_windows_are_those_of_their_rows(
    cache: TeacherCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("student_train.join.CHUNK_ROWS", 16)
    monkeypatch.setattr("student_train.join.WINDOW_BLOCKS", 3)
    rows = select_rows(cache.labels, cache.valid, 300)
    join = Join(cache, rows, 7, 0, student_features=cache)
    for batch in join.batches(0, 2 * join.steps_per_epoch):
        for row, view, feature in zip(batch.rows, batch.views, batch.teacher[FEATURES], strict=True):
            assert torch.equal(feature, cache.image_features(int(row), int(view))[0])


def test_shots_are_drawn_per_class_by_the_seed() -> None:
    labels = np.array([0] * 10 + [1] * 3 + [-1] * 4 + [2] * 6, dtype=np.int32)
    valid = np.ones(23, dtype=bool)
    valid[0] = False
    rows = select_rows(labels, valid, 3, shots=4, seed=1)
    assert np.bincount(labels[rows]).tolist() == [4, 3, 4]
    assert 0 not in rows
    assert np.array_equal(rows, select_rows(labels, valid, 3, shots=4, seed=1))
    assert not np.array_equal(rows, select_rows(labels, valid, 3, shots=4, seed=2))
    assert len(select_rows(labels, valid, 3)) == 22


def test_base_and_new_are_coops_halves() -> None:
    assert subset_classes(5, "base").tolist() == [0, 1, 2]
    assert subset_classes(5, "new").tolist() == [3, 4]
    labels = np.array([0, 1, 2, 3, 4, -1], dtype=np.int32)
    valid = np.ones(6, dtype=bool)
    assert select_rows(labels, valid, 5, "base").tolist() == [0, 1, 2]
    assert select_rows(labels, valid, 5, "new").tolist() == [3, 4]
    with pytest.raises(UsageError, match="no sample to train on"):
        select_rows(labels[:3], valid[:3], 5, "new")
