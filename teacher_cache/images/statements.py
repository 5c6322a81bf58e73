"""The labels that a source states for a sample, and the places where it states them.

`labels.py` compares them. Imports nothing slow: settings name the choices.
"""

from collections.abc import Iterable
from typing import Literal, NamedTuple

# Places of a label in the order in which they are taken; docs/images.md describes them.
PLACES = ("list", "column", "cls", "json", "folder", "name", "shard")
LabelChoice = Literal["auto", "first", "none", "list", "column", "cls", "json", "folder", "name", "shard"]


class Statement(NamedTuple):
    """A label in one place: a class index (-1: explicitly none), or an id or name.

    Attributes:
        place: one of `PLACES`.
        key: of the `.json` or the Parquet file, otherwise empty.
        number: the class index, if it is one.
        name: the id or name, if it is one.
    """

    place: str
    key: str
    number: int | None
    name: str | None

    def __str__(self) -> str:
        return " ".join(
            filter(None, (self.place, self.key, str(self.number if self.name is None else self.name)))
        )

    @property
    def is_weak(self) -> bool:
        """Whether it may belong to another numbering: some data sets number their classes by `class_id`
        beside the label."""
        return self.key == "class_id" and self.name is None


Statements = tuple[Statement, ...]


def in_order(statements: Iterable[Statement]) -> Statements:
    """Return the different statements, weak ones last, each label only where it comes first."""
    found: dict[tuple[int | None, str | None], Statement] = {}
    for statement in sorted(statements, key=lambda statement: statement.is_weak):
        found.setdefault((statement.number, statement.name), statement)
    return tuple(found.values())
