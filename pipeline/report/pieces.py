"""Elements of the page for the template: sections with texts, tables, figures and cards."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from markupsafe import Markup


@dataclass(frozen=True)
class Cell:
    """A formatted cell of a table.

    Attributes:
        best: whether it is marked as the best of its column.
        span: number of columns.
        quiet: whether it is in a paler colour.
    """

    text: str
    best: bool = False
    span: int = 1
    quiet: bool = False


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        caption: text above it; may be empty.
        headings: one per column.
        rows: cells; fewer if one spans several columns.
        words: number of leading columns with words, not numbers.
        note: text below it.
    """

    caption: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str | Cell]]
    words: int = 1
    note: str = ""
    kind: str = field(default="table", init=False)


@dataclass(frozen=True)
class Tables:
    """Tables side by side."""

    tables: Sequence[Table]
    kind: str = field(default="tables", init=False)


@dataclass(frozen=True)
class Figure:
    """A plot with its values as a table.

    Attributes:
        title: heading.
        drawing: an SVG element.
        table: below it, folded.
    """

    title: str
    drawing: Markup
    table: Table
    note: str = ""


@dataclass(frozen=True)
class Figures:
    """Plots side by side.

    Attributes:
        legend: sample and name of each line, for all plots.
    """

    figures: Sequence[Figure]
    legend: Sequence[tuple[Markup, str]] = ()
    kind: str = field(default="figures", init=False)


@dataclass(frozen=True)
class Text:
    """Sentences; `quiet` for reasons why something is missing."""

    text: str
    quiet: bool = False
    kind: str = field(default="text", init=False)


@dataclass(frozen=True)
class Facts:
    """Names and values."""

    title: str
    pairs: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class FactGroups:
    """Facts side by side."""

    groups: Sequence[Facts]
    kind: str = field(default="facts", init=False)


@dataclass(frozen=True)
class Card:
    """A picture with texts and tables.

    Attributes:
        picture: a `data:` URI; empty if it cannot be read, for the reason `why`.
        title, lines: beside it.
        tables: below it.
    """

    picture: str
    why: str
    title: str
    lines: Sequence[str]
    tables: Sequence[Table]


@dataclass(frozen=True)
class Cards:
    """Cards side by side."""

    cards: Sequence[Card]
    kind: str = field(default="cards", init=False)


Piece = Table | Tables | Figures | Text | FactGroups | Cards


@dataclass(frozen=True)
class Section:
    """A part of the page with a heading."""

    name: str
    title: str
    pieces: Sequence[Piece]
