"""Tables in GitHub's Markdown."""

import re
from collections.abc import Sequence


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table; columns of numbers are aligned right."""
    numeric = [all(_is_number(row[column]) for row in rows) for column in range(len(headings))]
    rule = ["---:" if right else "---" for right in numeric]
    cells = [[plain(cell) for cell in row] for row in (headings, *rows)]
    return [f"| {' | '.join(row)} |" for row in (cells[0], rule, *cells[1:])]


def plain(text: object) -> str:
    """Escape a text so that Markdown prints it unchanged, on one line."""
    line = " ".join(str(text).split())
    line = re.sub(r"[&<>|]", lambda found: f"&#{ord(found[0])};", line)
    return re.sub(r"[\\`*_~\[\]]", r"\\\g<0>", line)


def _is_number(cell: str) -> bool:
    return not cell or cell.replace(".", "", 1).isdecimal()
