"""What the demo prints: the headline, the teacher's cost, and two tables, from the results of `run_demo`."""

from collections.abc import Iterator
from typing import Any

from rich import box
from rich.table import Table

from pipeline.demo.compare import JOBS, QKV_HARD, SHARED_HARD, SOFT, spread_text
from student_train.figures import TEACHER, ZERO_SHOT

MEGABYTE = 1_000_000


def story(results: dict[str, Any]) -> Iterator[str | Table]:
    """Yield the lines and tables of the demo."""
    yield results["headline"]
    yield from cost_lines(results["teacher"], results["online"])
    yield temperature_table(results)
    yield ""
    yield prompts_table(results)
    yield (
        f"Means ± standard deviations over {results['seeds']} seeds, {JOBS} runs at a time. "
        f"This call took {results['seconds']:.0f} s."
    )
    yield f"Report: {results['report']}"
    yield f"The rows as a recipe, to change and to run again: rpp run {results['recipe']}"


def cost_lines(teacher: dict[str, Any], online: dict[str, Any]) -> Iterator[str]:
    """Yield what the teacher's pass took, and what its absence from the runs saved."""
    yield ""
    yield (
        f"(a) The teacher ran once: {teacher['pictures']} pictures × {teacher['views']} views in "
        f"{teacher['seconds']:.1f} s, {teacher['bytes'] / MEGABYTE:.2f} MB."
    )
    seconds = online["seconds"]
    took = f"    The {online['runs']} runs with soft labels took {online['sweep_seconds']:.0f} s."
    one = f"one run: cached {seconds['cached']:.1f} s, online {seconds['online']:.1f} s"
    if online["sweep_seconds_online"] is None:
        yield took
        yield f"    Other work disturbed the comparison with a teacher online ({one});"
        yield "    the same command again measures it again."
    else:
        yield f"{took} Online it would have been {online['sweep_seconds_online']:.0f} s"
        yield f"    ({one})."
    yield ""


def temperature_table(results: dict[str, Any]) -> Table:
    """Return the ablation over the temperature of the soft labels."""
    table = _table(
        "(b) QKV prompts from one cache, label temperature T",
        "harmonic\nmean %",
        "teacher\nagrees %",
        "KL to\nteacher",
        "seconds\na run",
        "teacher\nonline *",
    )
    table.caption = "* seconds × the ratio of the two measured runs; hard labels need no teacher"
    rows = {row["name"]: row for row in results["rows"]}
    for label, name in {"hard labels": QKV_HARD, **{f"T = {t}": name for t, name in SOFT.items()}}.items():
        row = rows[name]
        figures = [spread_text(figure, row["figures"][figure]) for figure in ("harmonic", "agreement", "kl")]
        online = "" if row["seconds_online"] is None else f"{row['seconds_online']:.1f}"
        table.add_row(label, *figures, f"{row['seconds']['mean']:.1f}", online)
    return table


def prompts_table(results: dict[str, Any]) -> Table:
    """Return the comparison of frozen models and prompts."""
    table = _table(
        "(c) tested on a style that no model was trained on",
        "base %",
        "new %",
        "harmonic\nmean %",
        "teacher\nagrees %",
    )
    rows = {row["name"]: row["figures"] for row in results["rows"]} | results["frozen"]
    names = {
        "zero-shot": ZERO_SHOT,
        "teacher": TEACHER,
        "shared, hard labels": SHARED_HARD,
        "QKV, hard labels": QKV_HARD,
        "QKV + soft, T = 1": SOFT[1],
    }
    for label, name in names.items():
        if name in rows:  # a teacher that is the student's model has no line
            figures = ("base", "new", "harmonic", "agreement")
            table.add_row(label, *(spread_text(figure, rows[name][figure]) for figure in figures))
    return table


def _table(title: str, *headings: str) -> Table:
    """Return an empty table that fits into 80 columns, with the row's name in the first one."""
    return Table(
        "", *headings, title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=0
    )
