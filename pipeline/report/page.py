"""Render the sections into one HTML file with a template and a style sheet."""

import logging
import os
from datetime import datetime
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from pipeline.report.comparisons import comparisons
from pipeline.report.gather import Gathered, gather
from pipeline.report.inside import classes, norms, soft_labels
from pipeline.report.overview import every_run, headline, what_was_run
from pipeline.report.pieces import Section
from pipeline.report.softlabels import open_recorded_cache
from pipeline.report.training import curves_section
from teacher_cache.errors import RppError, UsageError
from teacher_cache.files.atomic_write import atomic_write_text
from teacher_cache.files.places import local_path, place_of

log = logging.getLogger(__name__)
REPORT = "report.html"


def make_report(
    folder: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    cache: str | os.PathLike[str] | None = None,
) -> Path:
    """Write the report of a run or a sweep.

    Args:
        folder: folder of the run or the sweep.
        out: the file; default: `report.html` in the folder.
        cache: where the cache of the runs is now; default: where it was, or at the same place relative to the
            run.

    Returns:
        The file.

    Raises:
        UsageError: the folder is neither, its record is damaged, or the file cannot be written.
    """
    folder = local_path(folder)
    gathered = gather(folder)
    out = folder / REPORT if out is None else local_path(out)
    if out.is_dir():
        raise UsageError(f"--out {out} is a folder; give a file")
    # file names may have characters that are not valid UTF-8
    html = (
        render(gathered, sections(gathered, None if cache is None else place_of(cache)))
        .encode("utf-8", "replace")
        .decode("utf-8")
    )
    try:
        atomic_write_text(out, html)
    except OSError as error:
        raise UsageError(f"--out {out} cannot be written: {error.strerror}") from error
    return out


def sections(gathered: Gathered, place: str | None = None) -> list[Section]:
    """Return all sections in the order of the page; those without data give the reason.

    Args:
        place: where the cache of the runs is now; see `open_recorded_cache`.
    """
    cache, why = None, ""
    if gathered.recorded_run is not None:
        try:
            cache = open_recorded_cache(*gathered.recorded_run, place)
        except RppError as error:
            why = str(error)
            log.warning("the report has no soft labels: %s", why)
    return [
        Section("results", "Results", headline(gathered)),
        *comparisons(gathered),
        Section("curves", "Training", curves_section(gathered)),
        Section("soft-labels", "Soft labels", soft_labels(gathered, cache, why)),
        Section("classes", "Classes gained and lost", classes(gathered)),
        Section("norms", "Norms of the prompts", norms(gathered)),
        Section("run", "What was run", what_was_run(gathered, cache, why)),
        Section("runs", "Every run" if gathered.is_sweep else "The run", every_run(gathered)),
    ]


def render(gathered: Gathered, content: list[Section]) -> str:
    """Return the page. All text from data is escaped, by the template or by `plots`."""
    environment = Environment(
        loader=PackageLoader("pipeline.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = files("pipeline.report").joinpath("report.css").read_text(encoding="utf-8")
    return environment.get_template("report.html.jinja").render(
        title=f"{'Sweep' if gathered.is_sweep else 'Run'} {gathered.folder.resolve().name}",
        subtitle=_subtitle(gathered),
        made=f"{datetime.now():%Y-%m-%d %H:%M}",
        sections=content,
        style=Markup(style),  # from the package
    )


def _subtitle(gathered: Gathered) -> str:
    if not gathered.is_sweep:
        return gathered.sweep.rows[0].why or "finished"
    states = [row.state for row in gathered.sweep.rows]
    counts = [f"{states.count(state)} {state}" for state in ("done", "failed", "waiting") if state in states]
    recipe = f", recipe {gathered.sweep.recipe}" if gathered.sweep.recipe else ""
    return f"{len(states)} runs: {', '.join(counts)}{recipe}"
