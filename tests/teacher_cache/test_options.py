"""How a command line ends."""

import re
import sys

import pytest
import typer
from pydantic import BaseModel, field_validator
from typer.testing import CliRunner

from teacher_cache.errors import RppError, UsageError
from teacher_cache.options import Place, run_app, settings_options, validated


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (KeyboardInterrupt(), 130, "stopped"),
        (UsageError("no such thing"), 2, "error: no such thing"),
        (RppError("disk full"), 1, "error: disk full"),
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
