"""The encodings: how logits are stored, one file each, behind one interface."""

from typing import Any

from teacher_cache.encodings.dense import Dense
from teacher_cache.encodings.encoding import ArraySpec, ClassHead, Encoding
from teacher_cache.encodings.factored import Factored
from teacher_cache.encodings.factored_int8 import FactoredInt8
from teacher_cache.encodings.topk import TopK
from teacher_cache.errors import UsageError

__all__ = ["ArraySpec", "ClassHead", "Encoding", "encoding_of"]

ENCODINGS: dict[str, type[Encoding]] = {kind.name: kind for kind in (Factored, FactoredInt8, TopK, Dense)}


def encoding_of(record: dict[str, Any]) -> Encoding:
    """The encoding that a header's record names.

    Raises:
        UsageError: one that this version does not know, or options that it does not have.
    """
    options = dict(record)
    kind = ENCODINGS.get(str(options.pop("name", "")))
    if kind is None:
        raise UsageError(f"no encoding '{record.get('name')}'; known: {', '.join(ENCODINGS)}")
    try:
        return kind(**options)
    except TypeError as error:
        raise UsageError(f"the encoding '{kind.name}' has other options than {options}") from error
