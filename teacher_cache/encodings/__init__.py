"""The encodings: how logits are stored, one file each, behind one interface."""

from typing import Any

from teacher_cache.encodings.encoding import ArraySpec, ClassHead, Encoding
from teacher_cache.encodings.factored import Factored
from teacher_cache.errors import UsageError

__all__ = ["ArraySpec", "ClassHead", "Encoding", "encoding_of"]

ENCODINGS: dict[str, type[Encoding]] = {kind.name: kind for kind in (Factored,)}


def encoding_of(record: dict[str, Any]) -> Encoding:
    """The encoding that a header's record names.

    Raises:
        UsageError: one that this version does not know.
    """
    options = dict(record)
    kind = ENCODINGS.get(str(options.pop("name", "")))
    if kind is None:
        raise UsageError(f"no encoding '{record.get('name')}'; known: {', '.join(ENCODINGS)}")
    return kind(**options)
