"""Draw the figures of README, and write its sentence about the cost, from the record of an experiment.

A figure is written twice, as OUT-light.svg and OUT-dark.svg. `Record` has what is read of the record.

    python benchmarks/figures.py temperature docs/data/photos.json --out docs/images/temperature
    python benchmarks/figures.py sentence docs/data/photos.json
    python benchmarks/figures.py stages --out docs/images/stages
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from drawing import arrow, box, path, text, vertical_text, write_themes
from pydantic import BaseModel, Field, FiniteFloat, ValidationError, model_validator

from pipeline.report.plots import ticks
from pipeline.seeds import Spread, spread
from student_train.figures import ZERO_SHOT
from teacher_cache.files.json_text import first_problem

TEMPERATURES = (0.5, 1.0, 2.0, 4.0, 8.0)
SERIES = {"teacher": "soft labels of the\nlarger teacher", "own": "soft labels of the\nstudent's own model"}
HARD = "hard"

WIDTH, HEIGHT = 800, 470
LEFT, RIGHT, TOP, BOTTOM = 76, 214, 46, 66
INSET = 44  # between the frame and the first and last temperature
APART = 7  # between the error bars of the two series at a temperature
LINE = 18  # height of a line of a label


class Run(BaseModel):
    """A finished run; `harmonic` is the harmonic mean of the accuracies on base and new classes, 0 to 1."""

    seed: int
    harmonic: FiniteFloat = Field(ge=0, le=1)


class Row(BaseModel):
    """Runs that differ only in the seed."""

    name: str
    runs: list[Run] = Field(min_length=2)

    @model_validator(mode="after")
    def _seeds_differ(self) -> "Row":
        if len({run.seed for run in self.runs}) != len(self.runs):
            raise ValueError(f"row '{self.name}' has a seed twice")
        return self


class Frozen(BaseModel):
    """A model without prompts."""

    name: str
    harmonic: FiniteFloat = Field(ge=0, le=1)


class Cost(BaseModel):
    """What the experiment took.

    Attributes:
        views: of each picture.
        build_seconds: the teacher's pass over all views, once.
        cache_bytes: on disk.
        runs, runs_seconds: trainings with the cache's soft labels and as many steps as the one that was
            measured both ways; the sum of their seconds, measured.
        cached_run_seconds, online_run_seconds: this one from the cache, and with the teacher's image tower on
            every batch.
    """

    pictures: int = Field(gt=0)
    views: int = Field(gt=0)
    build_seconds: FiniteFloat = Field(gt=0)
    cache_bytes: int = Field(gt=0)
    runs: int = Field(gt=0)
    runs_seconds: FiniteFloat = Field(gt=0)
    cached_run_seconds: FiniteFloat = Field(gt=0)
    online_run_seconds: FiniteFloat = Field(gt=0)


class Record(BaseModel):
    """Rows of an experiment, its frozen models, and its cost."""

    rows: list[Row]
    frozen: list[Frozen]
    cost: Cost

    @model_validator(mode="after")
    def _names_differ(self) -> "Record":
        names = [one.name for one in (*self.rows, *self.frozen)]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"rows have the same name: '{min(twice)}'")
        return self


@dataclass(frozen=True)
class Ablation:
    """What the plot of the temperature shows, in %.

    Attributes:
        series: by the key in `SERIES`, a figure for each of `TEMPERATURES`.
    """

    series: dict[str, list[Spread]]
    hard: Spread
    zero_shot: float

    def figures(self) -> list[Spread]:
        """Return the figures of all rows."""
        return [*(figure for row in self.series.values() for figure in row), self.hard]

    def seeds(self) -> str:
        """Return the number of seeds of a row, or the fewest and the most."""
        counts = {len(figure.values) for figure in self.figures()}
        return str(*counts) if len(counts) == 1 else f"{min(counts)} to {max(counts)}"


RecordFile = Annotated[Path, typer.Argument(help="JSON record of the experiment", dir_okay=False)]
Out = Annotated[Path, typer.Option(help="path of the two files, without '-light.svg' and '-dark.svg'")]

main = typer.Typer(help=__doc__.splitlines()[0], add_completion=False)


@main.command()
def temperature(record: RecordFile, out: Out) -> None:
    """Draw the harmonic mean over the temperature of the soft labels."""
    found = ablation_of(read_record(record), record)
    title = "Harmonic mean of base and new accuracy over the temperature of the soft labels"
    for written in write_themes(out, draw_temperature(found), WIDTH, HEIGHT, title, described(found)):
        print(f"{written}: {written.stat().st_size:,} bytes")


@main.command()
def sentence(record: RecordFile) -> None:
    """Print what the teacher cost, and what it would have cost online."""
    print(cost_sentence(read_record(record).cost))


@main.command()
def stages(out: Out) -> None:
    """Draw what the two stages do."""
    title = "The two stages of RPP"
    description = (
        "Stage one runs the frozen teacher over labelled images once and stores its soft labels in a cache. "
        "In stage two every run reads the cache: other temperatures, weights, prompts. No teacher is loaded."
    )
    for written in write_themes(out, draw_stages(), STAGES_WIDTH, STAGES_HEIGHT, title, description):
        print(f"{written}: {written.stat().st_size:,} bytes")


def read_record(file: Path) -> Record:
    """Read a record.

    Raises:
        typer.BadParameter: it cannot be read, or a field is missing or wrong.
    """
    try:
        return Record.model_validate_json(file.read_bytes())
    except OSError as error:
        raise typer.BadParameter(f"{file} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        raise typer.BadParameter(
            f"{file} is not a record of an experiment: {first_problem(error)}"
        ) from error


def row_name(series: str, temperature: float) -> str:
    """Return the name of a row of the plot."""
    return f"soft, {series}, T = {temperature:g}"


def ablation_of(record: Record, file: Path) -> Ablation:
    """Find the rows of the plot by their names.

    Raises:
        typer.BadParameter: rows, or the frozen model, are missing.
    """
    runs = {row.name: row.runs for row in record.rows}
    frozen = {one.name: one.harmonic for one in record.frozen}
    wanted = [row_name(series, value) for series in SERIES for value in TEMPERATURES]
    missing = [name for name in [*wanted, HARD] if name not in runs]
    missing += [name for name in [ZERO_SHOT] if name not in frozen]
    if missing:
        known = ", ".join(f"'{name}'" for name in [*runs, *frozen]) or "none"
        lacking = ", ".join(f"'{name}'" for name in missing)
        raise typer.BadParameter(f"{file} has no row {lacking}, which the plot needs; it has {known}")

    def percent(name: str) -> Spread:
        found = spread(100 * run.harmonic for run in runs[name])
        assert found is not None  # a row has at least two runs
        return found

    series = {name: [percent(row_name(name, value)) for value in TEMPERATURES] for name in SERIES}
    return Ablation(series, percent(HARD), 100 * frozen[ZERO_SHOT])


def cost_sentence(cost: Cost) -> str:
    """Return the sentence about the cost: online, all runs would have been slower as the measured one is."""
    online = cost.runs_seconds * cost.online_run_seconds / cost.cached_run_seconds
    return (
        f"The teacher ran once: {cost.build_seconds:,.0f} s for {cost.pictures * cost.views:,} views of "
        f"{cost.pictures:,} pictures, {cost.cache_bytes / 1e6:,.1f} MB on disk. "
        f"{cost.runs:,} runs with its soft labels then took {cost.runs_seconds:,.0f} s. "
        f"With the teacher online they would have taken {online:,.0f} s: one run, measured both ways, takes "
        f"{cost.cached_run_seconds:,.1f} s from the cache and {cost.online_run_seconds:,.1f} s online."
    )


def described(ablation: Ablation) -> str:
    """Return the figures of the plot as a text, for readers who do not see it."""
    levels = {"hard labels only": plus_minus(ablation.hard), "zero-shot": f"{ablation.zero_shot:.1f}"}
    for name, figures in ablation.series.items():
        pairs = zip(TEMPERATURES, figures, strict=True)
        at = ", ".join(f"{plus_minus(figure)} at T = {value:g}" for value, figure in pairs)
        levels[SERIES[name].replace("\n", " ")] = at
    listed = "; ".join(f"{name}: {figures}" for name, figures in levels.items())
    return f"Harmonic mean in %, mean ± standard deviation over {ablation.seeds()} seeds. {listed}."


def plus_minus(figure: Spread) -> str:
    """Format mean ± sample standard deviation."""
    return f"{figure.mean:.1f} ± {figure.deviation or 0:.1f}"


def ends(figure: Spread) -> tuple[float, float]:
    """Return mean minus and plus one standard deviation."""
    deviation = figure.deviation or 0.0
    return figure.mean - deviation, figure.mean + deviation


def draw_temperature(ablation: Ablation) -> list[str]:
    """Draw two lines with error bars over the temperature, and the levels of hard labels and zero-shot."""
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    values = [end for figure in ablation.figures() for end in ends(figure)] + [ablation.zero_shot]
    room = 0.07 * (max(values) - min(values)) or 1.0
    low, high = min(values) - room, max(values) + room

    def at(temperature: float) -> float:
        first, last = (math.log2(TEMPERATURES[place]) for place in (0, -1))
        share = (math.log2(temperature) - first) / (last - first)
        return LEFT + INSET + share * (right - LEFT - 2 * INSET)

    def height(value: float) -> float:
        return TOP + (high - value) / (high - low) * (bottom - TOP)

    about = f"marks: means over {ablation.seeds()} seeds; bars and band: ± one standard deviation"
    parts = [text(LEFT, TOP - 18, about, "quiet")]
    for value in ticks(low, high):
        parts.append(path([(LEFT, height(value)), (right, height(value))], "grid"))
        parts.append(text(LEFT - 9, height(value) + 5, f"{value:g}", "quiet y-tick", "end"))
    for value in TEMPERATURES:
        parts.append(path([(at(value), bottom), (at(value), bottom + 5)], "frame"))
        parts.append(text(at(value), bottom + 23, f"{value:g}", "quiet x-tick", "middle"))
    parts.append(path([(LEFT, TOP), (LEFT, bottom), (right, bottom)], "frame"))
    parts.append(
        text((LEFT + right) / 2, HEIGHT - 14, "temperature T of the soft labels, log scale", "", "middle")
    )
    parts.append(vertical_text(24, (TOP + bottom) / 2, "harmonic mean of base and new accuracy, %"))

    below, above = ends(ablation.hard)
    parts.append(box(LEFT, height(above), right - LEFT, height(below) - height(above), "band", 0))
    for value, kind in ((ablation.hard.mean, "level"), (ablation.zero_shot, "level dashed")):
        parts.append(path([(LEFT, height(value)), (right, height(value))], kind))

    labels = [
        Label(f"hard labels only\n{plus_minus(ablation.hard)}", height(ablation.hard.mean), right, "quiet"),
        Label(f"zero-shot, no prompts\n{ablation.zero_shot:.1f}", height(ablation.zero_shot), right, "quiet"),
    ]
    for number, (name, figures) in enumerate(ablation.series.items()):
        colour, shift = ("first", "second")[number], APART * (number - 0.5)
        xs = [at(value) + shift for value in TEMPERATURES]
        places = [(x, height(figure.mean)) for x, figure in zip(xs, figures, strict=True)]
        parts.append(path(places, f"line stroke-{colour}"))
        for (x, y), figure in zip(places, figures, strict=True):
            parts.append(error_bar(x, figure, height, f"spread {name} stroke-{colour}"))
            parts.append(MARKERS[number](x, y, f"fill-{colour}"))
        x, y = places[-1]
        labels.append(Label(SERIES[name], y, x + 8, f"strong fill-{colour}"))
    return parts + draw_labels(labels, right + 16, TOP, bottom)


def error_bar(x: float, figure: Spread, height: Callable[[float], float], kind: str) -> str:
    """Draw one standard deviation to both sides of a mean, with caps."""
    top, bottom = (height(end) for end in reversed(ends(figure)))
    caps = "".join(f"M{x - 4:.2f} {y:.2f}h8" for y in (top, bottom))
    return f'<path class="{kind}" d="M{x:.2f} {top:.2f}V{bottom:.2f}{caps}"/>'


def dot(x: float, y: float, kind: str) -> str:
    """Draw the marker of the first series."""
    return f'<circle class="{kind}" cx="{x:.2f}" cy="{y:.2f}" r="5"/>'


def square(x: float, y: float, kind: str) -> str:
    """Draw the marker of the second series."""
    return box(x - 4.5, y - 4.5, 9, 9, kind, 0)


MARKERS = (dot, square)  # series differ in more than the colour


@dataclass(frozen=True)
class Label:
    """A text beside the plot: its lines, and the point that it names."""

    words: str
    y: float
    x: float
    kind: str

    @property
    def lines(self) -> list[str]:
        """One text each."""
        return self.words.split("\n")


def draw_labels(labels: Sequence[Label], x: float, top: float, bottom: float) -> list[str]:
    """Write labels below each other in the order of their points, without overlap, each with a line to it."""
    labels = sorted(labels, key=lambda label: label.y)
    heights = [LINE * len(label.lines) + 10 for label in labels]
    middles: list[float] = []
    end = top - 30.0
    for label, tall in zip(labels, heights, strict=True):
        middles.append(max(label.y, end + tall / 2))
        end = middles[-1] + tall / 2
    end = bottom + 10.0
    for place in reversed(range(len(labels))):
        middles[place] = min(middles[place], end - heights[place] / 2)
        end = middles[place] - heights[place] / 2
    parts = []
    for label, middle in zip(labels, middles, strict=True):
        parts.append(path([(label.x, label.y), (x - 14, label.y), (x - 5, middle)], "leader"))
        first = middle - LINE * (len(label.lines) - 1) / 2 + 5
        parts += [text(x, first + LINE * number, line, label.kind) for number, line in enumerate(label.lines)]
    return parts


STAGES_WIDTH, STAGES_HEIGHT = 800, 432
EDGE, GAP = 26, 16  # between a stage's frame and its boxes, and between the boxes of runs
RUNS = ("T = 0.5", "T = 1", "T = 2", "soft weight 0.5", "shared prompts")


def draw_stages() -> list[str]:
    """Draw images, teacher and cache, and below them runs that read images and cache, with one report."""
    right = STAGES_WIDTH - EDGE
    images, cache = EDGE + 90, right - 90  # middles of the boxes
    run = (right - EDGE - GAP * (len(RUNS) - 1)) / len(RUNS)  # width
    middles = [EDGE + run / 2 + (run + GAP) * number for number in range(len(RUNS))]
    shared = 262.0  # height of the line from which all runs read
    parts = [
        box(8, 8, STAGES_WIDTH - 16, 146, "stage", 10),
        text(EDGE, 36, "Stage one: the teacher runs once", "strong"),
        text(right, 36, "rpp-cache build", "code", "end"),
        *card(images, 54, 180, ("labelled images",), "card"),
        *card(400, 54, 180, ("teacher", "frozen CLIP"), "teacher"),
        *card(cache, 54, 180, ("cache of soft labels", "about 1 KB per view"), "cache"),
        *arrow([(images + 90, 92), (308, 92)]),
        *arrow([(490, 92), (cache - 92, 92)]),
        box(8, 178, STAGES_WIDTH - 16, 246, "stage", 10),
        text(400, 206, "Stage two: every experiment reads the cache", "strong", "middle"),
        text(400, 227, "each trains prompts in a frozen CLIP; no teacher is loaded", "quiet", "middle"),
        path([(images, 130), (images, shared)], "arrow"),
        path([(cache, 130), (cache, shared)], "arrow"),
        path([(middles[0], shared), (middles[-1], shared)], "arrow"),
        text(images + 10, 252, "the same views", "quiet"),
        text(cache - 10, 252, "soft labels", "quiet", "end"),
    ]
    for middle, name in zip(middles, RUNS, strict=True):
        parts += arrow([(middle, shared), (middle, 284)])
        parts += card(middle, 286, run, (name,), "card", 46)
        parts += arrow([(middle, 332), (middle, 360)])
    parts += [
        box(EDGE, 362, right - EDGE, 44, "card"),
        text(EDGE + 16, 389, "evaluation on base and new classes, one report"),
        text(right - 16, 389, "rpp sweep, rpp report", "code", "end"),
    ]
    return parts


def card(
    middle: float, y: float, width: float, lines: Sequence[str], kind: str, height: float = 76
) -> list[str]:
    """Draw a box around a middle, with lines of text; all but the first are pale."""
    first = y + height / 2 - 19 * (len(lines) - 1) / 2 + 5
    words = [
        text(middle, first + 19 * number, line, "quiet" if number else "", "middle")
        for number, line in enumerate(lines)
    ]
    return [box(middle - width / 2, y, width, height, kind), *words]


if __name__ == "__main__":
    main()
