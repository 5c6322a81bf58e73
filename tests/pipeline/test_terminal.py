"""The commands in a real terminal of 80 columns, in a dumb one, under NO_COLOR, and in no terminal at all."""

import fcntl
import os
import pty
import re
import struct
import termios
from pathlib import Path

import pyte
import pytest

from tests.processes import ForkServer
from tests.student_train.conftest import PICTURES

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b.|\r(?!\n)")
COLOURS = re.compile(r"\x1b\[(?:[0-9;]*;)?(?:[34][0-8]|9[0-7]|10[0-7])(?:;[0-9;]*)?m")
# All in one process, since its start takes seconds; the output of each scene follows its name.
PROGRAM = """
import os, sys
from pipeline import cli as rpp
from student_train import cli as rpp_train
from teacher_cache import cli as rpp_cache

def scene(name, module, *words, **environment):
    print(f"\\n=== {name}", flush=True)
    os.environ.update(environment)
    sys.argv = [module.__name__.split(".")[0], *words]
    try:
        module.main()
    except SystemExit:
        sys.stdout.flush()

build = ["build", "--images", IMAGES, "--classes", CLASSES, "--teacher", TEACHER, "--part-size", "100"]
train = ["--cache", "zarr", "--towers", "text", "--batch-size", "30", "--log-every", "1", "--device", "cpu"]
scene("build", rpp_cache, *build, "--out", "zarr")
scene("train", rpp_train, *train, "--epochs", "2", "--out", "one")
scene("mistake", rpp_train, *train, "--out", "one")
scene("help", rpp, "--help")
scene("dumb", rpp_train, *train, "--epochs", "1", "--out", "two", TERM="dumb")
scene("train NO_COLOR", rpp_train, *train, "--epochs", "1", "--out", "three", TERM="xterm", NO_COLOR="1")
scene("mistake NO_COLOR", rpp_train, *train, "--out", "three")
scene("help NO_COLOR", rpp, "--help")
print("\\n=== end", flush=True)
"""
FIELDS = r"samples/s \d+  loss \d+\.\d{4}  hard \d+\.\d{4}  soft \d+\.\d{4}  wait \d+\.\ds"
LINE = rf"steps 10/10  [\d.]+/s  left 0:00:00  {FIELDS}"


def command(clip: Path) -> list[str]:
    places = {
        "IMAGES": PICTURES / "noto.tar",
        "CLASSES": PICTURES / "classes.txt",
        "TEACHER": clip,
    }
    program = "".join(f"{name} = {str(place)!r}\n" for name, place in places.items()) + PROGRAM
    return ["python", "-c", program]


def environment() -> dict[str, str]:
    unset = ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES", "TTY_COMPATIBLE")
    env = {name: value for name, value in os.environ.items() if name not in unset}
    return env | {"TERM": "xterm"}


def scenes(output: str) -> dict[str, str]:
    parts = re.split(r"\r?\n=== (.*?)\r?\n", output)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.fixture(scope="module")
def terminal(processes: ForkServer, tmp_path_factory: pytest.TempPathFactory, clip: Path) -> dict[str, str]:
    """Return the output to a terminal of 80 columns and 24 lines, by scene."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    process = processes.start(
        *command(clip),
        cwd=tmp_path_factory.mktemp("terminal"),
        environment=environment(),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    output = b""
    try:
        while piece := os.read(ours, 65536):
            output += piece
    except OSError:  # the other end of the terminal is closed
        pass
    os.close(ours)
    assert process.wait() == 0, output.decode()
    return scenes(output.decode())


def on_screen(output: str) -> list[str]:
    """Return the last lines on the screen."""
    screen = pyte.Screen(80, 24)
    pyte.Stream(screen).feed(output)
    return [line.rstrip() for line in screen.display if line.strip()]


def test_a_build_shows_its_rate_parts_and_time_left(terminal: dict[str, str]) -> None:
    bar, below, *printed = on_screen(terminal["build"])
    assert re.fullmatch(r"samples ━+ 300/300 [\d.,]+ samples/s 0:00:00", bar)
    assert below == "parts 3/3"
    assert "".join(printed).startswith("zarr: 300 samples, 3 of 3 parts computed now")


@pytest.mark.parametrize(("scene", "steps"), [("train", 20), ("train NO_COLOR", 10)])
def test_a_run_shows_its_figures_below_the_bar(terminal: dict[str, str], scene: str, steps: int) -> None:
    plan, bar, below, *printed = on_screen(terminal[scene])
    assert re.fullmatch(r"text tower: 1 chunk, all activations kept, \d+ MiB", plan)
    assert re.fullmatch(rf"steps ━+ {steps}/{steps} [\d.,]+ steps/s 0:00:00", bar)
    assert re.fullmatch(FIELDS, below)
    assert f"{steps} steps from features" in " ".join(printed)


def test_progress_moves_during_a_run(terminal: dict[str, str]) -> None:
    frames = set(re.findall(r"\d+/20 ", ESCAPES.sub("", terminal["train"])))
    assert len(frames) > 2


def test_a_dumb_terminal_gets_plain_lines(terminal: dict[str, str]) -> None:
    assert not ESCAPES.search(terminal["dumb"].replace("\r\n", "\n"))
    assert re.search(rf"^{LINE}\r?$", terminal["dumb"], re.MULTILINE)


@pytest.mark.parametrize("scene", ["train", "mistake", "help"])
def test_no_color_is_respected(terminal: dict[str, str], scene: str) -> None:
    assert COLOURS.search(terminal[scene])
    plain = terminal[f"{scene} NO_COLOR"]
    assert not COLOURS.search(plain)
    if scene == "mistake":
        assert "error: three already has a run" in ESCAPES.sub("", plain)


def test_without_a_terminal_nothing_is_escaped(processes: ForkServer, tmp_path: Path, clip: Path) -> None:
    ended = processes.call(*command(clip), cwd=tmp_path, environment=environment())
    assert ended.code == 0, ended.err
    assert "\x1b" not in ended.out + ended.err
    assert "\r" not in ended.out + ended.err
    lines = ended.err.splitlines()
    assert [
        line for line in lines if re.fullmatch(r"samples 300/300  [\d.]+/s  left 0:00:00  parts 3/3", line)
    ]
    assert len([line for line in lines if re.fullmatch(LINE, line)]) == 2  # one, dumb and NO_COLOR have ten
    assert "error: one already has a run; choose another --out, or resume with --resume" in lines
