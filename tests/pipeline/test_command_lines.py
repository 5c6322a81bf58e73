"""The three command lines as a shell sees them: examples in every help, and completion."""

import inspect
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from pipeline import cli as rpp
from student_train import cli as rpp_train
from teacher_cache import cli as rpp_cache

ROOT = Path(__file__).parents[2]
PROGRAMS = {"rpp": rpp, "rpp-cache": rpp_cache, "rpp-train": rpp_train}
SCRIPTS = Path(sys.executable).parent  # where the console scripts are installed


def commands_of(command: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Return the subcommands of a command, with the words that call them."""
    if hasattr(command, "commands"):
        for name, inner in command.commands.items():
            yield from commands_of(inner, (*path, name))
    else:
        yield path, command


COMMANDS = {
    " ".join(path): command
    for program, module in PROGRAMS.items()
    for path, command in commands_of(get_command(module.app), (program,))
}


@pytest.mark.parametrize("called", COMMANDS)
def test_every_help_has_an_example_that_the_command_takes(called: str) -> None:
    command, path = COMMANDS[called], called.split()
    (example,) = [
        paragraph.removeprefix("Example: ")
        for paragraph in inspect.cleandoc(command.help).split("\n\n")
        if paragraph.startswith("Example: ")
    ]
    words = shlex.split(example)
    assert words[: len(path)] == path
    command.make_context(called, words[len(path) :])  # ends with the reason if it cannot be parsed


@pytest.fixture
def text_of(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Return a function that calls a program in this process and returns its output."""

    def call(program: str, *arguments: str, **environment: str) -> str:
        # a program is called as its file is: pytest is none of the name
        monkeypatch.setattr(sys.modules["__main__"], "__package__", None)
        monkeypatch.setattr(sys, "argv", [program, *arguments])
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(SystemExit) as ended:
            PROGRAMS[program].main()
        assert not ended.value.code
        return capsys.readouterr().out

    return call


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (("rpp", "ev"), ["eval"]),
        (("rpp", "export", "on"), ["onnx"]),
        (("rpp", "eval", "--skip"), ["--skip-missing"]),
        (("rpp-cache", "rel"), ["relabel"]),
        (("rpp-cache", "build", "--enc"), ["--encoding"]),
        (("rpp-cache", "build", "--encoding", "fac"), ["factored", "factored-int8"]),
        (("rpp-train", "--temp"), ["--temperature"]),
        (("rpp-train", "--optimizer", ""), ["sgd", "adamw"]),
        (("rpp-train", "--log", ""), ["auto", "tensorboard", "wandb", "none"]),
        (("rpp-train", "--log", "w"), ["wandb"]),
    ],
)
def test_commands_options_and_choices_complete(
    text_of: Callable[..., str], words: tuple[str, ...], offered: list[str]
) -> None:
    """The last word is the one to complete."""
    program = words[0]
    asked = {"COMP_WORDS": " ".join(words), "COMP_CWORD": str(len(words) - 1)}
    complete = f"_{program.upper().replace('-', '_')}_COMPLETE"
    assert text_of(program, **{complete: "complete_bash"}, **asked).split() == offered


@pytest.mark.parametrize("program", PROGRAMS)
def test_completion_can_be_installed(program: str, text_of: Callable[..., str], tmp_path: Path) -> None:
    # Typer looks which shell called it; here none did
    named = {"HOME": str(tmp_path), "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    assert "completion installed" in text_of(program, "--install-completion", "bash", **named)
    assert f"{program}.sh" in (tmp_path / ".bashrc").read_text()
    installed = (tmp_path / ".bash_completions" / f"{program}.sh").read_text()
    assert installed.endswith(f"_completion {program}")


def test_a_shell_is_answered_by_the_installed_program(text_of: Callable[..., str], tmp_path: Path) -> None:
    """Completion in a real bash, with the script of --show-completion."""
    asks = text_of("rpp", "--show-completion", "bash", _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")
    script = f'{asks}\nCOMP_WORDS=(rpp ev) COMP_CWORD=1\n_rpp_completion rpp\necho "${{COMPREPLY[*]}}"\n'
    path = f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}"
    env = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(["bash", "--norc"], input=script, env=env, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (0, "eval\n"), ended.stderr
