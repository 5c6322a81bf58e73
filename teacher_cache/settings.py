"""Settings as typed classes: validated values, and the flat names that options and recipes use.

A settings class (pydantic) is the only place where an option's name, type, default, bounds and help stand.
How it becomes command-line options is in `options.py`. Nothing here takes time to import.
"""

import difflib
import os
import re
import typing
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ValidationError

from teacher_cache.errors import UsageError

MOST_PROCESSES = 1024  # or threads, of one kind on one machine
LARGEST_FACTOR = 1e18  # of a loss or a step: its square, or two of them multiplied, are still float32s
# What no file's name can have, or what cannot be written down as text.
_NO_TEXT = re.compile(r"[\x00-\x08\x0a-\x1f\x7f\ud800-\udfff]")
Settings = TypeVar("Settings", bound=BaseModel)
Panels = dict[str, tuple[str, ...]]  # of the help: flat names of options, by the panel's heading
# A path or URL; pathlib's paths are taken as well, and "s3://" survives, which pathlib would shorten.
Place = Annotated[
    str, BeforeValidator(lambda place: os.fspath(place) if isinstance(place, os.PathLike) else place)
]


def validated(settings: type[Settings], values: dict[str, Any]) -> Settings:
    """Build settings from outside values.

    Raises:
        UsageError: one line that names each wrong option, its value and why.
    """
    try:
        return settings(**values)
    except ValidationError as error:
        known = flat_fields(settings)
        problems: dict[str, list[str]] = {}
        for problem in error.errors():
            # what follows the field in `loc` names the branch of a union that was tried
            field = next((str(part) for part in reversed(problem["loc"]) if part in known), None)
            option = f"--{field.replace('_', '-')}" if field else settings.__name__
            value = "" if problem["type"] == "missing" else f" {problem['input']!r}"
            message = problem["msg"].removeprefix("Value error, ")  # pydantic's, before words of our own
            problems.setdefault(option + value, []).append(message)
        lines = [option + ": " + " or ".join(found) for option, found in problems.items()]
        raise UsageError("; ".join(lines)) from error


def from_flat(settings: type[Settings], values: dict[str, Any]) -> Settings:
    """Build settings, nested ones included, from the flat names that options and recipes use.

    Raises:
        UsageError: as `validated`, and for a name that no field has, or a text that is none.
    """
    known = flat_fields(settings)
    unknown = [name for name in values if name not in known]
    if unknown:
        near = difflib.get_close_matches(unknown[0], known, n=1)
        raise UsageError(f"no such setting: {unknown[0]}" + (f" (did you mean {near[0]}?)" if near else ""))
    for name, value in values.items():
        if any(_NO_TEXT.search(text) for text in _texts(value)):
            option = f"--{name.replace('_', '-')}"
            raise UsageError(f"{option} {value!r}: no text for it has control characters")
    return validated(settings, _nest(settings, values))


def _texts(value: Any) -> list[str]:
    several = value if isinstance(value, list | tuple) else [value]
    return [os.fspath(one) for one in several if isinstance(one, str | os.PathLike)]


def to_flat(settings: BaseModel) -> dict[str, Any]:
    """Values of all settings, nested ones included, by the flat names that options and recipes use, as JSON
    has them. `from_flat` takes them back."""
    values = settings.model_dump(mode="json")
    for name, field in type(settings).model_fields.items():
        if is_settings(field.annotation):
            del values[name]
            values |= to_flat(getattr(settings, name))
    return values


def is_settings(annotation: Any) -> bool:
    """Whether a field's type is a settings class of its own."""
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def flat_fields(settings: type[BaseModel]) -> dict[str, Any]:
    """Fields by flat name, those of nested settings in their place."""
    fields: dict[str, Any] = {}
    for name, field in settings.model_fields.items():
        if is_settings(field.annotation):
            fields.update(flat_fields(typing.cast(type[BaseModel], field.annotation)))
        else:
            fields[name] = field
    return fields


def panels_of(settings: type[BaseModel]) -> Panels:
    """Names of the options in each panel of the help, in their order: the class's `PANELS`; without one all
    are in 'Options'."""
    found: Panels = getattr(settings, "PANELS", {"Options": tuple(flat_fields(settings))})
    return found


def _nest(settings: type[BaseModel], values: dict[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for name, field in settings.model_fields.items():
        if is_settings(field.annotation):
            nested[name] = _nest(typing.cast(type[BaseModel], field.annotation), values)
        elif name in values:
            nested[name] = values[name]
    return nested
