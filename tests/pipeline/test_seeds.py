"""Mean, spread, and when a figure is the best."""

import pytest

from pipeline.seeds import Spread, best_of, exact, figure_text, number, spread


def seeds(*values: float) -> Spread | None:
    return spread(values)


def test_mean_and_sample_standard_deviation() -> None:
    found = spread([0.4, 0.5, 0.6])
    assert found is not None
    assert found.mean == pytest.approx(0.5)
    assert found.deviation == pytest.approx(0.1), "divided by n - 1"
    assert found.values == (0.4, 0.5, 0.6)
    assert spread([]) is None
    assert spread([0.4]) == Spread(0.4, None, (0.4,))


@pytest.mark.parametrize(
    ("column", "lower", "best"),
    [
        ([seeds(0.70, 0.72), seeds(0.50, 0.52)], False, 0),
        ([seeds(0.50, 0.52), seeds(0.70, 0.72)], False, 1),
        ([seeds(0.50, 0.52), seeds(0.70, 0.72)], True, 0),
        # a lead of 0.02 against deviations of 0.0141 and 0.0424
        ([seeds(0.72, 0.74), seeds(0.68, 0.74)], False, None),
        ([seeds(0.72, 0.74), seeds(0.70, 0.72)], False, 0),
        # the larger of both deviations counts, also that of the best
        ([seeds(0.70, 0.76), seeds(0.70, 0.72)], False, None),
        # the third's spread does not matter
        ([seeds(0.72, 0.74), seeds(0.60, 0.62), seeds(0.2, 0.8)], False, 0),
        # equal means, and a lead of exactly the spread (zero)
        ([seeds(0.5, 0.5), seeds(0.5, 0.5)], False, None),
        # one seed has no spread: neither as the best nor as the second
        ([seeds(0.9), seeds(0.1, 0.1)], False, None),
        ([seeds(0.9, 0.9), seeds(0.1)], False, None),
        ([seeds(0.9, 0.9), seeds(0.5, 0.5), seeds(0.1)], False, 0),
        # the frozen model has no seeds and no spread of its own
        ([exact(0.9), seeds(0.5, 0.6)], False, 0),
        ([exact(0.55), seeds(0.5, 0.6)], False, None),
        ([exact(0.9), seeds(0.5)], False, None),
        # nothing to lead
        ([seeds(0.5, 0.6), None], False, None),
        ([None, None], False, None),
        ([None, seeds(0.9, 0.9), seeds(0.5, 0.5)], False, 1),
    ],
)
def test_the_best_is_marked_where_its_lead_exceeds_the_spread(
    column: list[Spread | None], lower: bool, best: int | None
) -> None:
    assert best_of(column, lower) == best


def test_figures_in_words() -> None:
    assert figure_text("top1", seeds(0.4, 0.5)) == "45.00 ± 7.07"
    assert figure_text("ece", seeds(0.4, 0.5)) == "0.4500 ± 0.0707"
    assert figure_text("top1", seeds(0.4)) == "40.00"
    assert figure_text("top1", exact(0.4)) == "40.00"
    assert figure_text("top1", None) == "–"


def test_numbers() -> None:
    assert (number(1), number(0.5)) == (1.0, 0.5)
    for value in (None, True, "1", float("nan"), float("inf"), [1]):
        assert number(value) is None
