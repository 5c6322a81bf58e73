"""JSON that others wrote: decoded, and as the types that are meant."""

import json
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from teacher_cache.settings import reason

Typed = TypeVar("Typed")
_ADAPTERS: dict[Any, TypeAdapter[Any]] = {}  # making one takes ten times as long as what it checks


def parse_json(content: str | bytes) -> Any:
    """Decoded JSON.

    Raises:
        ValueError: it is none, has a number of thousands of digits, or is nested so deeply that no stack
            holds it.
    """
    try:
        return json.loads(content)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def first_problem(error: ValidationError) -> str:
    """Which field is wrong, and why, in one line."""
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc'])) or 'it'}: {reason(first)}"


def typed_record(kind: type[Typed], record: dict[str, Any]) -> Typed:
    """A dataclass from decoded JSON, without turning one type into another.

    Raises:
        ValueError: naming the first field that is missing, of another type or out of its bounds.
    """
    try:
        adapter = _ADAPTERS.get(kind) or _ADAPTERS.setdefault(kind, TypeAdapter(kind))
        found: Typed = adapter.validate_json(json.dumps(record), strict=True)
        return found
    except ValidationError as error:
        raise ValueError(first_problem(error)) from error
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
