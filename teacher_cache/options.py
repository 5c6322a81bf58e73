"""Settings classes as command-line options, and errors as exit codes.

A settings class (pydantic) is the only place where an option's name, type, default, bounds and help stand.
"""

import difflib
import inspect
import os
import re
import sys
import types
import typing
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import typer
from pydantic import BaseModel, BeforeValidator, ValidationError
from pydantic_core import PydanticUndefined
from rich.console import Console
from rich.markup import escape

from teacher_cache.errors import RppError, UsageError, printable

INTERRUPTED = 130  # the exit code of Ctrl-C
MOST_PROCESSES = 1024  # or threads, of one kind on one machine
LARGEST_FACTOR = 1e18  # of a loss or a step: its square, or two of them multiplied, are still float32s
LONGEST_SAID = 200  # letters of a file's name in an error
# What no file's name can have, or what cannot be written down as text.
_NO_TEXT = re.compile(r"[\x00-\x08\x0a-\x1f\x7f\ud800-\udfff]")
Settings = TypeVar("Settings", bound=BaseModel)
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
        known = _flat_fields(settings, frozenset())
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
    known = _flat_fields(settings, frozenset())
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
        if _is_settings(field.annotation):
            del values[name]
            values |= to_flat(getattr(settings, name))
    return values


def settings_options(settings: type[Settings], hidden: frozenset[str] = frozenset()) -> Callable[..., Any]:
    """Decorator: a command `f(settings, **others)` gets one option for each field of the settings class.

    Nested settings are flattened. Fields in `hidden` get no option.
    """

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        fields = _flat_fields(settings, hidden)
        fields = dict(sorted(fields.items(), key=lambda item: not item[1].is_required()))  # for --help
        own = list(inspect.signature(command).parameters.values())[1:]

        def run(**values: Any) -> Any:
            chosen = {name: values.pop(name) for name in fields}
            return command(from_flat(settings, chosen), **values)

        parameters = [_parameter(name, field) for name, field in fields.items()] + own
        run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters]
        )
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        run.__name__, run.__doc__ = command.__name__, command.__doc__
        return run

    return decorate


def _is_settings(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _flat_fields(settings: type[BaseModel], hidden: frozenset[str]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, field in settings.model_fields.items():
        if _is_settings(field.annotation):
            fields.update(_flat_fields(typing.cast(type[BaseModel], field.annotation), hidden))
        elif name not in hidden:
            fields[name] = field
    return fields


def _nest(settings: type[BaseModel], values: dict[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for name, field in settings.model_fields.items():
        if _is_settings(field.annotation):
            nested[name] = _nest(typing.cast(type[BaseModel], field.annotation), values)
        elif name in values:
            nested[name] = values[name]
    return nested


def _parameter(name: str, field: Any) -> inspect.Parameter:
    annotation = field.annotation
    alternatives = [a for a in typing.get_args(annotation) if a is not type(None)]
    if len(alternatives) == 1 and typing.get_origin(alternatives[0]) is Annotated:  # `Place | None`
        annotation = typing.get_args(alternatives[0])[0] | None
    if typing.get_origin(annotation) in (types.UnionType, typing.Union) and len(alternatives) > 1:
        annotation = str  # the settings class parses it ("all" or a number)
        if type(None) in typing.get_args(field.annotation):
            annotation = str | None
    choices: tuple[str, ...] = ()
    if typing.get_origin(annotation) is tuple:  # may be repeated; the settings class knows what
        choices = typing.get_args(typing.get_args(annotation)[0])
        annotation = list[str]
    named = bool(choices) and all(isinstance(choice, str) for choice in choices)
    option = typer.Option(help=field.description, autocompletion=(lambda: choices) if named else None)
    default = inspect.Parameter.empty if field.default is PydanticUndefined else field.default
    if annotation is str and default is not inspect.Parameter.empty:
        default = str(default)
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        annotation=Annotated[annotation, option],
        default=default,
    )


def run_app(app: Callable[[], Any]) -> None:
    """Run a command line; errors that a user can act on become one line and their exit code."""
    try:
        try:
            app()
        except SystemExit:  # as typer ends; what is printed may not be written yet
            sys.stdout.flush()
            raise
    except (RppError, OSError) as error:
        _give_up_output()
        if not isinstance(error, BrokenPipeError):  # which is how `| head` ends a command
            Console(stderr=True, soft_wrap=True).print(f"[bold red]error:[/] {escape(_sentence(error))}")
        sys.exit(getattr(error, "exit_code", RppError.exit_code))
    except (KeyboardInterrupt, SystemExit) as ended:
        # typer makes an exit of an interrupt, and says nothing
        if isinstance(ended, SystemExit) and ended.code != INTERRUPTED:
            raise
        Console(stderr=True).print("stopped")
        sys.exit(INTERRUPTED)


def _give_up_output() -> None:
    """Drop what standard output does not take: Python would fail at it again at its end."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _sentence(error: RppError | OSError) -> str:
    """What a user is told. An error of the system is said where it happens, by what it prevents; what is
    left of them is said here, by the file's name."""
    if isinstance(error, RppError):
        return str(error)
    name = "a file, or standard output," if error.filename is None else str(error.filename)
    name = name if len(name) <= LONGEST_SAID else f"{name[:LONGEST_SAID]}..."
    reason = error.strerror or str(error).partition("\n")[0] or type(error).__name__
    return printable(f"{name} cannot be read or written: {reason}")
