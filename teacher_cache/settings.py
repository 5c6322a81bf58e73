"""Settings as typed classes: validated values, and the flat names that options and recipes use.

A settings class (pydantic) is the only place that defines an option's name, type, default, bounds and help.
`options.py` makes command-line options of it. Importing this module is fast.
"""

import difflib
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ValidationError

from teacher_cache.errors import UsageError
from teacher_cache.files.places import is_undecoded, local_path, place_of, place_or_text, undecoded

MOST_PROCESSES = 1024  # or threads, of one kind on one machine
LARGEST_FACTOR = 1e18  # of a loss or a step; its square is still a float32
# Characters that no file name has, or that cannot be encoded. A tab is allowed.
_CONTROL_CHARACTERS = re.compile(r"[\x00-\x08\x0a-\x1f\x7f\ud800-\udc7f\udd00-\udfff]")
Settings = TypeVar("Settings", bound=BaseModel)
Panels = dict[str, tuple[str, ...]]  # flat names of options by the heading of their panel in the help


def _converted(convert: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def validate(value: Any) -> Any:
        if not isinstance(value, str | os.PathLike):
            return value  # pydantic refuses it
        try:
            return str(convert(value))  # from JSON, pydantic makes a path of a text only
        except UsageError as error:
            raise ValueError(str(error)) from error

    return validate


# A path or a URL. Also for what is either a known name or a place: names do not change.
Place = Annotated[str, BeforeValidator(_converted(place_of))]
LocalPlace = Annotated[Path, BeforeValidator(_converted(local_path))]
PlaceOrText = Annotated[str, BeforeValidator(_converted(place_or_text))]

# For a tuple of texts: a single one is a tuple of one.
OneOrMore = BeforeValidator(lambda value: (value,) if isinstance(value, str) else value)

# A device's name; a `torch.device` is converted.
Device = Annotated[
    str, BeforeValidator(lambda device: str(device) if type(device).__name__ == "device" else device)
]


def bytes_of(size: str) -> int:
    """Return the number of bytes of a size such as '8GB', '500 MiB' or '1e9'.

    Raises:
        ValueError: not a size above zero.
    """
    from dask.utils import parse_bytes  # takes time to import

    number = int(parse_bytes(size))
    if number < 1:
        raise ValueError(f"expected a size above zero, found {size}")
    return number


def _check_size(size: str) -> str:
    bytes_of(size)
    return size


Size = Annotated[str, AfterValidator(_check_size)]  # of memory, with a unit


def validated(settings: type[Settings], values: dict[str, Any]) -> Settings:
    """Build settings from values of a user.

    Raises:
        UsageError: one line that names each invalid option, its value and the reason.
    """
    try:
        return settings(**values)
    except ValidationError as error:
        known = flat_fields(settings)
        problems: dict[str, list[str]] = {}
        for problem in error.errors():
            # behind the field's name, `loc` names the member of a union
            field = next((str(part) for part in reversed(problem["loc"]) if part in known), None)
            option = f"--{field.replace('_', '-')}" if field else ".".join(map(str, problem["loc"]))
            value = "" if problem["type"] == "missing" else f" {problem['input']!r}"
            problems.setdefault(option + value, []).append(reason(problem))
        lines = [option + ": " + " or ".join(found) for option, found in problems.items()]
        raise UsageError("; ".join(lines)) from error


def reason(problem: Mapping[str, Any]) -> str:
    """Return the message of one of `ValidationError.errors()`, without pydantic's prefix before our own."""
    return str(problem["msg"]).removeprefix("Value error, ")


def from_flat(settings: type[Settings], values: dict[str, Any]) -> Settings:
    """Build settings, nested ones included, from values by the flat names that options and recipes use.

    Raises:
        UsageError: as `validated`; also for an unknown name, or a text with control characters.
    """
    known = flat_fields(settings)
    unknown = [name for name in values if name not in known]
    if unknown:
        near = difflib.get_close_matches(unknown[0], known, n=1)
        raise UsageError(f"no such setting: {unknown[0]}" + (f" (did you mean {near[0]}?)" if near else ""))
    for name, value in values.items():
        texts = value if isinstance(value, list | tuple) else [value]
        option = f"--{name.replace('_', '-')}"
        for text in (os.fspath(one) for one in texts if isinstance(one, str | os.PathLike)):
            if is_undecoded(text):
                raise UsageError(f"{option}: {undecoded(text)}")
            if _CONTROL_CHARACTERS.search(text):
                raise UsageError(f"{option} {value!r}: must not contain control characters")
    return validated(settings, _nested(settings, values))


def to_flat(settings: BaseModel) -> dict[str, Any]:
    """Return the values of all settings, nested ones included, by flat name and as JSON types.

    The inverse of `from_flat`.
    """
    values = settings.model_dump(mode="json")
    for name in _nested_classes(type(settings)):
        del values[name]
        values |= to_flat(getattr(settings, name))
    return values


def flat_fields(settings: type[BaseModel]) -> dict[str, Any]:
    """Return the fields by flat name. Those of nested settings take the place of the field that has them."""
    nested = _nested_classes(settings)
    fields: dict[str, Any] = {}
    for name, field in settings.model_fields.items():
        fields |= flat_fields(nested[name]) if name in nested else {name: field}
    return fields


def panels_of(settings: type[BaseModel]) -> Panels:
    """Return the class's `PANELS`: names of options by panel of the help. By default all are in 'Options'."""
    found: Panels = getattr(settings, "PANELS", {"Options": tuple(flat_fields(settings))})
    return found


def _nested_classes(settings: type[BaseModel]) -> dict[str, type[BaseModel]]:
    """Return the fields that are settings classes themselves."""
    kinds = {name: field.annotation for name, field in settings.model_fields.items()}
    return {n: kind for n, kind in kinds.items() if isinstance(kind, type) and issubclass(kind, BaseModel)}


def _nested(settings: type[BaseModel], values: dict[str, Any]) -> dict[str, Any]:
    """Group flat values by the nested settings that they belong to."""
    nested = {name: _nested(kind, values) for name, kind in _nested_classes(settings).items()}
    return nested | {name: values[name] for name in settings.model_fields if name in values}
