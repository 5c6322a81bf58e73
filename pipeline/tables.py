"""Figures of evaluations as a table: in the terminal and in Markdown."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

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
    names = [[row["data"], row["student"], str(row["classes"]), str(row["samples"])] for row in rows]
    names += [[f"mean of {_counted(mean)}, {mean['suite']}", mean["student"], "", ""] for mean in means]
    whole = [name + cells for name, cells in zip(names, figures, strict=True)]
    return Cells(["data", "student", "classes", "samples", *headings], whole[: len(rows)], whole[len(rows) :])


def _figures(results: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Headings of the figures that any result has, and the cells of each result."""
    present = [name for name in FIGURES if any(name in result for result in results)]
    cells = [[shown(name, result[name]) if name in result else "" for name in present] for result in results]
    return [FIGURES[name] for name in present], cells


def _counted(mean: dict[str, Any]) -> str:
    return str(mean["of"]) if mean["datasets"] == mean["of"] else f"{mean['datasets']} of {mean['of']}"
