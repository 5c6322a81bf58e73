"""Tables of figures, for the terminal and in Markdown."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions
from rich.table import Table
from rich.text import Text

from pipeline.seeds import exact, figure_text, format_spread, spread
from pipeline.sweep_record import SweepRecord, SweepRow
from student_train.figures import FIGURES
from student_train.markdown import table

PADDING = 3  # a column's line, and a space on both sides of its text
WRAPPED_HEADING = 16
LONGEST_VALUE = 60  # characters of a setting; --json prints all
LEFT_OUT = {"skipped": "unreadable", "without_label": "no label"}  # headings of counts of images


@dataclass(frozen=True)
class Cells:
    """A table of texts.

    A terminal that is too narrow for all columns gets several tables, each with the columns that name the
    rows, as pandas prints them. Long texts are wrapped, not cut.

    Attributes:
        headings: one per column.
        rows: one cell per heading.
        means: rows below a line, such as means.
        names: number of leading columns that name a row.
    """

    headings: list[str]
    rows: list[list[str]]
    means: list[list[str]]
    names: int

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Table]:
        """Yield the tables for a terminal."""
        cells = [*self.rows, *self.means]
        widths = [
            # a heading, such as a run's folder, may be much longer than the figures below it
            max(*map(cell_len, column), min(cell_len(heading), WRAPPED_HEADING), 1)
            for heading, *column in zip(self.headings, *cells, strict=True)
        ]
        room = options.max_width - 1  # without the leftmost line
        widths[: self.names] = narrow(widths[: self.names], room // 2)
        of_names = sum(widths[: self.names]) + PADDING * self.names
        parts: list[list[int]] = [[]]
        for column in range(self.names, len(widths)):
            widths[column] = max(1, min(widths[column], room - of_names - PADDING))
            taken = of_names + sum(widths[other] + PADDING for other in parts[-1])
            if parts[-1] and taken + widths[column] + PADDING > room:
                parts.append([])
            parts[-1].append(column)
        for part in parts:
            drawn = Table()
            chosen = (*range(self.names), *part)
            for column in chosen:
                drawn.add_column(Text(self.headings[column]), width=widths[column], overflow="fold")
            for number, row in enumerate(cells, start=1):
                texts = (Text(row[column]) for column in chosen)  # brackets in them are not markup
                drawn.add_row(*texts, end_section=number == len(self.rows))
            yield drawn

    def markdown(self) -> str:
        """Return the table in GitHub's Markdown."""
        return "\n".join(table(self.headings, [*self.rows, *self.means]))


def narrow(widths: list[int], room: int) -> list[int]:
    """Reduce the widest columns until all together fit into a width, with padding."""
    widths = list(widths)
    while sum(widths) + PADDING * len(widths) > room and max(widths) > 1:
        widths[widths.index(max(widths))] -= 1
    return widths


def evaluation_cells(evals: Sequence[dict[str, Any]]) -> Cells:
    """Return a table of results of `evaluate`: a row for each."""
    headings, figures = _figure_columns(evals)
    names = {name: name for name in ("student", "images", "classes", "samples")} | LEFT_OUT
    rows = [
        [str(result[name]) for name in names] + cells for result, cells in zip(evals, figures, strict=True)
    ]
    return Cells([*names.values(), *headings], rows, [], names=2)


def suite_cells(results: dict[str, Any]) -> Cells:
    """Return a table of the result of `run_suites`: a row for each data set and student, and the means."""
    rows, means = results["rows"], results["means"]
    headings, figures = _figure_columns([*rows, *means])
    about = {name: name for name in ("data", "student", "classes", "samples")}
    about |= {name: heading for name, heading in LEFT_OUT.items() if any(row[name] for row in rows)}
    names = [[str(row[name]) for name in about] for row in rows]
    names += [
        [f"mean of {_counted(mean)}, {mean['suite']}", mean["student"], *[""] * (len(about) - 2)]
        for mean in means
    ]
    lines = [name + cells for name, cells in zip(names, figures, strict=True)]
    return Cells([*about.values(), *headings], lines[: len(rows)], lines[len(rows) :], names=2)


def sweep_cells(record: SweepRecord) -> Cells:
    """Return a table of a sweep: a row for each evaluation and setting, after those of frozen models.

    Figures are means ± sample standard deviations over finished seeds. Without evaluations, the figure is the
    last loss of the training.
    """
    configurations, baselines = record.configurations(), record.baselines()
    every = [*baselines.values(), *(row.evals for row in record.rows if row.state == "done")]
    present = [name for name in FIGURES if any(name in found for evals in every for found in evals)]
    rows = []
    for place in range(max(map(len, every), default=0)):
        here = [evals[place] for evals in every if place < len(evals)]
        for model, evals in baselines.items():
            frozen = [figure_text(name, exact(evals[place].get(name)), none="") for name in present]
            # without an axis, the name stands in the column of the seeds
            rows.append([here[0]["images"], model, *[""] * len(record.axes), *frozen])
        for members in configurations:
            done = [row.evals[place] for row in members if row.state == "done"]
            found = [spread(e[name] for e in done if name in e) for name in present]
            figures = [figure_text(*pair, none="") for pair in zip(present, found, strict=True)]
            rows.append([here[0]["images"], *_axes(members), _seeds(members), *figures])
    if rows:
        headings = ["images", *record.axes, "seeds", *(FIGURES[name].heading for name in present)]
        return Cells(headings, rows, [], names=2 + len(record.axes))
    for members in configurations:
        loss = spread(row.train["loss"] for row in members if row.state == "done" and row.train)
        rows.append([*_axes(members), _seeds(members), format_spread(loss, "{:.4f}".format, none="")])
    return Cells([*record.axes, "seeds", "last loss"], rows, [], names=1 + len(record.axes))


def _axes(members: Sequence[SweepRow]) -> list[str]:
    return [str(value) for value in members[0].settings.values()]


def _seeds(rows: Sequence[SweepRow]) -> str:
    states = [row.state for row in rows]
    more = [f"{states.count(state)} {state}" for state in ("failed", "waiting") if state in states]
    return ", ".join([str(states.count("done")), *more])


def compared_cells(compared: dict[str, Any]) -> Cells:
    """Return a table of the result of `compare_runs`: settings that differ, then the results."""
    rows = [[name, *_excerpts(values)] for name, values in compared["settings"].items()]
    results = [[name, *map(_result, values)] for name, values in compared["results"].items()]
    return Cells([f"{compared['same']} settings are the same", *compared["runs"]], rows, results, names=1)


def _excerpts(values: Sequence[Any]) -> list[str]:
    """Return values as texts; of long ones the part around the first character that differs."""
    texts = ["; ".join(map(str, value)) if isinstance(value, list) else str(value) for value in values]
    if max(map(len, texts)) <= LONGEST_VALUE:
        return texts
    characters = enumerate(zip(*texts, strict=False))
    same = next((place for place, found in characters if len(set(found)) > 1), min(map(len, texts)))
    begin = max(0, same - LONGEST_VALUE // 3)
    return [_cut(text, begin) for text in texts]


def _cut(text: str, begin: int) -> str:
    excerpt = text[begin:][:LONGEST_VALUE]
    return "…" * (excerpt != "" and begin > 0) + excerpt + "…" * (begin + LONGEST_VALUE < len(text))


def _result(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _figure_columns(results: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Return headings of the figures that any result has, and the cells of each result."""
    present = [name for name in FIGURES if any(name in result for result in results)]
    cells = [
        [FIGURES[name].text(result[name]) if name in result else "" for name in present] for result in results
    ]
    return [FIGURES[name].heading for name in present], cells


def _counted(mean: dict[str, Any]) -> str:
    return str(mean["of"]) if mean["datasets"] == mean["of"] else f"{mean['datasets']} of {mean['of']}"
