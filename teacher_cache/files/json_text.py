"""Decode JSON of other people, and validate records."""

import json
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from teacher_cache.settings import reason

Typed = TypeVar("Typed")
_ADAPTERS: dict[Any, TypeAdapter[Any]] = {}  # making one takes ten times as long as a validation


def parse_json(content: str | bytes) -> Any:
    """Decode JSON.

    Raises:
        ValueError: it is not JSON, has a number of thousands of digits, or is nested too deeply.
    """
    try:
        return json.loads(content)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def first_problem(error: ValidationError) -> str:
    """Return the first field that is wrong and the reason, in one line."""
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc'])) or 'it'}: {reason(first)}"


def typed_record(kind: type[Typed], record: dict[str, Any]) -> Typed:
    """Make a dataclass from decoded JSON, without conversions between types.

    Raises:
        ValueError: a field is missing, of another type or out of bounds; the message names it.
    """
    try:
        adapter = _ADAPTERS.get(kind) or _ADAPTERS.setdefault(kind, TypeAdapter(kind))
        found: Typed = adapter.validate_json(json.dumps(record), strict=True)
        return found
    except ValidationError as error:
        raise ValueError(first_problem(error)) from error
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
