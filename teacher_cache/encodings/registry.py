"""The known encodings by name. A new encoding is a file of this folder and a line here."""

from typing import Any

from pydantic import ValidationError

from teacher_cache.encodings.encoding import Encoding
from teacher_cache.errors import UsageError
from teacher_cache.files.json_text import first_problem
from teacher_cache.lazy import Registry

ENCODINGS: Registry[type[Encoding]] = Registry(
    {
        "factored": "teacher_cache.encodings.factored:Factored",
        "factored-int8": "teacher_cache.encodings.factored_int8:FactoredInt8",
        "topk": "teacher_cache.encodings.topk:TopK",
        "dense": "teacher_cache.encodings.dense:Dense",
    }
)


def encoding_of(record: dict[str, Any]) -> Encoding:
    """Return the encoding that a header records. An option that is not recorded has its default.

    Raises:
        UsageError: an encoding or option that this version does not know, or a value out of bounds.
    """
    name = str(record.get("name"))
    if name not in ENCODINGS:
        raise UsageError(f"unknown encoding '{name}'; known: {', '.join(ENCODINGS)}")
    try:
        return ENCODINGS[name](**{option: value for option, value in record.items() if option != "name"})
    except ValidationError as error:
        raise UsageError(f"invalid option of the encoding '{name}': {first_problem(error)}") from error
