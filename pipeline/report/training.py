"""Training curves from `metrics.jsonl`, one line per configuration."""

import numpy as np

from pipeline.report.curves import CURVES, LISTED, POINTS, Curve, read_curves, title_of
from pipeline.report.gather import Gathered
from pipeline.report.pieces import Figure, Figures, Piece, Table, Text
from pipeline.report.plots import MOST_LINES, Line, legend_sample, line_chart

MOST_ROWS = 60  # of a table, when configurations log different steps
SMALL = 1e-2


def curves_section(gathered: Gathered) -> list[Piece]:
    """Return plots of all values of the log, or the reason why there are none."""
    found: dict[str, dict[str, Curve]] = {}
    # the best are drawn, unless all are
    many = len(gathered.configurations) > MOST_LINES
    for one in gathered.best_first if many else gathered.configurations:
        curves = read_curves([gathered.run_folder(row) for row in one.done or one.rows])
        if curves:
            found[one.label] = curves
    if not found:
        text = "No curves: no run has a line in its metrics.jsonl (an early stop, or the runs were moved)."
        return [Text(text, True)]
    drawn = list(found)[:MOST_LINES]
    figures = [
        _figure(name, {label: curves[name] for label, curves in found.items() if name in curves}, drawn)
        for name in dict.fromkeys([*CURVES, *(name for curves in found.values() for name in curves)])
        if any(name in curves for curves in found.values())
    ]
    legend = [(legend_sample(number), label) for number, label in enumerate(drawn)]
    return [Text(_explanation(found, drawn)), Figures(figures, legend if len(drawn) > 1 else ())]


def _explanation(found: dict[str, dict[str, Curve]], drawn: list[str]) -> str:
    every = [curve for curves in found.values() for curve in curves.values()]
    text = "Each value is that of the step's batch, from metrics.jsonl."
    if any(curve.seeds > 1 for curve in every):
        text += " Lines are means over seeds, at the steps that all runs of a configuration have logged."
    if len(drawn) < len(found):
        text += f" The {len(drawn)} best of {len(found)} configurations are drawn; tables have all."
    if (longest := max(curve.count for curve in every)) > POINTS:
        text += (
            f" Of {longest:,} logged steps, a plot shows at most {POINTS} points per line: the first, the "
            "last, and the lowest and highest of each interval."
        )
    if longest > LISTED:
        text += f" Tables list {LISTED} steps, and the lowest and the highest of all."
    return text


def _figure(name: str, curves: dict[str, Curve], drawn: list[str]) -> Figure:
    title, unit = title_of(name)
    lines = [
        Line(label, curves[label].steps.astype(np.float64), curves[label].values)
        if label in curves
        else Line(label, np.empty(0), np.empty(0))
        for label in drawn
    ]
    drawing = line_chart(lines, title, "step", unit)
    heading = f"{title}, {unit}" if unit else title
    return Figure(heading, drawing, _table(curves))


def _table(curves: dict[str, Curve]) -> Table:
    steps = sorted({step for curve in curves.values() for step in curve.listed})
    if len(steps) > MOST_ROWS:
        kept = np.unique(np.linspace(0, len(steps) - 1, MOST_ROWS).round().astype(np.int64))
        steps = [steps[place] for place in kept]
    rows = [[f"{step:,}", *(_text(curve.listed.get(step)) for curve in curves.values())] for step in steps]
    rows.append(["lowest", *(_text(float(curve.values.min())) for curve in curves.values())])
    rows.append(["highest", *(_text(float(curve.values.max())) for curve in curves.values())])
    return Table("", ["step", *curves], rows)


def _text(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.3e}" if value and abs(value) < SMALL else f"{value:,.4f}"
