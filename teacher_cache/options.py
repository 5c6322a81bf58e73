"""Settings classes as command-line options, and errors as exit codes."""

import inspect
import os
import sys
import types
import typing
from collections.abc import Callable
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from typer.core import TyperCommand, TyperGroup

from teacher_cache.distribution import versions
from teacher_cache.errors import RppError, printable
from teacher_cache.settings import Settings, flat_fields, from_flat, panels_of

INTERRUPTED = 130  # the exit code of Ctrl-C
LONGEST_SAID = 200  # letters of a file's name in an error


class _PlainFlags:
    """Help without `<bool>` beside options that take no value, typer's own among them."""

    def get_params(self, ctx: Any) -> list[Any]:
        """The parameters as typer has them, flags without a type."""
        parameters: list[Any] = super().get_params(ctx)  # type: ignore[misc]
        for parameter in parameters:
            if getattr(parameter, "is_flag", False):
                parameter.metavar = ""
        return parameters


class OneCommand(_PlainFlags, TyperCommand):
    """A command of a `command_line`."""


class ManyCommands(_PlainFlags, TyperGroup):
    """A `command_line` with several commands."""


def command_line(text: str, **more: Any) -> typer.Typer:
    """A program, or a group of its commands; `text` is the first line of its help."""
    return typer.Typer(
        help=text, cls=ManyCommands, context_settings={"help_option_names": ["-h", "--help"]}, **more
    )


def _print_versions(wanted: bool) -> None:
    if wanted:
        for name, found in versions().items():
            print(f"{name} {found}")
        raise typer.Exit


def flag(name: str, text: str, panel: str | None = None, **more: Any) -> Any:
    """An option that is there or not."""
    return typer.Option(name, help=text, rich_help_panel=panel, show_default=False, **more)


OUTPUT = "Output"  # the panel of what is printed and where results go
Version = Annotated[
    bool,
    flag(
        "--version",
        "print the versions of rpp and of what it runs on, and exit",
        callback=_print_versions,
        is_eager=True,
    ),
]
Json = Annotated[bool, flag("--json", "print JSON on standard output", OUTPUT)]


def settings_options(settings: type[Settings]) -> Callable[..., Any]:
    """Decorator: a command `f(settings, **others)` gets one option for each field of the settings class.

    Nested settings are flattened. The class's `PANELS` say in which panel of the help an option stands.
    """

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        fields = flat_fields(settings)
        panels = {name: panel for panel, names in panels_of(settings).items() for name in names}
        own = list(inspect.signature(command).parameters.values())[1:]

        def run(**values: Any) -> Any:
            chosen = {name: values.pop(name) for name in fields}
            return command(from_flat(settings, chosen), **values)

        parameters = [_parameter(name, fields[name], panel) for name, panel in panels.items()] + own
        run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters]
        )
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        run.__name__, run.__doc__ = command.__name__, command.__doc__
        return run

    return decorate


def _parameter(name: str, field: Any, panel: str) -> inspect.Parameter:
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
    # "... [default: X]" says in words what happens without the option
    text, _, in_words = (field.description or "").removesuffix("]").partition(" [default: ")
    option = typer.Option(
        help=escape(text),
        autocompletion=(lambda: choices) if named else None,
        rich_help_panel=panel,
        show_default=in_words or annotation is not bool,
    )
    default = inspect.Parameter.empty if field.is_required() else field.default
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
