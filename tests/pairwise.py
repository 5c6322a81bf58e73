"""Cases for tests over several axes whose full product is large.

Faults depend on one value, or on two that meet, far more often than on more (Kuhn, Wallace, Gallo 2004:
Software fault interactions); cases in which all pairs meet are a quarter of the product, or fewer.
"""

from collections.abc import Sequence
from itertools import combinations, product
from typing import Any


def pairwise_cases(*axes: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Return cases, one value of each axis, in which every two values of two axes meet; always the same ones.

    Greedy: the next case is the first of the full product with the most pairs that have not met yet.
    """
    places = list(product(*(range(len(axis)) for axis in axes)))
    missing = {pair for place in places for pair in _pairs(place)}
    chosen = []
    while missing:
        best = max(places, key=lambda place: len(missing & _pairs(place)))
        missing -= _pairs(best)
        chosen.append(tuple(axis[at] for axis, at in zip(axes, best, strict=True)))
    return chosen


def _pairs(place: tuple[int, ...]) -> set[tuple[tuple[int, int], ...]]:
    return set(combinations(enumerate(place), 2))
