"""Rows and classes as users write them, and what is refused."""

from collections import deque
from typing import Any

import numpy as np
import pandas
import pytest
import torch

from teacher_cache.errors import UsageError
from teacher_cache.indices import Indices, as_index, as_indices, as_integer, as_number, as_texts


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (3, [3]),
        (np.int64(3), [3]),
        (np.array(3, dtype=np.uint8), [3]),
        (torch.tensor(3), [3]),
        ([5, 1, 5], [5, 1, 5]),
        ((5, 1), [5, 1]),
        (range(1, 8, 3), [1, 4, 7]),
        (range(7, -1, -3), [7, 4, 1]),
        (slice(-2, None), [8, 9]),
        (slice(None, None, 4), [0, 4, 8]),
        (slice(np.int64(2), torch.tensor(4)), [2, 3]),
        (np.array([9, 0], dtype=np.uint64), [9, 0]),
        (np.array([9, 0], dtype=np.int8), [9, 0]),
        (torch.tensor([9, 0], dtype=torch.uint8), [9, 0]),
        (torch.tensor([9, 0], dtype=torch.int32), [9, 0]),
        ([torch.tensor(4), torch.tensor(2)], [4, 2]),
        ([np.int32(4), 2], [4, 2]),
        (np.arange(10) % 4 == 0, [0, 4, 8]),
        (torch.arange(10) % 4 == 0, [0, 4, 8]),
        ([number < 2 for number in range(10)], [0, 1]),
        (pandas.Index([2, 7]), [2, 7]),
        (pandas.Series([2, 7], index=["a", "b"]), [2, 7]),
        (pandas.Series([2, 7], dtype=object), [2, 7]),
        (pandas.Series([2, 7], dtype="Int64"), [2, 7]),
        ((number for number in (8, 3)), [8, 3]),
        ({8: "a", 3: "b"}.keys(), [8, 3]),
        (deque([8, 3]), [8, 3]),
        ([], []),
        (np.zeros(10, dtype=bool), []),
        (range(0), []),
    ],
)
def test_integers_in_any_form_are_indices(wanted: Indices, expected: list[int]) -> None:
    found = as_indices(wanted, 10)
    assert found.dtype == np.int64
    assert found.tolist() == expected


@pytest.mark.parametrize(
    ("wanted", "reason"),
    [
        (
            [1.0, 2.0],
            r"invalid rows \[1.0, 2.0\] \(float64\): expected integers, a slice or a mask of all 10 s",
        ),
        (2.0, r"invalid rows \[2.0\]"),
        (torch.tensor([1.5]), r"invalid rows \[1.5\] \(float32\)"),
        (torch.tensor([1.5], dtype=torch.bfloat16), "invalid rows, Tensor: expected integers"),
        ("12", "invalid rows, str: expected integers"),
        (["1", "2"], r"invalid rows \['1', '2'\]"),
        (None, r"invalid rows \[None\]"),
        ({1, 2}, "invalid rows, set: expected integers"),
        (True, r"invalid rows \[True\]"),
        (
            [True, False],
            "invalid rows, a mask of 2 values: expected integers, a slice or a mask of all 10 samples",
        ),
        (torch.ones(11, dtype=torch.bool), "invalid rows, a mask of 11 values"),
        ([[1, 2], [3, 4]], r"invalid rows of shape \[2, 2\]: .* in one dimension"),
        ([[1], [2, 3]], "invalid rows, list: expected integers"),
        (np.ones((10, 1), dtype=bool), r"invalid rows of shape \[10, 1\]"),
        (10, r"rows \[10\] requested from a cache of 10 samples: expected 0 to 9"),
        (-1, r"rows \[-1\] requested from a cache of 10 samples: expected 0 to 9; only a slice counts from"),
        ([3, -1, 12, 13, 14], r"rows \[-1, 12, 13, ...\] requested"),
        (np.array([2**64 - 1], dtype=np.uint64), r"rows \[18446744073709551615\] requested"),
        ([10**30], "invalid rows"),
        (slice("a", None), "invalid rows slice"),
        (slice(0, 4, 0), "invalid rows slice"),
    ],
)
def test_what_is_not_an_index_is_refused(wanted: Any, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        as_indices(wanted, 10)


def test_a_repeated_index_is_refused_where_it_matters() -> None:
    assert as_indices([2, 2], 10).tolist() == [2, 2]
    with pytest.raises(UsageError, match=r"classes \[2\] requested more than once"):
        as_indices([2, 3, 2], 10, "classes", distinct=True)


def test_one_index() -> None:
    assert [as_index(one, 3, "view", "views") for one in (2, np.uint8(2), torch.tensor(2))] == [2, 2, 2]
    for wrong in (3, -1, 1.0, "1", True, None, [1]):
        with pytest.raises(UsageError, match="is not in views 0 to 2"):
            as_index(wrong, 3, "view", "views")


def test_texts() -> None:
    for given in (["cat", "dog"], ("cat", "dog"), np.array(["cat", "dog"]), pandas.Index(["cat", "dog"])):
        found = as_texts(given, "class names")
        assert found == ["cat", "dog"]
        assert {type(text) for text in found} == {str}
    for wrong, reason in [
        ("cat", r"class names must be a list of texts: \['cat'\], not 'cat'"),
        (b"cat", "must be a list of texts"),
        (["cat", 3, None], "class names must be texts; 2 of 3 are not, first 3"),
        (7, "class names must be a list of texts, not int"),
        ([], "expected at least one of class names, found none"),
    ]:
        with pytest.raises(UsageError, match=reason):
            as_texts(wrong, "class names")  # type: ignore[arg-type]


def test_integers() -> None:
    assert [as_integer(one, "t") for one in (2, np.int64(2), np.array(2), torch.tensor(2))] == [2] * 4
    for wrong in ("2", [2], None, 2.0, True):
        with pytest.raises(UsageError, match="the number must be an integer, not"):
            as_integer(wrong, "number")


def test_numbers() -> None:
    assert [as_number(one, "t") for one in (2, np.float32(2), np.array(2), torch.tensor(2.0))] == [2.0] * 4
    for wrong in ("2", [2.0, 3.0], None, torch.ones(2), True):
        with pytest.raises(UsageError, match="the temperature must be one number, not"):
            as_number(wrong, "temperature")
