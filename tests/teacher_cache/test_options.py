"""How a command line ends."""

import sys

import pytest
import typer

from teacher_cache.errors import RppError, UsageError
from teacher_cache.options import run_app


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
