"""How a command line ends."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from pydantic import BaseModel, field_validator
from typer.testing import CliRunner

from teacher_cache.errors import RppError, UsageError
from teacher_cache.options import run_app, settings_options
from teacher_cache.settings import Place, from_flat, validated


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (KeyboardInterrupt(), 130, "stopped"),
        (UsageError("no such thing"), 2, "error: no such thing"),
        (RppError("disk full"), 1, "error: disk full"),
        (
            OSError(36, "File name too long", "a" * 5000),
            1,
            f"error: {'a' * 200}... cannot be read or written: File name too long",
        ),
        (
            OSError(5, "I/O\x1b[2J error"),
            1,
            r"error: a file, or standard output, cannot be read or written: I/O\x1b[2J error",
        ),
        (TimeoutError(), 1, "error: a file, or standard output, cannot be read or written: TimeoutError"),
        (typer.Exit(3), 3, ""),
    ],
)
def test_an_end_is_one_line_and_an_exit_code(
    raised: BaseException,
    code: int,
    said: str,
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
    assert capsys.readouterr().err.strip() == said


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
def test_an_output_that_takes_nothing_is_one_line(amount: int, unbuffered: str) -> None:
    """Whether it shows at the first letter or when all is written at the end."""
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-c", PRINTS, str(amount)]
        ended = subprocess.run(command, env=environment, stdout=full, stderr=subprocess.PIPE, text=True)
    said = "error: a file, or standard output, cannot be read or written: No space left on device\n"
    assert (ended.returncode, ended.stderr) == (1, said)


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("amount", [1, 1_000_000])
def test_a_reader_that_has_seen_enough_is_no_error(amount: int, unbuffered: str) -> None:
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-c", PRINTS, str(amount)]
    ended = subprocess.run(command, env=environment, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (1, "")


def test_a_defect_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    app = typer.Typer()

    @app.command()
    def command() -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(sys, "argv", ["command"])
    with pytest.raises(ZeroDivisionError):
        run_app(app)


@pytest.mark.parametrize("value", ["a\0b", Path("a\nb"), ["fine", "a\x1bb"], "a\udcffb"])
def test_a_text_that_no_file_is_called_is_refused(value: object) -> None:
    with pytest.raises(
        UsageError, match=r"^--cache .*a.*b.*: no text for it has control characters$"
    ) as refused:
        from_flat(Options, {"cache": value})
    assert "\n" not in str(refused.value)


class Options(BaseModel):
    cache: Place
    other: Place | None = None
    metric: str = "accuracy"

    @field_validator("metric")
    @classmethod
    def _known(cls, metric: str) -> str:
        if metric != "accuracy":
            raise ValueError("is none of accuracy")
        return metric


def test_places_are_texts_in_the_help() -> None:
    app = typer.Typer()

    @app.command()
    @settings_options(Options)
    def command(options: Options) -> None:
        """Shows what it was given."""
        print(options.cache, options.other)

    said = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200", "TERM": "dumb"}).output
    kinds = dict(re.findall(r"--(cache|other|metric)\s+(\S+)", said))
    assert kinds == dict.fromkeys(("cache", "other", "metric"), kinds["metric"]), "as of plain texts"
    assert CliRunner().invoke(app, ["--cache", "a", "--other", "s3://b"]).output.split() == ["a", "s3://b"]


def test_a_value_that_the_settings_refuse_is_said_in_their_words() -> None:
    with pytest.raises(UsageError, match=r"^--metric 'foo': is none of accuracy$"):
        validated(Options, {"cache": "a", "metric": "foo"})
