"""Which rows, in which order, which view of each."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from student_train.data.order import Order, select_rows, subset_classes
from teacher_cache.errors import UsageError


@given(
    rows=st.sets(st.integers(0, 200_000), min_size=1, max_size=300),
    views=st.integers(1, 4),
    seed=st.integers(0, 5),
    epoch=st.integers(0, 5),
    window_rows=st.integers(1, 80),
)
@settings(max_examples=60)
def test_an_epoch_has_every_row_once_and_reads_every_block_once(
    rows: set[int], views: int, seed: int, epoch: int, window_rows: int
) -> None:
    array = np.array(sorted(rows))
    order = Order(array, views, seed, window_rows)
    drawn, seen = order.samples(epoch, 0, len(array))
    assert sorted(drawn.tolist()) == array.tolist()
    block = min(1024, -(-len(array) // 64))
    blocks_before: set[int] = set()
    for number in range(order.pieces(epoch, 0, len(array))[-1][0] + 1):
        window = order.window(epoch, number)
        blocks = set((array[window.positions] // block).tolist())
        assert not blocks & blocks_before
        blocks_before |= blocks
        assert len(window.positions) < window_rows + min(block, 1024) or len(blocks) == 1
        by_view = list(zip(window.views.tolist(), window.positions.tolist(), strict=True))
        assert by_view == sorted(by_view)
    later, of_later = order.samples(epoch + views, 0, len(array))
    assert dict(zip(drawn.tolist(), seen.tolist(), strict=True)) == dict(
        zip(later.tolist(), of_later.tolist(), strict=True)
    )


@given(
    cuts=st.sets(st.integers(1, 299), max_size=8),
    epoch=st.integers(0, 3),
    window_rows=st.sampled_from([1, 7, 100, 1000]),
)
@settings(max_examples=30)
def test_an_epoch_may_be_taken_in_any_pieces(cuts: set[int], epoch: int, window_rows: int) -> None:
    order = Order(np.arange(300), 3, 0, window_rows)
    whole = order.samples(epoch, 0, 300)
    bounds = [0, *sorted(cuts), 300]
    parts = [order.samples(epoch, a, b) for a, b in pairwise(bounds)]
    for k in range(2):
        assert np.array_equal(np.concatenate([part[k] for part in parts]), whole[k])


def test_every_view_of_a_row_is_shown_once_in_as_many_epochs() -> None:
    order, rows = Order(np.arange(1000), 4, 0), 1000
    seen = np.zeros((rows, 4), dtype=int)
    for epoch in range(4):
        at, views = order.samples(epoch, 0, rows)
        seen[at, views] += 1
        assert (np.bincount(views, minlength=4) > rows // 8).all(), "views are mixed within an epoch"
    assert (seen == 1).all()


def test_epochs_and_seeds_differ_in_order() -> None:
    def samples(seed: int, epoch: int) -> np.ndarray:
        return Order(np.arange(5000), 1, seed).samples(epoch, 0, 5000)[0]

    first = samples(3, 0)
    np.testing.assert_array_equal(samples(3, 0), first)
    for other in (samples(3, 1), samples(4, 0), np.arange(5000)):
        assert (first == other).mean() < 0.01


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
