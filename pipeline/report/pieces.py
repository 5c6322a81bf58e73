"""What a page is made of, as the template shows it: sections of texts, tables, figures, cards."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from markupsafe import Markup


@dataclass(frozen=True)
class Cell:
    """A cell of a table that is more than its text.

    Attributes:
        best: marked as the best of its column.
        span: columns that it takes.
        quiet: in a paler colour.
    """

    text: str
    best: bool = False
    span: int = 1
    quiet: bool = False


@dataclass(frozen=True)
class Table:
    """Attributes:
    caption: what stands above it; may be empty.
    headings: one a column.
    rows: cells; shorter where one spans several columns.
    words: how many columns, from the left, are words and not numbers.
    note: what stands below it.
    """

    caption: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str | Cell]]
    words: int = 1
    note: str = ""
    kind: str = field(default="table", init=False)


@dataclass(frozen=True)
class Tables:
    """Tables beside each other."""

    tables: Sequence[Table]
    kind: str = field(default="tables", init=False)


@dataclass(frozen=True)
class Figure:
    """A drawing, and its figures as a table.

    Attributes:
        title: what it shows.
        drawing: an SVG element.
        table: under it, folded.
    """

    title: str
    drawing: Markup
    table: Table
    note: str = ""


@dataclass(frozen=True)
class Figures:
    """Drawings beside each other.

    Attributes:
        legend: (sample of a line, what it is), for all of them.
    """

    figures: Sequence[Figure]
    legend: Sequence[tuple[Markup, str]] = ()
    kind: str = field(default="figures", init=False)


@dataclass(frozen=True)
class Text:
    """A sentence or several; `quiet` ones say why something is not there."""

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
    """Facts beside each other."""

    groups: Sequence[Facts]
    kind: str = field(default="facts", init=False)


@dataclass(frozen=True)
class Card:
    """A picture and what is said of it.

    Attributes:
        picture: a `data:` URI; empty if it could not be read, as `why` says.
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
    """Cards beside each other."""

    cards: Sequence[Card]
    kind: str = field(default="cards", init=False)


Piece = Table | Tables | Figures | Text | FactGroups | Cards


@dataclass(frozen=True)
class Section:
    """A part of the page with a heading of its own."""

    name: str
    title: str
    pieces: Sequence[Piece]
