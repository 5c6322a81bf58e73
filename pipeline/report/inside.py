"""Sections that explain the figures: soft labels, pictures, changed classes, norms of the prompts."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.report.gather import Configuration, Gathered, noted_results, paired_evals
from pipeline.report.pieces import Card, Cards, Figure, Figures, Piece, Table, Tables, Text
from pipeline.report.plots import HeatCell, Line, heat_map, line_chart
from pipeline.report.prompts import TowerNorms, prompt_norms
from pipeline.report.softlabels import (
    PICTURE_TEMPERATURES,
    SAMPLE,
    TEMPERATURES,
    Picture,
    describe_pictures,
    entropies,
    load_student,
    served_temperatures,
    typical_rows,
)
from pipeline.seeds import number
from student_train.model.stored import read_student
from teacher_cache.errors import RppError
from teacher_cache.softlabels import TeacherCache

MOST_CLASSES = 10


def soft_labels(gathered: Gathered, cache: TeacherCache | None, why_no_cache: str) -> list[Piece]:
    """Return the entropy of the teacher's soft labels by temperature, and a few pictures."""
    if cache is None:
        return [Text(f"No soft labels: {why_no_cache or 'no run has recorded its cache'}", True)]
    pieces: list[Piece] = []
    for part, what in ((_entropy, "entropy"), (_pictures, "pictures")):
        try:
            pieces += part(gathered, cache)
        except RppError as error:
            pieces.append(Text(f"No {what}: {error}", True))
    return pieces


def _trained_temperatures(gathered: Gathered) -> list[float]:
    """Return the temperatures of the sweep's axis, or of the run."""
    settings = gathered.record["settings"] if gathered.record else {}
    values = gathered.sweep.axes.get("temperature", [settings.get("temperature")])
    return sorted({value for one in values if (value := number(one)) is not None and value > 0})


def _entropy(gathered: Gathered, cache: TeacherCache) -> list[Piece]:
    wanted = [*TEMPERATURES, *_trained_temperatures(gathered)]
    temperatures = served_temperatures(cache, wanted)
    if not temperatures:
        return [Text("No entropy: the cache's encoding has no soft labels at T = 0.25 to 8.", True)]
    count, found = entropies(cache, temperatures)
    classes = len(cache.vocabulary)
    line = Line("entropy", np.array([t for t, _ in found]), np.array([value for _, value in found]))
    title = "Entropy of the teacher's soft labels, nats"
    ticks = [t for t in temperatures if t in TEMPERATURES] or temperatures
    level = (math.log(classes), f"uniform over {classes:,} classes: {math.log(classes):.2f}")
    drawing = line_chart([line], title, "temperature T", "nats", ticks, log_x=True, level=level)
    rows = [[f"{t:g}", f"{value:.4f}", f"{math.exp(value):,.2f}"] for t, value in found]
    table = Table("", ["temperature", "entropy, nats", "perplexity, classes"], rows)
    drawn = " drawn at random" if count == SAMPLE else ""
    text = (
        f"Mean over {count:,} samples{drawn}, evaluation view. "
        "Perplexity, e to the entropy, is the number of equally likely classes with the same entropy."
    )
    left_out = sorted({t for t in wanted if t not in temperatures})
    if left_out:
        text += " The encoding has no soft labels at T = " + ", ".join(f"{t:g}" for t in left_out) + "."
    return [Text(text), Figures([Figure(title, drawing, table)])]


def _pictures(gathered: Gathered, cache: TeacherCache) -> list[Piece]:
    wanted = picture_temperatures(_trained_temperatures(gathered))
    temperatures = served_temperatures(cache, wanted) or served_temperatures(cache, [1.0])
    student, why = None, "no run is finished"
    if gathered.chosen:
        try:
            student = load_student(gathered.run_folder(gathered.chosen[1]))
        except RppError as error:
            why = str(error)
    pictures = describe_pictures(cache, typical_rows(cache), temperatures, student)
    text = (
        "The samples of these on which the teacher is most certain and right, least certain, and most "
        "certain and wrong."
    )
    if student and gathered.chosen_words:
        text += f" The student is that of {gathered.chosen_words}."
    pieces: list[Piece] = [Text(text), Cards([_card(one, temperatures) for one in pictures])]
    if student is None:
        pieces.insert(1, Text(f"No predictions of the student: {why}", True))
    return pieces


def picture_temperatures(trained: Sequence[float]) -> Sequence[float]:
    """Return three temperatures for the soft labels of pictures: a sweep's lowest, middle and highest."""
    if len(trained) < 3:
        return PICTURE_TEMPERATURES
    return trained[0], trained[len(trained) // 2], trained[-1]


def _card(picture: Picture, temperatures: Sequence[float]) -> Card:
    tables = [_likely("teacher", temperatures, picture.teacher)]
    if picture.student:
        tables.append(_likely("student", [1.0], [(name, [share]) for name, share in picture.student]))
    label = "no hard label" if picture.label is None else f"hard label: {picture.label}"
    return Card(picture.data, picture.why, picture.kind, [label, picture.key], tables)


def _likely(model: str, temperatures: Sequence[float], found: Sequence[tuple[str, list[float]]]) -> Table:
    headings = [f"{model}, %", *(f"T\u00a0=\u00a0{t:g}" for t in temperatures)]
    return Table(
        "", headings, [[name, *(f"{100 * share:.1f}" for share in shares)] for name, shares in found]
    )


def classes(gathered: Gathered) -> list[Piece]:
    """Return the classes with the largest gains and losses against the frozen model."""
    if not gathered.chosen:
        return [Text("No classes: no run is finished.", True)]
    configuration, _ = gathered.chosen
    pieces: list[Piece] = []
    for evaluation in gathered.evaluations:
        changes, seeds = _changes(gathered, configuration, evaluation.place)
        if changes:
            means = f"; after is the mean over {seeds} seeds" if seeds > 1 else ""
            gained = _changed_table(f"Gained most: {evaluation.title}", changes, 1, means)
            lost = _changed_table(f"Lost most: {evaluation.title}", changes, -1, means)
            pieces.append(Tables([gained, lost]))
    if not pieces:
        text = (
            "No classes: results.json has no counts by class of the run or of the frozen model; add by-class "
            "to the metrics of an [[eval]]."
        )
        return [Text(text, True)]
    of = configuration.label if gathered.is_sweep else "this run"
    text = (
        f"Images of each class that the frozen model (before) and {of} (after) classify correctly; largest "
        "changes first."
    )
    return [Text(text), *pieces]


Change = tuple[str, int, float, float]


def _changes(gathered: Gathered, configuration: Configuration, place: int) -> tuple[list[Change], int]:
    """Return (class, images, right of the frozen model, mean right of the student), and the seeds."""
    frozen: list[list[Any]] = []
    name = configuration.rows[0].zero_shot
    if gathered.baselines and name not in gathered.baselines:  # only the teacher was evaluated
        return [], 0
    own = gathered.baselines.get(name, [])
    if place < len(own):
        frozen = by_class(own[place])
    students = []
    for row in configuration.done:
        pairs = paired_evals(noted_results(gathered.run_folder(row), gathered.notes))
        if place < len(pairs):
            frozen = frozen or by_class(pairs[place][0])
            students.append(by_class(pairs[place][1]))
    names = [one[:2] for one in frozen]
    students = [one for one in students if one and [entry[:2] for entry in one] == names]
    if not frozen or not students:
        return [], 0
    rights = np.mean([[entry[2] for entry in one] for one in students], axis=0).tolist()
    return [
        (str(name), images, right, mean) for (name, images, right), mean in zip(frozen, rights, strict=True)
    ], len(students)


def by_class(evaluation: dict[str, Any]) -> list[list[Any]]:
    """Return [name, images, right] of each class; empty if missing or malformed."""
    found = evaluation.get("by_class")
    valid = isinstance(found, list) and all(
        isinstance(one, list) and len(one) == 3 and all(number(value) is not None for value in one[1:])
        for one in found
    )
    return found if valid and found else []


def _changed_table(caption: str, changes: list[Change], sign: int, means: str) -> Table:
    """Return a table of the classes with the largest differences of one sign."""
    changed = [one for one in changes if sign * (one[3] - one[2]) > 0]
    changed.sort(key=lambda one: (-sign * (one[3] - one[2]), one[1], one[0]))
    rows = [
        [name, str(images), f"{before:g}", f"{after:.4g}", f"{after - before:+.4g}".replace("-", "−")]
        for name, images, before, after in changed[:MOST_CLASSES]
    ]
    first = f"The first {MOST_CLASSES} of " if len(changed) > MOST_CLASSES else ""
    note = f"{first}{len(changed):,} of {len(changes):,} classes{means}."
    return Table(caption, ["class", "images", "before", "after", "change"], rows, note=note)


def norms(gathered: Gathered) -> list[Piece]:
    """Return the norms of the prompts of each block; prompts without effect are marked."""
    if not gathered.chosen or gathered.record is None:
        return [Text("No prompts: no run is finished.", True)]
    try:
        stored = read_student(gathered.run_folder(gathered.chosen[1]))
    except RppError as error:
        return [Text(f"No prompts: {error}", True)]
    config = gathered.record["student"].get("config")
    towers = prompt_norms(stored, config if isinstance(config, dict) else {})
    if not towers:
        return [Text("No prompts: this student has none.", True)]
    text = "Mean norm of the prompt vectors of a block; lighter cells are larger."
    if gathered.chosen_words:
        text += f" The student is that of {gathered.chosen_words}."
    if any(tower.dead for tower in towers):
        text += (
            " Hatched: dead. These query prompts have no effect on the output and only weight decay changes "
            "them, so their norm means nothing."
        )
    return [Text(text), Figures([_norm_map(tower) for tower in towers])]


def _norm_map(tower: TowerNorms) -> Figure:
    cells, texts = [], []
    for name, values in tower.norms.items():
        dead = tower.dead if name == "query" else ()
        row = [
            HeatCell(None, "dead", title="has no effect")
            if block in dead
            else HeatCell(value, f"{value:#.3g}")
            for block, value in enumerate(values, start=1)
        ]
        cells.append(row)
        texts.append([name, *("dead" if one.value is None else f"{one.value:.4f}" for one in row)])
    blocks = [str(block) for block in range(1, len(cells[0]) + 1)]
    title = f"{tower.tower} tower"
    drawing = heat_map(
        cells, list(tower.norms), blocks, f"Norms of the prompts of the {title}", "prompt", "block"
    )
    return Figure(title, drawing, Table("", ["prompt", *(f"block {block}" for block in blocks)], texts))
