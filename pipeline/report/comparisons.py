"""Effect of the axes of a sweep on its headline figure: each axis, heat maps of two, prompt structure."""

import itertools
import json
import math
from collections.abc import Callable, Sequence
from typing import Any

from pipeline.report.gather import Evaluation, Gathered, axis_name, label, value_text
from pipeline.report.pieces import Figure, Figures, Piece, Section, Table, Text
from pipeline.report.plots import Bar, HeatCell, bar_chart, heat_map
from pipeline.seeds import Spread, figure_text, number, spread
from student_train.figures import FIGURES

STRUCTURE = (
    *("prompt_structure", "carry", "prompt_depth", "prompt_length"),
    *("vision_prompt_depth", "vision_prompt_length", "towers"),
)
MOST_PAIRS = 3  # of axes with heat maps
MOST_MAPS = 4  # per pair, one for each combination of the other axes
MOST_BARS = 40


def comparisons(gathered: Gathered) -> list[Section]:
    """Return the sections, or one with the reason why there is nothing to compare."""
    if not gathered.axes:
        what = "the sweep has no axis with several values" if gathered.is_sweep else "this is a single run"
        text = f"Nothing to compare: {what}. Axis plots, heat maps and the structure ablation need a sweep."
        return [Section("axes", "Comparisons", [Text(text, True)])]
    evaluation = gathered.evaluations[0] if gathered.evaluations else None
    if evaluation is None or (name := evaluation.headline) is None:
        text = "Nothing to compare: no finished run was evaluated."
        return [Section("axes", "Comparisons", [Text(text, True)])]
    return [
        _axis_by_axis(gathered, evaluation, name),
        _heat_maps(gathered, evaluation, name),
        _structure(gathered, evaluation, name),
    ]


def grouped(
    gathered: Gathered, evaluation: int, name: str, axes: Sequence[str]
) -> dict[tuple[Any, ...], Spread | None]:
    """Return a figure for each combination of values of some axes.

    The value of a seed is its mean over the other axes. Seeds without the figure in every run of the
    combination are left out, so that all means are over the same settings.
    """
    figures: dict[tuple[Any, ...], Spread | None] = {}
    for values in itertools.product(*(gathered.axes[axis] for axis in axes)):
        wanted = [_key(value) for value in values]
        members = [
            one
            for one in gathered.configurations
            if [_key(one.settings.get(axis)) for axis in axes] == wanted
        ]
        by_seed: dict[int, list[float]] = {}
        for row in (row for one in members for row in one.done):
            value = number(row.evals[evaluation].get(name)) if evaluation < len(row.evals) else None
            if value is not None:
                by_seed.setdefault(row.seed, []).append(value)
        means = [sum(found) / len(found) for found in by_seed.values() if len(found) == len(members)]
        figures[tuple(map(_key, values))] = spread(means)
    return figures


def _key(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _explanation(evaluation: Evaluation, name: str) -> str:
    better = "lower is better" if FIGURES[name].lower_is_better else "higher is better"
    return f"The figure is {FIGURES[name].heading} on {evaluation.title} ({better})"


def _scaled(name: str, figure: Spread) -> Spread:
    scale = FIGURES[name].scale
    deviation = None if figure.deviation is None else scale * figure.deviation
    return Spread(scale * figure.mean, deviation, tuple(scale * value for value in figure.values))


def _axis_by_axis(gathered: Gathered, evaluation: Evaluation, name: str) -> Section:
    figures: list[Figure] = []
    for axis in gathered.axes:
        figures += _bars(gathered, evaluation, name, [axis], lambda values: value_text(values[0]))
    pieces: list[Piece] = [Text(f"{_explanation(evaluation, name)}. {_over_others(gathered, 1)}")]
    pieces.append(
        Figures(figures) if figures else Text("No value of an axis has all runs of a seed finished.", True)
    )
    return Section("axes", "Axis by axis", pieces)


def _over_others(gathered: Gathered, axes: int) -> str:
    text = "Dots are means over seeds, bars are one standard deviation to either side, rings are seeds."
    if len(gathered.axes) > axes:
        text += " The value of a seed is its mean over the other axes, if all those runs are finished."
    return text


def _bars(
    gathered: Gathered,
    evaluation: Evaluation,
    name: str,
    axes: Sequence[str],
    words: Callable[[Sequence[Any]], str],
) -> list[Figure]:
    """Return a plot with a bar for each combination of values of some axes, or none without a figure.

    Args:
        words: formats a combination.
    """
    found = grouped(gathered, evaluation.place, name, axes)
    combinations = itertools.product(*(gathered.axes[axis] for axis in axes))
    named = {words(values): found[tuple(map(_key, values))] for values in combinations}
    bars = [
        Bar(text, _scaled(name, figure), figure_text(name, figure))
        for text, figure in named.items()
        if figure is not None
    ]
    if not bars:
        return []
    shown, heading = FIGURES[name], ", ".join(map(axis_name, axes))
    title = f"{shown.heading} by {heading}"
    frozen = evaluation.zero_shot_figure(name)
    reference = (shown.scale * frozen.mean, f"zero-shot {shown.text(frozen.mean)}") if frozen else None
    drawing = bar_chart(bars[:MOST_BARS], title, shown.heading, reference)
    rows = [
        [text, figure_text(name, figure), str(len(figure.values) if figure else 0)]
        for text, figure in named.items()
    ]
    note = f"The first {MOST_BARS} of {len(bars)} are drawn." if len(bars) > MOST_BARS else ""
    return [Figure(title, drawing, Table("", [heading, shown.heading, "seeds"], rows), note)]


def numeric_axes(gathered: Gathered) -> list[str]:
    """Return the axes whose values are all numbers."""
    return [
        axis for axis, values in gathered.axes.items() if all(number(value) is not None for value in values)
    ]


def _heat_maps(gathered: Gathered, evaluation: Evaluation, name: str) -> Section:
    numeric = numeric_axes(gathered)
    if len(numeric) < 2:
        known = ", ".join(axis_name(axis) for axis in numeric)
        text = f"No heat map: it needs two axes with numbers; the sweep has {known or 'none'}."
        return Section("heat", "Heat maps", [Text(text, True)])
    pairs = list(itertools.combinations(numeric, 2))
    maps = [one for pair in pairs[:MOST_PAIRS] for one in _maps_of(gathered, evaluation, name, *pair)]
    pieces: list[Piece] = [
        Text(
            f"{_explanation(evaluation, name)}. Lighter cells are higher; maps of the same axes share their "
            "colours; hatched cells have no finished run. Below the mean is ± one standard deviation over "
            "seeds."
        ),
        Figures(maps),
    ]
    if len(pairs) > MOST_PAIRS:
        pieces.append(Text(f"The first {MOST_PAIRS} of {len(pairs)} pairs of axes are shown.", True))
    return Section("heat", "Heat maps", pieces)


def _maps_of(gathered: Gathered, evaluation: Evaluation, name: str, across: str, down: str) -> list[Figure]:
    """Return a map for each combination of the other axes, or one of means over them if they are many."""
    others, note = [axis for axis in gathered.axes if axis not in (across, down)], ""
    if math.prod(len(gathered.axes[axis]) for axis in others) > MOST_MAPS:
        note = f"The value of a seed is its mean over the other axes: {', '.join(map(axis_name, others))}."
        others = []
    every = grouped(gathered, evaluation.place, name, [across, down, *others])
    known = [figure.mean for figure in every.values() if figure is not None]
    ends = (min(known), max(known)) if known else None
    columns = {_key(value): value_text(value) for value in sorted(gathered.axes[across])}
    rows = {_key(value): value_text(value) for value in sorted(gathered.axes[down])}
    x, y = axis_name(across), axis_name(down)
    figures = []
    for values in itertools.product(*(gathered.axes[axis] for axis in others)):
        title = f"{FIGURES[name].heading} by {x} and {y}"
        if others:
            title += f": {label(dict(zip(others, values, strict=True)))}"
        end = tuple(map(_key, values))
        found = [[every[column, row, *end] for column in columns] for row in rows]
        cells = [[_heat_cell(figure, name) for figure in row] for row in found]
        drawing = heat_map(cells, list(rows.values()), list(columns.values()), title, y, x, ends)
        table = Table(
            "",
            [f"{y} ↓  {x} →", *columns.values()],
            [
                [text, *(figure_text(name, figure) for figure in row)]
                for text, row in zip(rows.values(), found, strict=True)
            ],
        )
        figures.append(Figure(title, drawing, table, note))
    return figures


def _heat_cell(figure: Spread | None, name: str) -> HeatCell:
    if figure is None:
        return HeatCell(None, "no run", title="no finished run")
    deviation = f"± {FIGURES[name].text(figure.deviation)}" if figure.deviation is not None else ""
    seeds = f"{len(figure.values)} seed{'s' if len(figure.values) > 1 else ''}"
    return HeatCell(
        figure.mean, FIGURES[name].text(figure.mean), deviation, f"{figure_text(name, figure)}, {seeds}"
    )


def _structure(gathered: Gathered, evaluation: Evaluation, name: str) -> Section:
    axes = [axis for axis in gathered.axes if axis in STRUCTURE]
    title = "Structure of the prompts"
    if not axes:
        known = ", ".join(map(axis_name, STRUCTURE))
        text = f"No structure ablation: no axis of the sweep is one of {known}."
        return Section("structure", title, [Text(text, True)])
    figures = _bars(
        gathered, evaluation, name, axes, lambda values: label(dict(zip(axes, values, strict=True)))
    )
    none = Text("No combination has all runs of a seed finished.", True)
    text = f"{_explanation(evaluation, name)}. {_over_others(gathered, len(axes))}"
    return Section("structure", title, [Text(text), Figures(figures) if figures else none])
