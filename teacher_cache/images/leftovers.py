"""Files that systems and editors leave beside data, such as macOS' `._0001.jpg`: recognised by their names.

All sources pass them over by `Leftovers`, which counts them for the user.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

# What leaves them -> names of such files and folders. The first kind that matches counts.
KINDS = {
    "macOS": r"\._[^/]*|__MACOSX|\.DS_Store|\.AppleDouble|\.Spotlight-V100|\.Trashes|\.fseventsd|Icon\r",
    "Windows": r"Thumbs\.db|ehthumbs\.db|desktop\.ini|\$RECYCLE\.BIN|System Volume Information|~\$[^/]+",
    "network storage": r"@eaDir|@Recycle|#recycle|#snapshot|\.@__thumb|\.nfs[0-9a-f]+",
    "notebooks and editors": r"\.ipynb_checkpoints|[^/]+~|#[^/]+#|\.[^/]+\.sw[a-p]|[^/]+\.bak",
    "the file system": r"lost\+found|\.Trash[^/]*",
    "hidden files": r"\.(?!\.?(?:/|$))[^/]+",
}
LONGEST_NAME = 200  # letters in a note
_LEFTOVER = re.compile(
    rf"(?:^|/)(?:{'|'.join(f'(?P<k{n}>{names})' for n, names in enumerate(KINDS.values()))})(?:/|$)",
    re.IGNORECASE,
)
# Return a match for names that are not leftovers, for most images in half the time of the pattern above.
is_plain = re.compile(
    r"(?:[0-9a-z][\w-]*/)*[0-9a-z][\w-]*\.(?:jpe?g|png|webp|cls|json|txt)", re.IGNORECASE
).fullmatch


def kind_of_leftover(name: str) -> str | None:
    """Return which of `KINDS` a file or folder is; None for data.

    Args:
        name: its path within the source, because a source may itself be in a hidden folder. All files in a
            leftover folder are leftovers.
    """
    found = _LEFTOVER.search(name)
    return list(KINDS)[int(str(found.lastgroup)[1:])] if found else None


@dataclass
class Leftovers:
    """Counts the leftovers that a source passes over.

    Attributes:
        counts: files, and folders that were not entered, by kind.
        first: the first of each kind.
    """

    counts: dict[str, int] = field(default_factory=dict)
    first: dict[str, str] = field(default_factory=dict)

    def has(self, name: str, place: str | None = None) -> bool:
        """Return whether a file or folder is a leftover by `kind_of_leftover`, and count it.

        Args:
            place: its path for the user, where `name` is only a part of it.
        """
        kind = kind_of_leftover(name)
        if kind is not None:
            self._add(kind, 1, place or name)
        return kind is not None

    def _add(self, kind: str, count: int, first: str) -> None:
        self.counts[kind] = self.counts.get(kind, 0) + count
        self.first.setdefault(kind, first)

    @property
    def notes(self) -> list[str]:
        """One remark for the user about each kind."""
        return [
            f"passed over {count} leftover{'s' if count > 1 else ''} of {kind}, the first is "
            f"{self.first[kind][:LONGEST_NAME]}"
            for kind, count in self.counts.items()
        ]


def sum_of_leftovers(pieces: Iterable[Leftovers]) -> Leftovers:
    """Return the counts of all pieces together, with the first piece's examples."""
    total = Leftovers()
    for piece in pieces:
        for kind, count in piece.counts.items():
            total._add(kind, count, piece.first[kind])
    return total
