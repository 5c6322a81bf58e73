"""SVG plots of the report: lines, means with deviations, heat maps.

Colours come from the page's style sheet by class, so that plots follow dark mode. matplotlib's SVG does not,
has no tooltips, and makes a page almost three times as large. Lines differ in colour, dash and marker. All
text from data is escaped.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from pipeline.report.curves import thinned
from pipeline.seeds import Spread

WIDTH, HEIGHT = 360, 220  # units of a plot, about pixels on a phone
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 20, 38
LETTER = 6.1  # mean width of a character at the style sheet's size
MOST_LINES = 7  # distinguishable colours
MARKERS_A_LINE = 5
CELL_WIDTH, CELL_HEIGHT = 62, 40
BAR_ROW = 38
# matplotlib's cividis: readable with all kinds of colour vision, lightness increases
CIVIDIS = np.array(
    [
        *([0, 34, 78], [18, 53, 112], [59, 73, 108], [87, 93, 109], [112, 113, 115]),
        *([138, 134, 120], [165, 156, 116], [195, 179, 105], [225, 204, 85], [254, 232, 56]),
    ],
    dtype=np.float64,
)


@dataclass(frozen=True)
class Line:
    """A line of a plot: x and y, [S] each."""

    name: str
    x: NDArray[np.float64]
    y: NDArray[np.float64]


@dataclass(frozen=True)
class HeatCell:
    """A cell of a heat map.

    Attributes:
        value: decides the colour; a cell with None is hatched.
        text: printed in the cell.
        small: printed below the text.
        title: tooltip.
    """

    value: float | None
    text: str
    small: str = ""
    title: str = ""


@dataclass(frozen=True)
class Bar:
    """A row of a plot of means: its name, the figure, and the figure as text."""

    name: str
    figure: Spread
    text: str


def line_chart(
    lines: Sequence[Line],
    title: str,
    x_label: str,
    y_label: str,
    x_ticks: Sequence[float] | None = None,
    log_x: bool = False,
    level: tuple[float, str] | None = None,
) -> Markup:
    """Draw lines over a common axis.

    Args:
        x_ticks: labelled values of the axis; default: round numbers.
        log_x: whether the axis is logarithmic.
        level: value and name of a dashed horizontal line.
    """
    xs = np.concatenate([line.x for line in lines])
    ys = np.concatenate([line.y for line in lines] + ([np.array([level[0]])] if level else []))
    left, right = float(xs.min()), float(xs.max())
    place_x = _scale(left, right, LEFT + 4, WIDTH - RIGHT - 4, log=log_x)
    low, high = _padded(ys)
    place_y = _scale(low, high, HEIGHT - BOTTOM, TOP)
    parts = [_frame(title, WIDTH, HEIGHT)]
    for value in ticks(low, high):
        y = place_y(value)
        parts.append(_segment(LEFT, y, WIDTH - RIGHT, y, "grid"))
        parts.append(_text(LEFT - 5, y + 4, _tick(value), "end"))
    for value in x_ticks if x_ticks is not None else ticks(left, right):
        parts.append(_text(place_x(value), HEIGHT - BOTTOM + 15, _tick(value), "middle"))
    parts.append(_segment(LEFT, TOP, LEFT, HEIGHT - BOTTOM, "frame"))
    parts.append(_segment(LEFT, HEIGHT - BOTTOM, WIDTH - RIGHT, HEIGHT - BOTTOM, "frame"))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 5, x_label, "middle", "axis"))
    parts.append(_text(LEFT, TOP - 8, y_label, "end" if len(y_label) < 6 else "start", "unit"))
    if level:
        y = place_y(level[0])
        parts.append(_segment(LEFT, y, WIDTH - RIGHT, y, "level"))
        parts.append(_text(LEFT + 6, y - 4 if y > TOP + 14 else y + 13, level[1], "start"))
    for number, line in enumerate(lines):
        kept = thinned(line.y)
        points = [
            (place_x(x), place_y(y))
            for x, y in zip(line.x[kept].tolist(), line.y[kept].tolist(), strict=True)
        ]
        path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
        parts.append(
            Markup('<path class="line s{}" d="{}"><title>{}</title></path>').format(number, path, line.name)
        )
        # markers of lines that coincide are at different points, so that each line is visible
        stride = max(len(points) // MARKERS_A_LINE, min(len(points), len(lines)), 1)
        for place in range(number * stride // len(lines), len(points), stride):
            parts.append(marker(number, *points[place]))
    return Markup("").join([*parts, Markup("</svg>")])


def legend_sample(number: int) -> Markup:
    """Draw a piece of a line with its marker, for the legend."""
    return (
        Markup('<svg class="sample" viewBox="0 0 36 12" width="36" height="12" aria-hidden="true">')
        + Markup('<path class="line s{}" d="M1 6L35 6"/>').format(number)
        + marker(number, 18, 6)
        + Markup("</svg>")
    )


def marker(number: int, x: float, y: float) -> Markup:
    """Draw the marker of a line: circle, square, triangle, diamond, cross, plus or ring."""
    r = 3.4
    shapes = (
        f"M{x - r:.1f} {y:.1f}a{r} {r} 0 1 0 {2 * r} 0a{r} {r} 0 1 0 {-2 * r} 0z",
        f"M{x - 3:.1f} {y - 3:.1f}h6v6h-6z",
        f"M{x:.1f} {y - 4:.1f}l4 7h-8z",
        f"M{x:.1f} {y - 4.5:.1f}l4.5 4.5l-4.5 4.5l-4.5 -4.5z",
        f"M{x - 3:.1f} {y - 3:.1f}l6 6m0 -6l-6 6",
        f"M{x - 4:.1f} {y:.1f}h8m-4 -4v8",
        f"M{x - r:.1f} {y:.1f}a{r} {r} 0 1 0 {2 * r} 0a{r} {r} 0 1 0 {-2 * r} 0z",
    )
    kind = "open" if number % MOST_LINES >= 4 else "full"
    return Markup('<path class="marker {} s{}" d="{}"/>').format(kind, number, shapes[number % MOST_LINES])


def bar_chart(bars: Sequence[Bar], title: str, x_label: str, reference: tuple[float, str] | None) -> Markup:
    """Draw means as dots with one standard deviation to either side, and seeds as small rings.

    Dots, because the axis does not start at zero, where differences of a point would be invisible.

    Args:
        reference: value and name of a dashed vertical line.
    """
    ends = [value for bar in bars for value in _ends(bar.figure)] + ([reference[0]] if reference else [])
    low, high = _padded(np.array(ends))
    height = TOP + 14 + BAR_ROW * len(bars) + BOTTOM
    left, right = 12, WIDTH - 12
    place = _scale(low, high, left, right)
    bottom = height - BOTTOM
    parts = [_frame(title, WIDTH, height)]
    for value in ticks(low, high, 5):
        parts.append(_segment(place(value), TOP + 14, place(value), bottom, "grid"))
        parts.append(_text(place(value), bottom + 15, _tick(value), "middle"))
    parts.append(_segment(left, bottom, right, bottom, "frame"))
    if reference:
        x = place(reference[0])
        anchor = "start" if x < WIDTH / 3 else "end" if x > 2 * WIDTH / 3 else "middle"
        parts.append(_segment(x, TOP + 4, x, bottom, "level"))
        parts.append(_text(x, TOP, reference[1], anchor))
    for number, bar in enumerate(bars):
        y = TOP + 14 + BAR_ROW * number
        room = right - left - LETTER * len(bar.text) - 10
        parts.append(_text(left, y + 13, shortened(bar.name, room), "start", "name", bar.name))
        parts.append(_text(right, y + 13, bar.text, "end", "value"))
        parts += _dot(bar.figure, place, y + 26)
    parts.append(_text((left + right) / 2, height - 5, x_label, "middle", "axis"))
    return Markup("").join([*parts, Markup("</svg>")])


def _ends(figure: Spread) -> list[float]:
    spread = figure.deviation or 0.0
    return [figure.mean - spread, figure.mean + spread, *figure.values]


def _dot(figure: Spread, place: Callable[[float], float], y: float) -> Iterable[Markup]:
    if figure.deviation and len(figure.values) > 1:
        low, high = place(figure.mean - figure.deviation), place(figure.mean + figure.deviation)
        yield _segment(low, y, high, y, "spread")
        for end in (low, high):
            yield _segment(end, y - 4, end, y + 4, "spread")
    if len(figure.values) > 1:
        for value in figure.values:
            yield Markup('<circle class="seed" cx="{:.1f}" cy="{:.1f}" r="2.5"/>').format(place(value), y)
    yield Markup('<circle class="mean" cx="{:.1f}" cy="{:.1f}" r="4.5"/>').format(place(figure.mean), y)


def heat_map(
    cells: Sequence[Sequence[HeatCell]],
    rows: Sequence[str],
    columns: Sequence[str],
    title: str,
    row_label: str,
    column_label: str,
    ends: tuple[float, float] | None = None,
) -> Markup:
    """Draw cells whose colour is their value; the first row is at the top.

    Args:
        ends: values of the darkest and the lightest colour, if several maps share them.
    """
    longest = max(map(len, rows), default=1)
    left = 26 + LETTER * min(longest, 12) + 6
    width, height = left + CELL_WIDTH * len(columns) + 6, 6 + CELL_HEIGHT * len(rows) + BOTTOM
    known = [cell.value for row in cells for cell in row if cell.value is not None]
    low, high = ends or ((min(known), max(known)) if known else (0.0, 1.0))
    parts = [_frame(title, width, height)]
    parts.append(_vertical_text(10, 6 + CELL_HEIGHT * len(rows) / 2, row_label))
    for r, (name, row) in enumerate(zip(rows, cells, strict=True)):
        y = 6 + CELL_HEIGHT * r
        parts.append(
            _text(left - 6, y + CELL_HEIGHT / 2 + 4, shortened(name, 12 * LETTER), "end", "name", name)
        )
        for c, cell in enumerate(row):
            parts.append(_heat_cell(cell, left + CELL_WIDTH * c, y, low, high))
    for c, name in enumerate(columns):
        x = left + CELL_WIDTH * (c + 0.5)
        parts.append(_text(x, height - BOTTOM + 15, shortened(name, CELL_WIDTH), "middle", "name", name))
    parts.append(_text(left + CELL_WIDTH * len(columns) / 2, height - 5, column_label, "middle", "axis"))
    return Markup("").join([*parts, Markup("</svg>")])


def _heat_cell(cell: HeatCell, x: float, y: float, low: float, high: float) -> Markup:
    middle = x + CELL_WIDTH / 2
    title = Markup("<title>{}</title>").format(cell.title) if cell.title else Markup("")
    box = Markup('x="{:.1f}" y="{:.1f}" width="{}" height="{}"').format(x, y, CELL_WIDTH - 2, CELL_HEIGHT - 2)
    if cell.value is None:
        return Markup('<g class="none"><rect {} fill="url(#hatched)"/>{}{}</g>').format(
            box, _text(middle - 1, y + CELL_HEIGHT / 2 + 3, cell.text, "middle", "on-hatch"), title
        )
    colour = heat_colour(0.5 if high == low else (cell.value - low) / (high - low))
    ink = Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="middle" fill="{}" class="{}">{}</text>')
    on = ink_on(colour)
    first = y + CELL_HEIGHT / 2 + (-1 if cell.small else 3)
    texts = [ink.format(middle - 1, first, on, "value", cell.text)]
    if cell.small:
        texts.append(ink.format(middle - 1, first + 13, on, "small", cell.small))
    return Markup('<g><rect {} fill="{}"/>{}{}</g>').format(
        box, "#{:02x}{:02x}{:02x}".format(*colour), Markup("").join(texts), title
    )


def heat_colour(share: float) -> tuple[int, int, int]:
    """Return red, green and blue of a share of the way from the lowest to the highest value."""
    known = np.linspace(0, 1, len(CIVIDIS))
    red, green, blue = (round(float(np.interp(share, known, channel))) for channel in CIVIDIS.T)
    return red, green, blue


def ink_on(colour: tuple[int, int, int]) -> str:
    """Return black or white, whichever has more contrast with a colour (WCAG)."""
    light = luminance(colour)
    return "#fff" if 1.05 / (light + 0.05) > (light + 0.05) / 0.05 else "#000"


def luminance(colour: tuple[int, int, int]) -> float:
    """Return WCAG's relative luminance, 0 to 1."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (x / 255 for x in colour)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Return round numbers between two bounds, in steps of 1, 2 or 5 times a power of ten."""
    if not high > low:
        return [low]
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(place * step, 12) for place in range(first, last + 1)]


def shortened(text: str, room: float) -> str:
    """Cut a text to a width, with an ellipsis."""
    longest = max(3, int(room / LETTER))
    return text if len(text) <= longest else text[: longest - 1].rstrip() + "…"


def _scale(low: float, high: float, start: float, end: float, log: bool = False) -> Callable[[float], float]:
    """Return the function from values to coordinates."""
    if log:
        low, high = math.log(low), math.log(high)

    def place(value: float) -> float:
        at = math.log(value) if log else value
        return start + (end - start) * ((at - low) / (high - low) if high > low else 0.5)

    return place


def _padded(values: NDArray[np.float64]) -> tuple[float, float]:
    """Return bounds with room around the values; the lower one is 0 if they are positive and come near 0."""
    low, high = float(values.min()), float(values.max())
    room = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    return (0.0 if 0 <= low < 0.3 * high else low - room), high + room


def _tick(value: float) -> str:
    if value and not 1e-4 <= abs(value) < 1e6:
        return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")
    return f"{value:,.10g}" if abs(value) < 10_000 else f"{value / 1000:,.10g}k"


def _frame(title: str, width: float, height: float) -> Markup:
    return Markup(
        '<svg class="plot" viewBox="0 0 {:.0f} {:.0f}" style="max-width:{:.0f}px;min-width:{:.0f}px" '
        'role="img" aria-label="{}">'
    ).format(width, height, 1.2 * width, min(0.85 * width, 300 if width <= WIDTH else width), title)


def _text(x: float, y: float, text: str, anchor: str, kind: str = "tick", title: str | None = None) -> Markup:
    whole = Markup("<title>{}</title>").format(title) if title is not None and title != text else ""
    return Markup('<text class="{}" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}{}</text>').format(
        kind, x, y, anchor, text, whole
    )


def _vertical_text(x: float, y: float, text: str) -> Markup:
    return Markup(
        '<text class="axis" text-anchor="middle" transform="translate({:.1f} {:.1f}) rotate(-90)">{}</text>'
    ).format(x, y, text)


def _segment(x: float, y: float, to_x: float, to_y: float, kind: str) -> Markup:
    return Markup('<path class="{}" d="M{:.1f} {:.1f}L{:.1f} {:.1f}"/>').format(kind, x, y, to_x, to_y)
