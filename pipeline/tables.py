"""Figures of evaluations as a table: in the terminal and in Markdown."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from pipeline.sweep_record import SweepRecord, SweepRow
from student_train.evaluators import FIGURES, shown
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
    groups: dict[str, list[SweepRow]] = {}
    for row in record.rows:
        groups.setdefault(str(row.settings), []).append(row)
    done = {name: [row for row in rows if row.state == "done"] for name, rows in groups.items()}
    of_evals = [row.evals for rows in done.values() for row in rows]
    count = max(map(len, [record.zero_shot, *of_evals]))
    present = [
        name
        for name in FIGURES
        if any(name in found for evals in (record.zero_shot, *of_evals) for found in evals)
    ]
    headings = ["images", *record.axes, "seeds", *(FIGURES[name] for name in present)]
    rows = []
    for number in range(count):
        if record.zero_shot:
            found = record.zero_shot[number]
            axes = ["zero-shot", *[""] * len(record.axes)][: len(record.axes)]
            rows.append([found["images"], *axes, "", *(_of_seeds(name, [found]) for name in present)])
        for name, members in groups.items():
            evals = [row.evals[number] for row in done[name]]
            images = next((e[number]["images"] for e in (record.zero_shot, *of_evals) if e), "")
            axes = [str(value) for value in members[0].settings.values()]
            cells = [_of_seeds(figure, evals) for figure in present]
            rows.append([images, *axes, _seeds(members), *cells])
    if not count:
        headings = [*record.axes, "seeds", "last loss"]
        for name, members in groups.items():
            losses = [row.train["loss"] for row in done[name] if row.train]
            axes = [str(value) for value in members[0].settings.values()]
            rows.append([*axes, _seeds(members), spread(losses, "{:.4f}".format)])
    return Cells(headings, rows, [])


def compared_cells(compared: dict[str, Any]) -> Cells:
    """What `compare_runs` returns: settings that differ, then the results."""
    rows = [[name, *map(str, values)] for name, values in compared["settings"].items()]
    results = [[name, *map(_result, values)] for name, values in compared["results"].items()]
    return Cells([f"{compared['same']} settings are the same", *compared["runs"]], rows, results)


def _result(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def spread(values: Sequence[float], shown: Callable[[float], str]) -> str:
    """Mean ± sample standard deviation; of one value no deviation, of none nothing."""
    if not values:
        return ""
    mean = shown(statistics.mean(values))
    return mean if len(values) == 1 else f"{mean} ± {shown(statistics.stdev(values))}"


def _of_seeds(name: str, evals: Sequence[dict[str, Any]]) -> str:
    return spread([found[name] for found in evals if name in found], lambda value: shown(name, value))


def _seeds(rows: Sequence[SweepRow]) -> str:
    states = [row.state for row in rows]
    more = [f"{states.count(state)} {state}" for state in ("failed", "waiting") if state in states]
    return ", ".join([str(states.count("done")), *more])


def _figures(results: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Headings of the figures that any result has, and the cells of each result."""
    present = [name for name in FIGURES if any(name in result for result in results)]
    cells = [[shown(name, result[name]) if name in result else "" for name in present] for result in results]
    return [FIGURES[name] for name in present], cells


def _counted(mean: dict[str, Any]) -> str:
    return str(mean["of"]) if mean["datasets"] == mean["of"] else f"{mean['datasets']} of {mean['of']}"
