"""Plots: their elements, valid XML, and no markup from data."""

import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from markupsafe import Markup

from pipeline.report.plots import (
    MOST_LINES,
    Bar,
    HeatCell,
    Line,
    bar_chart,
    heat_colour,
    heat_map,
    ink_on,
    legend_sample,
    line_chart,
    luminance,
    marker,
    shortened,
    ticks,
)
from pipeline.seeds import Spread
from tests.pipeline.report.conftest import SCRIPT


def lines(*names: str) -> list[Line]:
    x = np.arange(1.0, 6.0)
    return [Line(name, x, x**2 + number) for number, name in enumerate(names)]


def a_line_chart(word: str) -> Markup:
    return line_chart(lines(word, word), word, word, word, level=(3.0, word))


def a_bar_chart(word: str) -> Markup:
    bars = [Bar(word, Spread(0.5, 0.1, (0.4, 0.6)), word), Bar("other", Spread(0.6, None, (0.6,)), "0.6")]
    return bar_chart(bars, word, word, (0.55, word))


def a_heat_map(word: str) -> Markup:
    cells = [[HeatCell(1.0, word, word, word), HeatCell(None, word, word, word)]]
    return heat_map(cells, [word], [word, word], word, word, word)


CHARTS = [a_line_chart, a_bar_chart, a_heat_map]


@pytest.mark.parametrize("chart", CHARTS)
def test_text_from_data_is_escaped(chart: Callable[[str], Markup]) -> None:
    for word in (SCRIPT, '"><img src=x onerror=alert(1)>', "a & b", "猫 ☃"):
        drawing = chart(word)
        root = ET.fromstring(drawing)
        assert root.get("aria-label") == word
        assert {element.tag for element in root.iter()} <= {
            "svg",
            "g",
            "path",
            "rect",
            "circle",
            "text",
            "title",
        }
        assert any(word in "".join(element.itertext()) for element in root.iter("title")) or any(
            element.text == word for element in root.iter("text")
        )


def test_lines_differ_in_class_and_marker() -> None:
    root = ET.fromstring(line_chart(lines(*map(str, range(MOST_LINES))), "t", "step", "nats"))
    drawn = [path for path in root.iter("path") if (path.get("class") or "").startswith("line ")]
    assert [path.get("class") for path in drawn] == [f"line s{number}" for number in range(MOST_LINES)]
    samples = [ET.fromstring(marker(number, 0, 0)) for number in range(MOST_LINES)]
    shapes = {(sample.get("d"), "open" in (sample.get("class") or "")) for sample in samples}
    assert len(shapes) == MOST_LINES
    assert str(marker(3, 18, 6)) in legend_sample(3)
    texts = [element.text for element in root.iter("text")]
    assert "step" in texts
    assert "nats" in texts


def test_higher_values_are_higher_up_and_equal_ones_do_not_fail() -> None:
    (path,) = [
        element
        for element in ET.fromstring(line_chart(lines("one"), "t", "x", "y")).iter("path")
        if element.get("class") == "line s0"
    ]
    points = [tuple(map(float, point.split())) for point in (path.get("d") or "")[1:].split("L")]
    assert [x for x, _ in points] == sorted(x for x, _ in points)
    assert [y for _, y in points] == sorted((y for _, y in points), reverse=True)
    flat = Line("flat", np.array([3.0]), np.array([0.0]))
    assert "nan" not in line_chart([flat], "t", "x", "y")


def test_a_bar_has_its_seeds_and_its_deviation() -> None:
    root = ET.fromstring(a_bar_chart("name"))
    kinds = [element.get("class") for element in root.iter()]
    assert kinds.count("mean") == 2
    assert kinds.count("seed") == 2, "a single seed is its mean"
    assert kinds.count("spread") == 3
    assert kinds.count("level") == 1


def test_colours_get_lighter_and_text_on_them_has_contrast() -> None:
    shares = np.linspace(0, 1, 101).tolist()
    light = [luminance(heat_colour(share)) for share in shares]
    assert all(a < b for a, b in pairwise(light))
    for share, shine in zip(shares, light, strict=True):
        ink = {"#fff": 1.0, "#000": 0.0}[ink_on(heat_colour(share))]
        high, low = max(ink, shine), min(ink, shine)
        assert (high + 0.05) / (low + 0.05) >= 4.5


def test_a_cell_without_a_value_is_hatched() -> None:
    root = ET.fromstring(a_heat_map("x"))
    fills = [rect.get("fill") for rect in root.iter("rect")]
    assert fills[1] == "url(#hatched)"
    assert (fills[0] or "").startswith("#")
    nothing = heat_map([[HeatCell(None, "no run")]], ["r"], ["c"], "t", "r", "c")
    assert "url(#hatched)" in nothing


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 1.0, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (0.3, 9.7, [2.0, 4.0, 6.0, 8.0]),
        (-1.0, 1.0, [-1.0, -0.5, 0.0, 0.5, 1.0]),
        (1e6, 1e6 + 5, [1e6 + n for n in range(6)]),
        (3.0, 3.0, [3.0]),
    ],
)
def test_ticks_are_round_numbers(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == expected


def test_long_names_are_cut() -> None:
    assert shortened("short", 100) == "short"
    cut = shortened("a very long name of a class", 61)
    assert cut.endswith("…")
    assert len(cut) <= 10
    assert "<title>a very long name" in bar_chart(
        [Bar("a very long name " * 9, Spread(1.0, None, (1.0,)), "1")], "t", "x", None
    )


def test_maps_that_share_their_ends_share_their_colours() -> None:
    """The same value has the same colour in both maps."""
    maps = [
        heat_map([[HeatCell(value, "v") for value in values]], ["r"], ["a", "b"], "t", "r", "c", (0.0, 1.0))
        for values in ((0.0, 0.5), (0.5, 1.0))
    ]
    fills = [re.findall(r'<rect [^>]*fill="(#\w+)"', drawing) for drawing in maps]
    assert fills[0][1] == fills[1][0]
    assert len({*fills[0], *fills[1]}) == 3
