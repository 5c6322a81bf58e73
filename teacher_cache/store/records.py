"""The record of a part: what is written when it is complete. A part without its record does not exist."""

import json
from dataclasses import asdict, dataclass
from typing import Any

from teacher_cache.errors import CacheDamagedError
from teacher_cache.files.json_text import parse_json, typed_record
from teacher_cache.store.checksums import sealed, unsealed

PARTS = "parts"


@dataclass(frozen=True)
class PartRecord:
    """What a part holds.

    Attributes:
        part: its number.
        rows: its first row and the one behind its last.
        checksums: of the decoded values of each array that it wrote.
        seconds: spent by stage.
        skipped: samples that could not be read: row, key and reason.
    """

    part: int
    rows: tuple[int, int]
    checksums: dict[str, str]
    seconds: dict[str, float]
    skipped: list[dict[str, Any]]

    def to_bytes(self) -> bytes:
        """As it is stored, with a checksum of its own."""
        return json.dumps(sealed(json.loads(json.dumps(asdict(self)))), indent=1).encode()

    @classmethod
    def from_bytes(cls, content: bytes, what: str) -> "PartRecord":
        """From what `to_bytes` gave.

        Raises:
            CacheDamagedError: it is something else; `what` names it.
        """
        try:
            record = unsealed(parse_json(content), what)
            typed = typed_record(cls, record)
            for entry in typed.skipped:
                if [type(entry.get(name)) for name in ("row", "key", "reason")] != [int, str, str]:
                    raise ValueError("a skipped sample has no row, key or reason")
            return typed
        except (ValueError, TypeError, KeyError) as error:
            raise CacheDamagedError(f"{what} is not readable: {error}") from error


def record_key(part: int) -> str:
    """Where the record of a part lies."""
    return f"{PARTS}/{part:06d}.json"


def recorded_part(name: str) -> int | None:
    """The part whose record has this name; None for other files."""
    stem, _, kind = name.partition(".")
    return int(stem) if kind == "json" and stem.isdecimal() else None
