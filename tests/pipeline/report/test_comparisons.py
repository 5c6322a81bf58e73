"""Comparisons: means against plain sums, cells of heat maps, and reasons for nothing to compare."""

import itertools
from pathlib import Path
from typing import Any

import pytest

from pipeline.report.comparisons import comparisons, grouped, numeric_axes
from pipeline.report.gather import Gathered, gather
from pipeline.report.pieces import Figures, Section, Text
from pipeline.sweep_record import SweepRecord, SweepRow


def made(axes: dict[str, list[Any]], seeds: int = 2, **without: Any) -> Gathered:
    """A sweep whose top-1 is 0.1 · (1 + place on the first axis) + 0.01 · (place on the second) + 0.001 ·
    (place on the third) + 0.0002 · seed."""
    rows = []
    for places in itertools.product(*(range(len(values)) for values in axes.values())):
        settings = {axis: axes[axis][place] for axis, place in zip(axes, places, strict=True)}
        for seed in range(seeds):
            top1 = 0.1 + 0.0002 * seed + sum(place / 10**n for n, place in enumerate(places, start=1))
            evals = [{"student": "runs/x", "images": "val/a.tar", "classes": 10, "top1": top1}]
            rows.append(
                SweepRow(settings=settings, seed=seed, run=f"runs/{len(rows)}", state="done", evals=evals)
            )
    zero_shot = [{"student": "zero-shot", "images": "val/a.tar", "classes": 10, "top1": 0.15}]
    sweep = SweepRecord(
        recipe="r.toml", cache="c", axes=axes, seeds=list(range(seeds)), zero_shot=zero_shot, rows=rows
    )
    return Gathered(Path("nowhere"), True, sweep)


def of(sections: list[Section], name: str) -> Section:
    return next(section for section in sections if section.name == name)


def text_of(section: Section) -> str:
    return " ".join(piece.text for piece in section.pieces if isinstance(piece, Text))


def figures(section: Section) -> Figures:
    return next(piece for piece in section.pieces if isinstance(piece, Figures))


GRID: dict[str, list[Any]] = {"temperature": [1, 4], "soft_weight": [0.0, 0.5, 1.0]}


def test_means_over_seeds_and_over_other_axes() -> None:
    found = grouped(made(GRID), 0, "top1", ["temperature"])
    assert list(found) == [("1",), ("4",)]
    one, four = found[("1",)], found[("4",)]
    assert one is not None
    assert four is not None
    assert one.values == pytest.approx((0.11, 0.1102)), "each seed's mean over the three weights"
    assert four.mean == pytest.approx(0.2101)
    assert four.deviation == pytest.approx(0.0002 / 2**0.5)


def test_a_seed_counts_where_all_its_runs_are_done() -> None:
    gathered = made(GRID)
    gathered.sweep.rows[0].state = "failed"  # temperature 1, weight 0, seed 0
    found = grouped(gathered, 0, "top1", ["temperature"])
    assert found[("1",)] is not None
    assert found[("1",)].values == pytest.approx((0.1102,)), "the other seed alone"
    gathered.sweep.rows[3].state = "waiting"  # temperature 1, weight 0.5, seed 1
    assert grouped(gathered, 0, "top1", ["temperature"])[("1",)] is None
    whole = grouped(gathered, 0, "top1", list(GRID))
    assert [figure is None for figure in whole.values()] == [False] * 6
    assert len(whole[("1", "0.0")].values) == 1  # type: ignore[union-attr]


def test_a_heat_map_has_the_mean_of_each_cell() -> None:
    axes = {"temperature": [4, 1], "soft_weight": [0.0, 0.5, 1.0]}
    (figure,) = figures(of(comparisons(made(axes)), "heat")).figures
    assert figure.title == "top-1 % by temperature and soft weight"
    assert list(figure.table.headings) == ["soft weight ↓  temperature →", "1", "4"], "sorted"
    assert [list(row) for row in figure.table.rows] == [
        ["0", "20.01 ± 0.01", "10.01 ± 0.01"],
        ["0.5", "21.01 ± 0.01", "11.01 ± 0.01"],
        ["1", "22.01 ± 0.01", "12.01 ± 0.01"],
    ]
    for row in figure.table.rows:
        for cell in row[1:]:
            assert f">{str(cell).split()[0]}<" in figure.drawing, "printed in the cell"


def test_a_cell_without_a_run_is_hatched() -> None:
    gathered = made(GRID)
    for row in gathered.sweep.rows[:2]:
        row.state = "failed"
    (figure,) = figures(of(comparisons(gathered), "heat")).figures
    assert figure.table.rows[0][1] == "–"
    assert figure.drawing.count("url(#hatched)") == 1


def test_other_axes_get_maps_of_their_own_or_are_averaged() -> None:
    few = made({**GRID, "carry": ["replace", "residual"]})
    titles = [one.title for one in figures(of(comparisons(few), "heat")).figures]
    assert titles == [f"top-1 % by temperature and soft weight: {carry}" for carry in ("replace", "residual")]
    many = made({**GRID, "optimizer": ["a", "b", "c", "d", "e"]})
    (figure,) = figures(of(comparisons(many), "heat")).figures
    assert figure.note == "The value of a seed is its mean over the other axes: optimizer."
    assert figure.table.rows[0][1] == "10.21 ± 0.01", "the optimizers' places are 0 to 4, their mean 2"


def test_axes_without_numbers_have_no_heat_map() -> None:
    gathered = made({"temperature": [1, 2], "classes_per_step": ["all", 100], "x.flag": [True, False]})
    assert numeric_axes(gathered) == ["temperature"]
    section = of(comparisons(gathered), "heat")
    assert text_of(section) == "No heat map: it needs two axes with numbers; the sweep has temperature."


def test_the_structure_ablation_has_a_row_for_each_structure() -> None:
    axes = {"prompt_structure": ["qkv", "shared"], "carry": ["replace", "residual"]}
    (figure,) = figures(of(comparisons(made(axes)), "structure")).figures
    names = [str(row[0]) for row in figure.table.rows]
    assert names == ["qkv, replace", "qkv, residual", "shared, replace", "shared, residual"]
    for row in figure.table.rows:
        assert f">{row[0]}<" in figure.drawing
        assert f">{row[1]}<" in figure.drawing
    assert "zero-shot 15.00" in figure.drawing
    assert text_of(of(comparisons(made(GRID)), "structure")).startswith("No structure ablation: no axis")


def test_nothing_to_compare_has_a_reason(run_path: Path) -> None:
    (section,) = comparisons(gather(run_path))
    assert "this is a single run" in text_of(section)
    (section,) = comparisons(made({"temperature": [1]}))
    assert "no axis with several values" in text_of(section)
    unevaluated = made(GRID)
    for row in unevaluated.sweep.rows:
        row.evals = []
    (section,) = comparisons(unevaluated)
    assert "no finished run was evaluated" in text_of(section)
