"""Which samples a run reads, and how. Nothing here takes time to import."""

from typing import Literal

ClassSubset = Literal["all", "base", "new"]
ReaderName = Literal["auto", "memory", "blocks"]
