"""Types of settings about which samples a run reads, and how. Importing this module is fast."""

from typing import Literal

ClassSubset = Literal["all", "base", "new"]
PixelSource = Literal["auto", "originals", "rendered"]
ReaderName = Literal["auto", "memory", "blocks"]
