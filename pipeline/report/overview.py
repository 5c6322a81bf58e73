"""The sections of every report: what was run, the table of all configurations, and every run."""

from collections.abc import Iterable
from typing import Any

from pipeline.report.gather import (
    Configuration,
    Evaluation,
    Gathered,
    axis_name,
    changed_settings,
    reason,
    value_text,
)
from pipeline.report.pieces import Cell, FactGroups, Facts, Piece, Table, Tables, Text
from pipeline.seeds import Spread, best_of, exact, figure_text, number
from pipeline.sweep_record import SweepRow
from student_train.figures import FIGURES, ZERO_SHOT
from teacher_cache.errors import RppError
from teacher_cache.model_names import portable_model, portable_pretrained
from teacher_cache.softlabels import TeacherCache

LOWER = " and ".join(figure.heading for figure in FIGURES.values() if figure.lower_is_better)
AGAINST_TEACHER = " and ".join(figure.heading for figure in FIGURES.values() if figure.against_teacher)
RULE = (
    "Mean ± sample standard deviation over seeds. ★ marks the best value of a column if its mean leads the "
    "second best by more than the larger of the two standard deviations; with one seed no value is marked. "
    f"Lower is better for {LOWER}. The student's frozen model (zero-shot) takes part with a deviation of 0, "
    f"except in {AGAINST_TEACHER}, where a teacher would be compared with itself. A teacher that is another "
    "model takes no part."
)
SEVERAL_TEACHERS = (
    f"Rows have several caches: {AGAINST_TEACHER} compare each row with the teacher of its own cache, unless "
    "the [[eval]] names a cache. None of these figures is marked."
)


def what_was_run(gathered: Gathered, cache: TeacherCache | None, why_no_cache: str) -> list[Piece]:
    """Return teacher, cache, student, cost, settings and data."""
    record, pieces = gathered.record, list[Piece]()
    unread, build_seconds = None, 0.0
    try:
        if cache is not None:
            unread = int((~cache.valid).sum())
            build_seconds = sum(part.seconds.get("wall", 0.0) for part in cache.store.parts.records())
    except RppError as error:
        why_no_cache = str(error)
    if record is None:
        pieces.append(Text("No run has written its settings yet.", True))
    else:
        groups = [
            _teacher(record),
            _cache(record, cache, unread),
            _student(record),
            _cost(gathered, build_seconds),
        ]
        pieces.append(FactGroups([group for group in groups if group.pairs]))
        differ = {name for settings in gathered.sweep.row_settings.values() for name in settings}
        if differ & {"cache", "student", "pretrained"} and gathered.chosen_words:
            text = f"Teacher, cache and student are those of {gathered.chosen_words}; other rows differ."
            pieces.append(Text(text))
        never_read = record.get("never_read")
        if isinstance(never_read, list) and never_read:
            lines = "; ".join(map(str, never_read))
            which = f", in the run {words}" if (words := gathered.chosen_words) else ""
            pieces.append(Text(f"Prompts without effect{which}: {lines}."))
        pieces.append(Tables(_settings(gathered, record)))
    if gathered.evaluations:
        pieces.append(_data(gathered.evaluations))
    if why_no_cache:
        pieces.append(Text(f"The cache cannot be read: {why_no_cache}", True))
    return pieces


def _settings(gathered: Gathered, record: dict[str, Any]) -> list[Table]:
    of_rows = {name: None for settings in gathered.sweep.row_settings.values() for name in settings}
    changed = changed_settings(record, [*gathered.sweep.axes, *of_rows])
    rows = [[name.replace("_", " "), value_text(value)] for name, value in changed.items()]
    caption = "Settings that differ from the defaults" + (
        ", without the axes and those of rows"
        if of_rows
        else ", without the axes"
        if gathered.is_sweep
        else ""
    )
    note = "" if rows else "None."
    tables = [Table(caption, ["setting", "value"], rows, words=2, note=note)]
    if gathered.axes:
        axes = [
            [axis_name(axis), ", ".join(map(value_text, values))] for axis, values in gathered.axes.items()
        ]
        seeds = ", ".join(map(str, gathered.sweep.seeds))
        tables.append(Table("Axes of the sweep", ["axis", "values"], [*axes, ["seed", seeds]], words=2))
    if of_rows:
        headings = ["row", *(axis_name(name) for name in of_rows)]
        settings = [
            [row, *(value_text(values[name]) if name in values else "" for name in of_rows)]
            for row, values in gathered.sweep.row_settings.items()
        ]
        note = "An empty cell is the value that all rows share."
        tables.append(Table("Settings of the rows", headings, settings, words=len(headings), note=note))
    return tables


def _teacher(record: dict[str, Any]) -> Facts:
    teacher = record["cache"]["teacher"]
    pairs = [
        ("model", _model(teacher.get("model"), teacher.get("pretrained"))),
        ("weights", teacher.get("weights_digest")),
        ("logit scale", _number_text(teacher.get("logit_scale"), ".4g")),
        ("precision", teacher.get("precision")),
        ("templates", _first_three(record["templates"])),
    ]
    return _facts("Teacher", pairs)


def _cache(record: dict[str, Any], cache: TeacherCache | None, unread: int | None) -> Facts:
    header, settings = record["cache"], record["settings"]
    encoding = header.get("encoding")
    views = header.get("view_policy")
    pairs = [
        ("place", settings.get("cache") if cache is None else cache.path),
        ("samples", _number_text(header.get("samples"))),
        ("views per sample", views.get("views") if isinstance(views, dict) else None),
        ("classes", _number_text(header.get("classes"))),
        ("vocabulary", settings.get("vocabulary") or header.get("vocabulary")),
        ("encoding", encoding.get("name") if isinstance(encoding, dict) else encoding),
        ("images", header.get("images")),
        ("digest of the samples", header.get("sample_table_digest")),
        ("digest of the classes", header.get("vocabulary_digest")),
        ("software", header.get("software")),
        ("unreadable", None if unread is None else f"{unread:,} samples"),
    ]
    return _facts("Cache", pairs)


def _student(record: dict[str, Any]) -> Facts:
    student, modes = record["student"], {"images": "images", "features": "cached features, no image"}
    pairs = [
        ("frozen model", _model(student.get("model"), student.get("pretrained"))),
        ("weights", student.get("weights_digest")),
        ("reads", modes.get(str(record.get("mode")), record.get("mode"))),
        ("samples per step", _number_text(record.get("samples_per_step"))),
        ("processes", record.get("processes")),
        ("starts from", record.get("init")),
        ("software", record.get("software")),
    ]
    return _facts("Student", pairs)


def _cost(gathered: Gathered, build_seconds: float) -> Facts:
    seconds, waited, samples = (
        [value for row in gathered.sweep.rows if (value := number((row.train or {}).get(name))) is not None]
        for name in ("seconds", "wait_seconds", "samples")
    )
    pairs = []
    if seconds:
        runs = f"training, {len(seconds)} runs" if gathered.is_sweep else "training"
        pairs += [(runs, _seconds(sum(seconds))), ("of this, waiting for data", _seconds(sum(waited)))]
        if samples and sum(seconds):
            pairs.append(("samples per second", f"{sum(samples) / sum(seconds):,.0f}"))
    if gathered.sweep.seconds:
        pairs.append(("the whole sweep", _seconds(gathered.sweep.seconds)))
    if not seconds:
        pairs.append(("training", "not recorded; rpp run and rpp sweep record seconds in results.json"))
    if build_seconds:
        pairs.append(("the cache's parts, all workers", _seconds(build_seconds)))
    return Facts("Cost", pairs)


def _data(evaluations: list[Evaluation]) -> Table:
    counts = ("classes", "samples", "skipped", "without_label")
    rows = [[one.images, *(_number_text(one.about.get(name)) for name in counts)] for one in evaluations]
    notes = [found for one in evaluations if isinstance(found := one.about.get("notes"), list)]
    texts = dict.fromkeys(str(note) for found in notes for note in found)
    headings = ["evaluated on", "classes", "samples", "unreadable", "no label"]
    return Table("Data", headings, rows, note="; ".join(texts))


def headline(gathered: Gathered) -> list[Piece]:
    """Return a table of all configurations for each evaluation."""
    if not gathered.evaluations:
        what = "sweep" if gathered.is_sweep else "run"
        text = f"This {what} has no evaluation: add [[eval]] to the recipe, or use rpp eval."
        return [Text(text, True), _headline_table(gathered, None, first=True)]
    pieces: list[Piece] = [Text(RULE)]
    if gathered.sweep.several_teachers:
        pieces.append(Text(SEVERAL_TEACHERS))
    for place, one in enumerate(gathered.evaluations):
        pieces.append(_headline_table(gathered, one, first=place == 0))
    if gathered.sweep.zero_shot_why:
        pieces.append(Text(f"No zero-shot row: {reason(gathered.sweep.zero_shot_why)}", True))
    elif not any(
        results and name.startswith(ZERO_SHOT)
        for one in gathered.evaluations
        for name, results in one.baselines.items()
    ):
        pieces.append(Text("No zero-shot row: the student's frozen model was not evaluated.", True))
    if gathered.sweep.teacher_why:
        pieces.append(Text(f"No teacher row: {reason(gathered.sweep.teacher_why)}", True))
    if len(gathered.sweep.seeds) < 2:
        pieces.append(Text("One seed: figures have no standard deviation, and none is marked.", True))
    return pieces


def _headline_table(gathered: Gathered, evaluation: Evaluation | None, first: bool) -> Table:
    axes = list(gathered.axes)
    leading = max(1, len(axes))
    columns: dict[str, list[Spread | None]] = {}  # figures of frozen models, then one per configuration
    baselines = evaluation.baselines if evaluation else {}
    best = {}
    if evaluation is not None:
        for name in evaluation.figures:
            figures = [one.figure(evaluation.place, name) for one in gathered.configurations]
            frozen = [exact(number(one.get(name))) for one in baselines.values()]
            columns[name] = [*frozen, *figures]
            against_teacher = FIGURES[name].against_teacher
            takes_part = [not against_teacher and one.startswith(ZERO_SHOT) for one in baselines]
            takes_part += [not (against_teacher and gathered.sweep.several_teachers)] * len(figures)
            pairs = zip(columns[name], takes_part, strict=True)
            compared = [one if does else None for one, does in pairs]
            best[name] = best_of(compared, FIGURES[name].lower_is_better)

    def cells(place: int) -> list[Cell]:
        return [
            Cell(figure_text(name, column[place]), best[name] == place) for name, column in columns.items()
        ]

    rows: list[list[str | Cell]] = []
    for place, name in enumerate(baselines):
        if any(column[place] for column in columns.values()):
            rows.append([Cell(name, span=leading), Cell("–", quiet=True), *cells(place)])
    for place, one in enumerate(gathered.configurations, start=len(baselines)):
        words = [value_text(one.settings[axis]) for axis in axes] or [one.label]
        rows.append([*words, f"{len(one.done)} of {len(one.rows)}", *cells(place)])
        if first:
            rows += [[Cell(text, span=leading + 1 + len(columns), quiet=True)] for text in why_not_done(one)]
    headings = [axis_name(axis) for axis in axes] or ["run"]
    headings += ["seeds done", *(FIGURES[name].heading for name in columns)]
    return Table(evaluation.title if evaluation else "", headings, rows, words=leading)


def why_not_done(configuration: Configuration) -> list[str]:
    """Return a line for each failed run, and one for all waiting runs."""
    lines = [
        f"seed {row.seed} failed: {reason(row.why)}" for row in configuration.rows if row.state == "failed"
    ]
    waiting = [row for row in configuration.rows if row.state == "waiting"]
    lines += [f"seed {row.seed}: {reason(row.why)}" for row in waiting if row.why]
    if seeds := [str(row.seed) for row in waiting if not row.why]:
        lines.append(f"{'seed' if len(seeds) == 1 else 'seeds'} {', '.join(seeds)}: waiting or running")
    return lines


def every_run(gathered: Gathered) -> list[Piece]:
    """Return a table with a row for each run."""
    rows = [
        [
            one.label,
            row.state,
            str(row.seed),
            _trained(row, "steps", ",.0f"),
            _trained(row, "loss", ".4f"),
            *(_trained(row, name, ",.1f") for name in ("seconds", "samples_per_second", "wait_seconds")),
        ]
        for one in gathered.configurations
        for row in one.rows
    ]
    headings = ["configuration", "state", "seed", "steps", "last loss", "seconds", "samples/s", "waited s"]
    table = Table("", headings, rows, words=2, note="Last loss: in the last line of the log, in nats.")
    return [table, *(Text(note, True) for note in dict.fromkeys(gathered.notes))]


def _trained(row: SweepRow, name: str, form: str) -> str:
    return _number_text((row.train or {}).get(name), form) or "–"


def _facts(title: str, pairs: Iterable[tuple[str, Any]]) -> Facts:
    """Return the known facts."""
    return Facts(title, [(name, str(value)) for name, value in pairs if value not in (None, "")])


def _model(name: Any, pretrained: Any) -> str | None:
    if not isinstance(name, str):
        return None
    weights = portable_pretrained(pretrained) if isinstance(pretrained, str) else None
    return portable_model(name) + (f", {weights}" if weights else "")


def _first_three(texts: list[Any]) -> str:
    first = ", ".join(f"“{text}”" for text in texts[:3])
    return first if len(texts) <= 3 else f"{first} and {len(texts) - 3} more"


def _number_text(value: Any, form: str = ",.0f") -> str:
    found = number(value)
    return "" if found is None else f"{found:{form}}"


def _seconds(value: float) -> str:
    if value < 120:
        return f"{value:.1f} s"
    minutes = value / 60
    longer = f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"
    return f"{value:,.0f} s ({longer})"
