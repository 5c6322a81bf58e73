"""Figures of evaluations as a table: in the terminal and in Markdown."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from pipeline.seeds import exact, figure_text, spread, spread_text
from pipeline.sweep_record import SweepRecord, SweepRow
from student_train.evaluators import FIGURES, ZERO_SHOT, shown
from student_train.markdown import table


@dataclass(frozen=True)
class Cells:
    """A table as text.

    Attributes:
        headings: one a column.
        rows: as many cells as there are headings.
        means: rows that follow them and sum them up.
    """

    headings: list[str]
    rows: list[list[str]]
    means: list[list[str]]

    def terminal(self) -> Table:
        """For the terminal; a line stands before the means."""
        drawn = Table(*self.headings)
        for number, row in enumerate((*self.rows, *self.means), start=1):
            drawn.add_row(*row, end_section=number == len(self.rows))
        return drawn

    def markdown(self) -> str:
        """In GitHub's Markdown."""
        return "\n".join(table(self.headings, [*self.rows, *self.means]))


def evaluation_cells(evals: Sequence[dict[str, Any]]) -> Cells:
    """What `evaluate` returns: a row for each evaluation."""
    headings, figures = _figures(evals)
    names = {
        "student": "student",
        "images": "images",
        "classes": "classes",
        "samples": "samples",
        "skipped": "unreadable",
        "without_label": "no label",
    }
    rows = [
        [str(result[name]) for name in names] + cells for result, cells in zip(evals, figures, strict=True)
    ]
    return Cells([*names.values(), *headings], rows, [])


def suite_cells(results: dict[str, Any]) -> Cells:
    """What `run_suites` returns: a row for each data set and student, and the means."""
    rows, means = results["rows"], results["means"]
    headings, figures = _figures([*rows, *means])
    about = {"data": "data", "student": "student", "classes": "classes", "samples": "samples"}
    left_out = {"skipped": "unreadable", "without_label": "no label"}
    about |= {name: heading for name, heading in left_out.items() if any(row[name] for row in rows)}
    names = [[str(row[name]) for name in about] for row in rows]
    names += [
        [f"mean of {_counted(mean)}, {mean['suite']}", mean["student"], *[""] * (len(about) - 2)]
        for mean in means
    ]
    whole = [name + cells for name, cells in zip(names, figures, strict=True)]
    return Cells([*about.values(), *headings], whole[: len(rows)], whole[len(rows) :])


def sweep_cells(record: SweepRecord) -> Cells:
    """A row for each evaluation and setting: means ± sample standard deviations over the seeds that are done;
    the frozen model's before them. Without evaluations, the last loss of the training."""
    configurations = record.configurations()
    every = [record.zero_shot, *(row.evals for row in record.rows if row.state == "done")]
    present = [name for name in FIGURES if any(name in found for evals in every for found in evals)]
    rows = []
    for place in range(max(map(len, every))):
        here = [evals[place] for evals in every if place < len(evals)]
        if record.zero_shot:
            axes = [ZERO_SHOT, *[""] * len(record.axes)][: len(record.axes)]
            frozen = [
                figure_text(name, exact(record.zero_shot[place].get(name)), none="") for name in present
            ]
            rows.append([here[0]["images"], *axes, "", *frozen])
        for members in configurations:
            done = [row.evals[place] for row in members if row.state == "done"]
            found = [spread(e[name] for e in done if name in e) for name in present]
            figures = [figure_text(*pair, none="") for pair in zip(present, found, strict=True)]
            rows.append([here[0]["images"], *_axes(members), _seeds(members), *figures])
    if rows:
        return Cells(["images", *record.axes, "seeds", *(FIGURES[name] for name in present)], rows, [])
    for members in configurations:
        loss = spread(row.train["loss"] for row in members if row.state == "done" and row.train)
        rows.append([*_axes(members), _seeds(members), spread_text(loss, "{:.4f}".format, none="")])
    return Cells([*record.axes, "seeds", "last loss"], rows, [])


def _axes(members: Sequence[SweepRow]) -> list[str]:
    return [str(value) for value in members[0].settings.values()]


def _seeds(rows: Sequence[SweepRow]) -> str:
    states = [row.state for row in rows]
    more = [f"{states.count(state)} {state}" for state in ("failed", "waiting") if state in states]
    return ", ".join([str(states.count("done")), *more])


def compared_cells(compared: dict[str, Any]) -> Cells:
    """What `compare_runs` returns: settings that differ, then the results."""
    rows = [[name, *map(str, values)] for name, values in compared["settings"].items()]
    results = [[name, *map(_result, values)] for name, values in compared["results"].items()]
    return Cells([f"{compared['same']} settings are the same", *compared["runs"]], rows, results)


def _result(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _figures(results: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Headings of the figures that any result has, and the cells of each result."""
    present = [name for name in FIGURES if any(name in result for result in results)]
    cells = [[shown(name, result[name]) if name in result else "" for name in present] for result in results]
    return [FIGURES[name] for name in present], cells


def _counted(mean: dict[str, Any]) -> str:
    return str(mean["of"]) if mean["datasets"] == mean["of"] else f"{mean['datasets']} of {mean['of']}"
