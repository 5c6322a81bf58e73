"""SVG pictures for pages on GitHub: one file for a light page, one for a dark page.

GitHub shows a picture without its page's style sheet and without scripts, so each file has its own style.
Shapes name a class; the theme gives the class a colour.
"""

from collections.abc import Iterable
from html import escape
from pathlib import Path
from string import Template

from teacher_cache.files.atomic_write import atomic_write_text

# Okabe and Ito's blue and vermilion, lighter on dark; `paper` is GitHub's background.
THEMES = {
    "light": {
        "paper": "#ffffff", "ink": "#1f2328", "quiet": "#59636e", "rule": "#d1d9e0", "grid": "#e6eaee",
        "card": "#f6f8fa", "first": "#0072b2", "second": "#d55e00",
    },
    "dark": {
        "paper": "#0d1117", "ink": "#f0f6fc", "quiet": "#9198a1", "rule": "#3d444d", "grid": "#262c34",
        "card": "#161b22", "first": "#56b4e9", "second": "#f5903d",
    },
}  # fmt: skip

STYLE = Template("""\
text { font: 15px system-ui, -apple-system, 'Segoe UI', Roboto, 'Liberation Sans', 'DejaVu Sans', sans-serif;
  fill: $ink; }
.paper { fill: $paper; }
.quiet { fill: $quiet; font-size: 14px; }
.strong { font-weight: 600; }
.code { font: 13px ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace;
  fill: $quiet; }
.grid { stroke: $grid; }
.frame, .leader { stroke: $rule; fill: none; }
.level { stroke: $quiet; stroke-width: 1.5; fill: none; }
.dashed { stroke-dasharray: 6 4; }
.band { fill: $quiet; opacity: 0.18; }
.line { fill: none; stroke-width: 2.5; }
.spread { stroke-width: 2; fill: none; }
.stage { fill: none; stroke: $rule; stroke-width: 1.5; }
.card { fill: $card; stroke: $quiet; }
.cache { fill: $card; stroke: $first; stroke-width: 2; }
.teacher { fill: $card; stroke: $second; stroke-width: 2; }
.arrow { stroke: $quiet; stroke-width: 1.5; fill: none; }
.head { fill: $quiet; }
.stroke-first { stroke: $first; }
.stroke-second { stroke: $second; }
.fill-first { fill: $first; }
.fill-second { fill: $second; }
""")


def write_themes(
    out: Path, parts: Iterable[str], width: int, height: int, title: str, description: str
) -> list[Path]:
    """Write OUT-light.svg and OUT-dark.svg.

    Args:
        parts: elements of the picture; those behind cover those before.
        title: read by screen readers, as the description.

    Returns:
        the two paths.
    """
    body = "\n".join(parts)
    paths = []
    for theme, colours in THEMES.items():
        path = out.with_name(f"{out.name}-{theme}.svg")
        path.parent.mkdir(parents=True, exist_ok=True)
        text = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
            f'width="{width}" height="{height}" role="img" aria-labelledby="title description">\n'
            f'<title id="title">{escape(title)}</title>\n'
            f'<desc id="description">{escape(description)}</desc>\n'
            f"<style>\n{STYLE.substitute(colours)}</style>\n"
            f'<rect class="paper" width="{width}" height="{height}" rx="6"/>\n{body}\n</svg>\n'
        )
        atomic_write_text(path, text)
        paths.append(path)
    return paths


def text(x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> str:
    """Write a line of text; `y` is its baseline."""
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def vertical_text(x: float, y: float, words: str) -> str:
    """Write a line of text from bottom to top, around a middle."""
    place = f"translate({x:.1f} {y:.1f}) rotate(-90)"
    return f'<text text-anchor="middle" transform="{place}">{escape(words)}</text>'


def path(points: Iterable[tuple[float, float]], kind: str) -> str:
    """Draw a line through points."""
    return f'<path class="{kind}" d="M{"L".join(f"{x:.2f} {y:.2f}" for x, y in points)}"/>'


def box(x: float, y: float, width: float, height: float, kind: str, radius: float = 6) -> str:
    """Draw a rectangle with round corners."""
    size = f'width="{width:.2f}" height="{height:.2f}" rx="{radius}"'
    return f'<rect class="{kind}" x="{x:.2f}" y="{y:.2f}" {size}/>'


def arrow(points: list[tuple[float, float]]) -> list[str]:
    """Draw a line with a head at its last point; the last segment is horizontal or vertical."""
    (x0, y0), (x, y) = points[-2:]
    dx, dy = (x > x0) - (x < x0), (y > y0) - (y < y0)
    back = (x - 8 * dx, y - 8 * dy)
    corners = [(x, y), (back[0] - 5 * dy, back[1] - 5 * dx), (back[0] + 5 * dy, back[1] + 5 * dx)]
    head = f'<path class="head" d="M{"L".join(f"{a:.1f} {b:.1f}" for a, b in corners)}z"/>'
    return [path([*points[:-1], back], "arrow"), head]
