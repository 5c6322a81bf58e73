"""Command-line options made from settings classes, and exit codes made from errors."""

import copy
import inspect
import io
import json
import logging
import os
import sys
import traceback
import types
import typing
from collections.abc import Callable
from contextlib import suppress
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from typer.core import TyperCommand, TyperGroup

from teacher_cache.distribution import versions
from teacher_cache.errors import RppError, UsageError, printable
from teacher_cache.files.places import is_undecoded, local_path, place_of, undecoded
from teacher_cache.settings import Settings, flat_fields, from_flat, panels_of

DEBUG = "RPP_DEBUG"  # environment variable; if it is set, errors show their traceback
INTERRUPTED_EXIT_CODE = 130
LONGEST_FILE_NAME = 200  # characters of it in an error
NARROW_COLUMNS = 100  # a narrower terminal has no room for a column of types in the help


class _HelpColumns:
    """Adapt the columns of typer's help.

    Flags show no type. In a narrow terminal no option shows its type, so that rich does not truncate the
    names of options; choices, and the negative of a flag, are put before the description instead.
    """

    _formats_help = False

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the help; the parser needs the parameters as they are."""
        self._formats_help = True
        try:
            super().format_help(ctx, formatter)  # type: ignore[misc]
        finally:
            self._formats_help = False

    def get_params(self, ctx: Any) -> list[Any]:
        """Return typer's parameters with the types that the help shows."""
        parameters: list[Any] = super().get_params(ctx)  # type: ignore[misc]
        if not self._formats_help:
            return parameters
        parameters = [copy.copy(parameter) for parameter in parameters]
        narrow = Console().width < NARROW_COLUMNS
        for parameter in parameters:
            if getattr(parameter, "is_flag", False):
                parameter.metavar = ""
                if narrow and parameter.secondary_opts:
                    negative = f"[or {parameter.secondary_opts[0]}]"
                    parameter.help = " ".join(filter(None, [escape(negative), parameter.help]))
                    parameter.secondary_opts = []
            elif narrow and hasattr(parameter, "is_flag"):
                parameter.help = " ".join(filter(None, [escape(parameter.metavar or ""), parameter.help]))
                parameter.metavar = ""
        return parameters


class OneCommand(_HelpColumns, TyperCommand):
    """A command of a `command_line`.

    The value of an option is optional if its metavar is in square brackets, as in `--dashboard [PORT]`.
    Without one the option is true.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the command line, with the values of such options filled in."""
        optional = {
            name
            for parameter in self.params
            if (parameter.metavar or "").startswith("[")
            for name in parameter.opts
            if name.startswith("--")
        }
        return super().parse_args(ctx, _with_values(args, optional))


def _with_values(args: list[str], optional: set[str]) -> list[str]:
    """Return arguments in which each of the `optional` options has a value. Only a number behind one is its
    value; all else is the next argument."""
    end = args.index("--") if "--" in args else len(args)
    following = [*args[1:], ""][: len(args)]
    return [
        f"{argument}=true" if argument in optional and place < end and not after.isdecimal() else argument
        for place, (argument, after) in enumerate(zip(args, following, strict=True))
    ]


class ManyCommands(_HelpColumns, TyperGroup):
    """A `command_line` with several commands."""


def command_line(text: str, **more: Any) -> typer.Typer:
    """Make a program, or a group of its commands; `text` is the first line of its help."""
    return typer.Typer(
        help=text, cls=ManyCommands, context_settings={"help_option_names": ["-h", "--help"]}, **more
    )


def _print_versions(wanted: bool) -> None:
    if wanted:
        for name, found in versions().items():
            print(f"{name} {found}")
        raise typer.Exit


def flag(name: str, text: str, panel: str | None = None, **more: Any) -> Any:
    """Declare an option without a value."""
    return typer.Option(name, help=text, rich_help_panel=panel, show_default=False, **more)


def as_written(value: Any) -> Any:
    """Callback of typer for arguments and options that are places: convert one, several or none."""
    if isinstance(value, list | tuple):
        return [as_written(item) for item in value]
    if value is None:
        return None
    return local_path(value) if isinstance(value, os.PathLike) else place_of(value)


OUTPUT = "Output"  # help panel of options about printed and written results
Version = Annotated[
    bool,
    flag(
        "--version",
        "print the versions of rpp and of the libraries it uses, and exit",
        callback=_print_versions,
        is_eager=True,
    ),
]
Json = Annotated[bool, flag("--json", "print JSON on standard output", OUTPUT)]


def settings_options(settings: type[Settings]) -> Callable[..., Any]:
    """Decorate a command `f(settings, **others)` so that each field of the settings class is an option.

    Fields of nested settings become options too. The class's `PANELS` name each option's panel in the help.
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
    annotation, completions = _option_type(field.annotation)
    choices = typing.get_args(annotation) if typing.get_origin(annotation) is typing.Literal else ()
    # a description that ends in "[default: X]" says in words what happens without the option
    text, _, default_in_words = (field.description or "").removesuffix("]").partition(" [default: ")
    metavar = (field.json_schema_extra or {}).get("metavar")
    option = typer.Option(
        help=escape(text),
        metavar=f"<{' | '.join(choices)}>" if choices else metavar,
        autocompletion=(lambda: completions) if completions else None,
        rich_help_panel=panel,
        show_default=default_in_words or annotation is not bool,
    )
    default = inspect.Parameter.empty if field.is_required() else field.default
    if annotation is str and not field.is_required():
        default = str(default)
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, annotation=Annotated[annotation, option], default=default
    )


def _option_type(annotation: Any) -> tuple[Any, tuple[str, ...]]:
    """Return the type that typer parses a field as, and the texts that complete it.

    typer takes plain types and `X | None`. Unions of several types (`int | "all"`) become texts, tuples
    become options that may be repeated; the settings class parses both.
    """
    if typing.get_origin(annotation) is tuple:
        items = typing.get_args(typing.get_args(annotation)[0])
        return list[str], items if all(isinstance(item, str) for item in items) else ()
    if typing.get_origin(annotation) in (types.UnionType, typing.Union):
        members = typing.get_args(annotation)
        kinds = [kind for kind in members if kind is not type(None)]
        kind: Any = kinds[0] if len(kinds) == 1 else str
        if typing.get_origin(kind) is Annotated:  # `Place`
            kind = typing.get_args(kind)[0]
        return (kind | None if type(None) in members else kind), ()
    return annotation, ()


def run_app(app: Callable[[], Any]) -> None:
    """Run a command line. An error that a user can act on is printed as one line and ends with its exit code.

    With the environment variable `RPP_DEBUG` set, its traceback is printed as well. Any other exception is a
    defect and keeps its traceback.
    """
    escape_unencodable()
    logging.basicConfig(format="%(levelname)s: %(message)s")  # else open_clip's first message sets its own
    try:
        try:
            app()
        except UnicodeEncodeError as error:  # a name cannot be stored
            undecodable = next(filter(is_undecoded, sys.argv), None)
            if undecodable is None:
                raise
            raise UsageError(undecoded(undecodable)) from error
        except SystemExit:  # typer's normal end; printed text may not be written yet
            if sys.stdout is not None:  # it was closed when Python started
                sys.stdout.flush()
            raise
    except (RppError, OSError) as error:
        _drop_unwritten_output()
        if os.environ.get(DEBUG):
            traceback.print_exc()
        if not isinstance(error, BrokenPipeError):  # `| head` ends a command so
            with suppress(OSError):  # the terminal was closed
                Console(stderr=True, soft_wrap=True).print(f"[bold red]error:[/] {escape(_message(error))}")
        _drop_unwritten_output()
        sys.exit(getattr(error, "exit_code", RppError.exit_code))
    except (KeyboardInterrupt, SystemExit) as ended:
        # typer turns an interrupt into an exit without a message
        if isinstance(ended, SystemExit) and ended.code != INTERRUPTED_EXIT_CODE:
            raise
        with suppress(OSError):
            Console(stderr=True).print("stopped")
        _drop_unwritten_output()
        sys.exit(INTERRUPTED_EXIT_CODE)


def escape_unencodable() -> None:
    """Print characters that the terminal or pipe cannot encode as escapes, in place of an error.

    The locale or PYTHONIOENCODING decides which those are; names of classes and files have any.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # None if closed; tests and notebooks have others
            stream.reconfigure(errors="backslashreplace")


def print_json(value: Any) -> None:
    """Print a result as JSON on standard output. Paths become texts.

    Characters that the output cannot encode become JSON's escapes: what is printed can always be decoded.
    """
    text = json.dumps(value, ensure_ascii=False, default=str)
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(value, default=str)
    print(text)


def _drop_unwritten_output() -> None:
    """Drop what standard output and error do not accept; Python would fail on it again when it exits."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _message(error: RppError | OSError) -> str:
    """Return the line for a user. Most system errors are reworded where they happen; the rest are here."""
    if isinstance(error, RppError):
        return str(error)
    name = "a file or standard output" if error.filename is None else str(error.filename)
    name = name if len(name) <= LONGEST_FILE_NAME else f"{name[:LONGEST_FILE_NAME]}..."
    reason = error.strerror or str(error).partition("\n")[0] or type(error).__name__
    return printable(f"cannot read or write {name}: {reason}")
