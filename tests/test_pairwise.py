"""Cases by pairs miss no pair."""

from itertools import combinations, product
from typing import Any

import pytest

from tests.pairwise import pairwise_cases


@pytest.mark.parametrize(
    ("axes", "most"),
    [
        (("abcd", "xy", "pq", [1, 2, 3]), 14),
        (([True, False],) * 6, 10),
        (([0, 0, 1], "ab"), 6),
        (("abc", "de"), 6),
    ],
)
def test_every_two_values_of_two_axes_meet_in_few_cases(axes: tuple[Any, ...], most: int) -> None:
    cases = pairwise_cases(*axes)
    for (i, one), (j, other) in combinations(enumerate(axes), 2):
        assert {(case[i], case[j]) for case in cases} == set(product(one, other))
    assert max(len(a) * len(b) for a, b in combinations(axes, 2)) <= len(cases) <= most
    assert cases == pairwise_cases(*axes)
