"""The record of a part, written when the part is complete. A part without a record does not exist."""

import json
from dataclasses import asdict, dataclass
from typing import Annotated, Any

from pydantic import Field

from teacher_cache.errors import CacheDamagedError
from teacher_cache.files.json_text import parse_json, typed_record
from teacher_cache.store.checksums import with_checksum, without_checksum

PARTS = "parts"


Count = Annotated[int, Field(ge=1)]


@dataclass(frozen=True)
class Resources:
    """What a worker computed a part with.

    Attributes:
        device: kind of the teacher's device: `cpu`, `cuda`, ...
        decoders: threads or processes that read and decoded images.
        cores: cores of the machine, shared equally among the local workers.
        torch_threads: CPU threads of the forward pass.
    """

    device: str
    decoders: Count
    cores: Count
    torch_threads: Count


@dataclass(frozen=True)
class PartRecord:
    """What is stored of a part.

    Attributes:
        part: its number.
        rows: start and stop of its rows.
        checksums: of the decoded values of each of its arrays.
        seconds: spent by stage.
        skipped: samples that could not be read: row, key and reason.
        resources: what it was computed with; None in records of earlier versions.
        pixels: checksum of the tar whose views the teacher saw; None if it saw the exact pixels.
    """

    part: int
    rows: tuple[int, int]
    checksums: dict[str, str]
    seconds: dict[str, float]
    skipped: list[dict[str, Any]]
    resources: Resources | None = None
    pixels: str | None = None

    def to_bytes(self) -> bytes:
        """Return the stored form, with a checksum of the record."""
        return json.dumps(with_checksum(json.loads(json.dumps(asdict(self)))), indent=1).encode()

    @classmethod
    def from_bytes(cls, content: bytes, what: str) -> "PartRecord":
        """Read what `to_bytes` returned.

        Args:
            what: name of the record in errors.

        Raises:
            CacheDamagedError: it is something else.
        """
        try:
            typed = typed_record(cls, without_checksum(parse_json(content), what))
            for entry in typed.skipped:
                if [type(entry.get(name)) for name in ("row", "key", "reason")] != [int, str, str]:
                    raise ValueError("a skipped sample has no row, key or reason")
            return typed
        except ValueError as error:
            raise CacheDamagedError(f"{what} is not readable: {error}") from error


def record_key(part: int) -> str:
    """Return the key of a part's record."""
    return f"{PARTS}/{part:06d}.json"


def recorded_part(name: str) -> int | None:
    """Return the part whose record has this name; None for other files."""
    stem, _, kind = name.partition(".")
    return int(stem) if kind == "json" and stem.isdecimal() else None
