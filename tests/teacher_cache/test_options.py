"""Options made from settings, and how a command line ends."""

import os
import re
import subprocess
import sys
from importlib import import_module

import pytest
import typer
from pydantic import BaseModel, Field
from typer.testing import CliRunner

from teacher_cache.errors import RppError, UsageError
from teacher_cache.options import OneCommand, command_line, run_app, settings_options
from teacher_cache.settings import Place


@pytest.mark.parametrize(
    ("raised", "code", "line"),
    [
        (KeyboardInterrupt(), 130, "stopped"),
        (UsageError("no such thing"), 2, "error: no such thing"),
        (RppError("disk full"), 1, "error: disk full"),
        (
            OSError(36, "File name too long", "a" * 5000),
            1,
            f"error: cannot read or write {'a' * 200}...: File name too long",
        ),
        (
            OSError(5, "I/O\x1b[2J error"),
            1,
            r"error: cannot read or write a file or standard output: I/O\x1b[2J error",
        ),
        (TimeoutError(), 1, "error: cannot read or write a file or standard output: TimeoutError"),
        (typer.Exit(3), 3, ""),
    ],
)
def test_errors_are_one_line_and_an_exit_code(
    raised: BaseException,
    code: int,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    app = typer.Typer()

    @app.command()
    def command() -> None:
        raise raised

    monkeypatch.setattr(sys, "argv", ["command"])
    with pytest.raises(SystemExit) as ended:
        run_app(app)
    assert ended.value.code == code
    assert capsys.readouterr().err.strip() == line


PRINTS = """
import sys, typer
from teacher_cache.options import run_app
app = typer.Typer()
@app.command()
def command(amount: int):
    print("x" * amount)
    raise typer.Exit(3)
run_app(app)
"""


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("amount", [1, 1_000_000])
def test_output_that_cannot_be_written_is_one_line(amount: int, unbuffered: str) -> None:
    """Whether it fails at the first character or when buffers are flushed at the end."""
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-c", PRINTS, str(amount)]
        ended = subprocess.run(command, env=environment, stdout=full, stderr=subprocess.PIPE, text=True)
    said = "error: cannot read or write a file or standard output: No space left on device\n"
    assert (ended.returncode, ended.stderr) == (1, said)


STORES = """
import typer
from teacher_cache.options import run_app
app = typer.Typer()
@app.command()
def command(name: str):
    name.encode()
run_app(app)
"""


@pytest.mark.parametrize(
    ("utf8", "name", "reason"),
    [
        ("0", "zürich".encode(), "cannot be decoded in this locale's encoding, ascii; set PYTHONUTF8=1"),
        ("1", b"caf\xe9", "is not UTF-8; rename it"),
    ],
)
def test_an_argument_that_cannot_be_stored_is_one_line(utf8: str, name: bytes, reason: str) -> None:
    environment = os.environ | {"LC_ALL": "C", "PYTHONUTF8": utf8, "PYTHONCOERCECLOCALE": "0"}
    ended = subprocess.run([sys.executable, "-c", STORES, name], env=environment, stderr=subprocess.PIPE)
    shown = name.decode(errors="backslashreplace").encode(
        "ascii" if utf8 == "0" else "utf-8", "backslashreplace"
    )
    assert ended.returncode == 2
    assert ended.stderr == b"error: the name '%b' %b\n" % (shown, reason.encode())


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("amount", [1, 1_000_000])
def test_a_closed_pipe_is_not_an_error(amount: int, unbuffered: str) -> None:
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-c", PRINTS, str(amount)]
    ended = subprocess.run(command, env=environment, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (1, "")


@pytest.mark.parametrize(
    ("main", "arguments"),
    [
        ("teacher_cache.cli", ["info", "nowhere"]),
        ("student_train.cli", ["--cache", "nowhere"]),
        ("pipeline.cli", ["run", "nowhere.toml"]),
    ],
)
@pytest.mark.parametrize("debug", ["", "1"])
def test_debugging_shows_the_traceback_of_an_error(
    main: str,
    arguments: list[str],
    debug: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("RPP_DEBUG", debug)
    monkeypatch.setattr(sys, "argv", ["command", *arguments])
    with pytest.raises(SystemExit) as ended:
        import_module(main).main()
    *before, line = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2
    assert line.startswith("error: ")
    assert [text.partition(" (")[0] for text in before[:1]] == ["Traceback"] * bool(debug)


def test_a_defect_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    app = typer.Typer()

    @app.command()
    def command() -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(sys, "argv", ["command"])
    with pytest.raises(ZeroDivisionError):
        run_app(app)


class Options(BaseModel):
    cache: Place
    other: Place | None = None
    metric: str = "accuracy"


def test_places_have_the_type_of_texts_in_the_help() -> None:
    app = typer.Typer()

    @app.command()
    @settings_options(Options)
    def command(options: Options) -> None:
        """Shows what it was given."""
        print(options.cache, options.other)

    said = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200", "TERM": "dumb"}).output
    kinds = dict(re.findall(r"--(cache|other|metric)\s+(\S+)", said))
    assert kinds == dict.fromkeys(("cache", "other", "metric"), kinds["metric"]), "the type of plain texts"
    assert CliRunner().invoke(app, ["--cache", "a", "--other", "s3://b"]).output.split() == ["a", "s3://b"]


@pytest.mark.parametrize("columns", [60, 80, 100])
@pytest.mark.parametrize("module", ["teacher_cache.cli", "student_train.cli", "pipeline.cli"])
def test_the_help_truncates_no_option_and_no_choice(
    module: str, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    app = typer.main.get_command(import_module(module).app)
    for arguments in [[name] for name in getattr(app, "commands", {})] or [[]]:
        text = CliRunner().invoke(import_module(module).app, [*arguments, "--help"]).output
        assert "--help" in text
        assert not re.findall(r"--\S*…|<\S*…", text), text


@pytest.mark.parametrize(
    ("words", "port", "rest"),
    [
        (["--port"], "true", None),
        (["--port", "80"], "80", None),
        (["--port=80"], "80", None),
        (["--port", "--word", "a"], "true", "a"),
        (["--word", "a", "--port"], "true", "a"),
        (["--port", "80", "--word", "7"], "80", "7"),
        ([], "False", None),
    ],
)
@pytest.mark.parametrize("columns", ["80", "200"])
def test_the_value_of_an_option_with_brackets_is_optional(
    words: list[str], port: str, rest: str | None, columns: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Ports(BaseModel):
        port: int | bool = Field(default=False, json_schema_extra={"metavar": "[PORT]"})
        word: str | None = None

    app, found = command_line("A program."), list[tuple[str, str | None]]()

    @app.command(cls=OneCommand)
    @settings_options(Ports)
    def command(settings: Ports) -> None:
        found.append((str(settings.port), settings.word))

    @app.command(cls=OneCommand)
    def other() -> None: ...

    monkeypatch.setenv("COLUMNS", columns)
    program = typer.main.get_command(app)
    for _ in range(2):  # reading a command line does not change how the next one is read
        program.main(["command", *words], standalone_mode=False)
    assert found == [({"true": "True"}.get(port, port), rest)] * 2
    assert "[PORT]" in CliRunner().invoke(app, ["command", "--help"]).output
