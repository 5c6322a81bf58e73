"""Read the folder of a run or a sweep: configurations, their runs and their figures.

A single run is a sweep of one. Missing data is left out, with a note that gives the reason.
"""

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline.seeds import HEADLINE, Spread, exact, number, spread
from pipeline.sweep_record import SWEEP, SweepRecord, SweepRow, read_sweep
from student_train.evaluation.frozen_names import is_frozen
from student_train.figures import FIGURES, TEACHER, ZERO_SHOT
from student_train.runs.record import SETTINGS, STUDENT, flat_settings, has_steps, read_results, read_settings
from student_train.training.settings import TrainSettings
from teacher_cache.errors import UsageError
from teacher_cache.settings import to_flat

# Short words for settings in the names of configurations; none if the value is clear without it.
SHORT = {
    "row": "",
    "prompt_structure": "",
    "carry": "",
    "prompt_depth": "depth",
    "prompt_length": "length",
    "vision_prompt_depth": "vision depth",
    "vision_prompt_length": "vision length",
}
LONGEST_REASON = 300


@dataclass(frozen=True)
class Configuration:
    """Runs that differ only in the seed.

    Attributes:
        settings: value of each axis.
        label: the settings in words.
        rows: one per seed.
    """

    settings: dict[str, Any]
    label: str
    rows: list[SweepRow]

    @property
    def done(self) -> list[SweepRow]:
        """Finished runs."""
        return [row for row in self.rows if row.state == "done"]

    def figure(self, evaluation: int, name: str) -> Spread | None:
        """Return a figure of an evaluation over the finished seeds."""
        return spread(
            value
            for row in self.done
            if evaluation < len(row.evals) and (value := number(row.evals[evaluation].get(name))) is not None
        )


@dataclass(frozen=True)
class Evaluation:
    """One evaluation of every run.

    Attributes:
        place: its index in the recipe.
        title: last part of the images' path, and the number of classes.
        images: as in the recipe.
        about: samples, classes, unreadable images and so on, of the first run that has it.
        figures: names of the figures that any run has.
        zero_shot: results of the students' frozen model; empty if unknown, or if students have several.
        baselines: results of each frozen model by name.
    """

    place: int
    title: str
    images: str
    about: dict[str, Any]
    figures: list[str]
    zero_shot: dict[str, Any]
    baselines: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def headline(self) -> str | None:
        """Name of the figure that plots show."""
        return next((name for name in HEADLINE if name in self.figures), None)

    def zero_shot_figure(self, name: str) -> Spread | None:
        """Return a figure of the frozen model."""
        return exact(number(self.zero_shot.get(name)))


@dataclass
class Gathered:
    """The content of a folder.

    Attributes:
        folder: the folder of a run or a sweep.
        is_sweep: whether it is a sweep.
        sweep: its record; for a run, a record with one row.
        notes: messages about files that cannot be read.
    """

    folder: Path
    is_sweep: bool
    sweep: SweepRecord
    notes: list[str] = field(default_factory=list)

    def run_folder(self, row: SweepRow) -> Path:
        """Return the folder of a run."""
        return self.folder / row.run

    @cached_property
    def axes(self) -> dict[str, list[Any]]:
        """Axes with several values."""
        return {name: values for name, values in self.sweep.axes.items() if len(values) > 1}

    @cached_property
    def configurations(self) -> list[Configuration]:
        """Configurations in the order of the record."""
        return [
            Configuration(rows[0].settings, label(rows[0].settings), rows)
            for rows in self.sweep.configurations()
        ]

    @cached_property
    def evaluations(self) -> list[Evaluation]:
        """Evaluations in the order of the recipe."""
        every = [row.evals for row in self.sweep.rows if row.state == "done"]
        found = []
        for place in range(max(map(len, every), default=0)):
            here = [evals[place] for evals in every if place < len(evals)]
            named = {name: evals[place] for name, evals in self.baselines.items() if place < len(evals)}
            figures = [name for name in FIGURES if any(number(one.get(name)) is not None for one in here)]
            images, classes = str(here[0].get("images", "images")), here[0].get("classes")
            title = f"{last_name(images)}, {classes} classes" if classes else last_name(images)
            zero_shot = named.get(ZERO_SHOT, {})
            found.append(Evaluation(place, title, images, here[0], figures, zero_shot, named))
        return found

    @cached_property
    def baselines(self) -> dict[str, list[dict[str, Any]]]:
        """Results of frozen models by name.

        Earlier versions evaluated the cache's teacher as `zero-shot`, whatever the student.
        """
        found = self.sweep.baselines()
        earlier = not any("frozen" in one for evals in found.values() for one in evals)
        if list(found) == [ZERO_SHOT] and earlier and self._student_is_another_model():
            return {TEACHER: found[ZERO_SHOT]}
        return found

    def _student_is_another_model(self) -> bool:
        """Whether the first run that has recorded its student has another one than its cache's teacher."""
        for row in self.sweep.rows:
            with suppress(UsageError):
                record = read_settings(self.run_folder(row))
                teacher = record["cache"]["teacher"]["weights_digest"]
                return bool(record["student"].get("weights_digest", teacher) != teacher)
        return False

    @cached_property
    def best_first(self) -> list[Configuration]:
        """Configurations by their headline figure, those without one last; all in order if there is none."""
        name = self.evaluations[0].headline if self.evaluations else None
        if name is None:
            return self.configurations
        sign = 1 if FIGURES[name].lower_is_better else -1

        def place(one: Configuration) -> float:
            figure = one.figure(0, name)
            return sign * figure.mean if figure else math.inf

        return sorted(self.configurations, key=place)

    @cached_property
    def chosen(self) -> tuple[Configuration, SweepRow] | None:
        """The configuration with the best headline figure and its first finished run, for sections that show
        one student."""
        return next(((one, one.done[0]) for one in self.best_first if one.done), None)

    @property
    def chosen_words(self) -> str:
        """Configuration and seed of the chosen run; empty unless it is one of a sweep."""
        if not self.is_sweep or self.chosen is None:
            return ""
        return f"{self.chosen[0].label}, seed {self.chosen[1].seed}"

    @property
    def record(self) -> dict[str, Any] | None:
        """Stored settings of the chosen run, or else of the first run that has any."""
        return self.recorded_run[1] if self.recorded_run else None

    @cached_property
    def recorded_run(self) -> tuple[Path, dict[str, Any]] | None:
        """The folder of the run of `record`, and the record."""
        rows = [self.chosen[1]] if self.chosen else []
        for row in (*rows, *self.sweep.rows):
            if (self.run_folder(row) / SETTINGS).is_file():
                try:
                    return self.run_folder(row), read_settings(self.run_folder(row))
                except UsageError as error:
                    self.notes.append(str(error))
        return None


def gather(folder: Path) -> Gathered:
    """Read a run's or a sweep's folder.

    Raises:
        UsageError: it is neither, or its record is damaged.
    """
    if (folder / SWEEP).is_file():
        return Gathered(folder, True, read_sweep(folder))
    if (folder / SETTINGS).is_file():
        return _gather_run(folder)
    raise UsageError(
        f"{folder} is neither a run nor a sweep: it has no {SETTINGS} (rpp-train, rpp run) and no {SWEEP} "
        "(rpp sweep)"
    )


def _gather_run(folder: Path) -> Gathered:
    record = read_settings(folder)
    notes: list[str] = []
    results = noted_results(folder, notes)
    trained = results.get("train") if isinstance(results.get("train"), dict) else None
    pairs = paired_evals(results)
    finished = (folder / STUDENT).is_file()
    row = SweepRow(
        settings={},
        seed=int(number(record["settings"].get("seed")) or 0),
        run=".",
        state="done" if finished else "waiting",
        why=None if finished else _unfinished(folder),
        train=trained,
        evals=[own for _, own in pairs],
    )
    zero_shot = [frozen for frozen, _ in pairs]
    teachers = teacher_evals(results)
    cache = str(record["settings"].get("cache", ""))
    sweep = SweepRecord(
        recipe="",
        cache=cache,
        axes={},
        seeds=[row.seed],
        zero_shot=zero_shot,
        teacher=teachers if len(teachers) == len(pairs) else [],
        rows=[row],
    )
    return Gathered(folder, False, sweep, notes)


def _unfinished(folder: Path) -> str:
    steps = "after its first steps" if has_steps(folder) else "before its first step"
    return f"not finished: it stopped {steps}, or is still running"


def noted_results(folder: Path, notes: list[str]) -> dict[str, Any]:
    """Read `results.json` of a run. If it is damaged, add a note and return an empty result."""
    try:
        return read_results(folder)
    except UsageError as error:
        notes.append(str(error))
        return {}


def paired_evals(results: dict[str, Any]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Return the results of the frozen model and of the run for each evaluation in `results.json`; the former
    are empty if it was not evaluated."""
    trained, evals = results.get("train"), results.get("evals")
    out = trained.get("out") if isinstance(trained, dict) else None
    pairs, frozen = [], dict[str, Any]()
    for one in evals if isinstance(evals, list) else []:
        if not isinstance(one, dict):
            continue
        if one.get("student") == ZERO_SHOT:
            frozen = one
            continue
        if is_frozen(one.get("student")):
            continue
        if out is None or one.get("student") == out:
            same = frozen.get("images") == one.get("images") and frozen.get("classes") == one.get("classes")
            pairs.append((frozen if same else {}, one))
        frozen = {}
    return pairs


def teacher_evals(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the results of a teacher that is another model than the student in `results.json`."""
    evals = results.get("evals")
    every = evals if isinstance(evals, list) else []
    return [one for one in every if isinstance(one, dict) and one.get("student") == TEACHER]


def axis_name(axis: str) -> str:
    """Return an axis in words: 'soft weight' for `soft_weight`."""
    return axis.replace("_", " ")


def label(settings: dict[str, Any]) -> str:
    """Return the name of a configuration."""
    words = [
        f"{SHORT.get(axis, axis_name(axis))} {value_text(value)}".strip() for axis, value in settings.items()
    ]
    return ", ".join(words) or "this run"


def value_text(value: Any) -> str:
    """Format the value of a setting."""
    if value is None:
        return "default"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def last_name(place: str) -> str:
    """Return the last part of a path, a URL or a pattern."""
    return place.rstrip("/").rpartition("/")[2] or place


def reason(why: str | None) -> str:
    """Return why a run has no figures, in one short line."""
    text = " ".join((why or "no reason is recorded").split())
    return text if len(text) <= LONGEST_REASON else text[:LONGEST_REASON] + "…"


def changed_settings(record: dict[str, Any], axes: Sequence[str]) -> dict[str, Any]:
    """Return settings that differ from the defaults, without paths, the seed and the axes."""
    defaults = to_flat(TrainSettings(cache="none"))
    left_out = {"cache", "out", "resume", "seed", *axes}
    return {
        name: value
        for name, value in flat_settings(record).items()
        if name not in left_out and value != defaults.get(name, ...)
    }
