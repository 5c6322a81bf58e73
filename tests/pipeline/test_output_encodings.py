"""Every command with names and paths that the output cannot encode, and with a reader that has gone."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from tests.pipeline.test_command_lines import COMMANDS
from tests.processes import ForkServer
from tests.teacher_cache.inputs import encoded, jpeg, picture, write_shard

NAMES = ("猫", "naïve café", "кот", "🦉", "dog", "dog")
IDS = (*NAMES[:4], "dog#4", "dog#5")
ENCODINGS = ("latin-1", "cp1252", "utf-8")
READING = ("rpp-cache info", "rpp-cache stats", "rpp-cache verify", "rpp compare", "rpp eval", "rpp predict")
WIDTH = 96  # of the demo teacher's text tower
TRAIN = "rpp-train --cache cache --towers text --max-steps 1 --device cpu --log none --out"
# Commands in a folder with a name that is not Latin.
LINES = f"""
rpp-cache build --images a.tar --classes имена.txt --teacher TEACHER --device cpu --out cache --dry-run
rpp-cache build --images a.tar --classes имена.txt --teacher TEACHER --device cpu --out cache
rpp-cache build --images a.tar --classes имена.txt --teacher TEACHER --device cpu --out cache --json
rpp-cache info cache --skipped
rpp-cache info cache --skipped --json
rpp-cache verify cache
rpp-cache verify cache --json
rpp-cache relabel cache --name иной --classes имена.txt
rpp-cache relabel cache --name иной --classes имена.txt --json
rpp-cache extend cache --views 2 --device cpu
rpp-cache render cache --pixels png --threads 1
rpp-cache stats cache
rpp-cache stats cache --json
rpp-cache export cache --out мягкие.parquet
{TRAIN} ход
{TRAIN} ход2 --json
rpp compare ход ход2 --markdown
rpp compare ход ход2
rpp eval --student ход --images a.tar --classes имена.txt --metrics by-class --json
rpp eval --student ход --images a.tar --classes имена.txt
rpp predict 猫.jpg --student ход --classes имена.txt --top 6
rpp predict 猫.jpg --student ход --classes имена.txt --top 6 --json
rpp import чужой.pth --model TEACHER --out импорт
rpp export classifier --student ход --classes имена.txt --out веса
rpp export classifier --student ход --classes имена.txt --out веса --json
rpp export huggingface --student ход --out лицо
rpp report ход --out отчёт.html
rpp models RN50
rpp models RN50 --json
rpp run рецепт.toml
rpp sweep рецепт.toml --set train.temperature=1,2 --out поиск
"""
# Their tables and lines are printed by the functions that the others use; each takes half a minute or more.
NOT_RUN = {"rpp demo", "rpp export onnx"}
PROGRAM = """
import json, os, shlex, sys
from pipeline import cli as rpp
from student_train import cli as rpp_train
from teacher_cache import cli as rpp_cache

programs = {"rpp": rpp, "rpp-cache": rpp_cache, "rpp-train": rpp_train}
answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
for ENCODING, line in LINES:
    for stream, name in ((sys.stdout, "out.log"), (sys.stderr, "err.log")):
        stream.flush()
        file = os.open(name, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
        os.dup2(file, stream.fileno())
        os.close(file)
        stream.reconfigure(encoding=ENCODING, errors="strict")
    sys.argv = shlex.split(line)
    code = 0
    try:
        programs[sys.argv[0]].main()
    except SystemExit as ended:
        code = ended.code or 0
    sys.stdout.flush()
    sys.stderr.flush()
    said = [open(name, encoding=ENCODING).read() for name in ("out.log", "err.log")]
    print(json.dumps([ENCODING, line, code, *said]), file=answers, flush=True)
"""


class Printed(NamedTuple):
    """A command line, and what it printed in an encoding."""

    encoding: str
    line: str
    code: int
    out: str
    err: str


def write_inputs(folder: Path, clip: Path) -> None:
    folder.mkdir()
    (folder / "имена.txt").write_text("\n".join(NAMES) + "\n", encoding="utf-8")
    members = [(f"кот-{i}.jpg", b"junk" if i == 3 else jpeg(i)) for i in range(12)]
    labels = [(f"кот-{i}.cls", str(i % len(NAMES)).encode()) for i in range(12)]
    write_shard(folder / "a.tar", [member for pair in zip(members, labels, strict=True) for member in pair])
    (folder / "猫.jpg").write_bytes(encoded(picture(1)))
    torch.save({"state_dict": {"ctx": torch.zeros(4, WIDTH)}}, folder / "чужой.pth")
    evaluation = 'images = "a.tar"\nclasses = "имена.txt"\n'
    (folder / "рецепт.toml").write_text(
        f'[build]\n{evaluation}teacher = "{clip}"\nout = "кэш2"\n[train]\nout = "рецепт"\n'
        f'max_steps = 1\ntowers = "text"\nlog = ["none"]\n[[eval]]\n{evaluation}',
        encoding="utf-8",
    )


def run_lines(processes: ForkServer, folder: Path, lines: list[tuple[str, str]]) -> list[Printed]:
    """Run command lines, each with its encoding of standard output and error, in one process."""
    environment = os.environ | {"PYTHONIOENCODING": "ascii:strict"}  # for the processes that they start
    program = f"LINES = {lines!r}\n{PROGRAM}"
    ended = processes.call("python", "-c", program, cwd=folder, environment=environment)
    assert ended.code == 0, ended.err
    return [Printed(*json.loads(line)) for line in ended.out.splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, clip: Path) -> Path:
    folder = tmp_path_factory.mktemp("encodings") / "каталог 猫"
    write_inputs(folder, clip)
    return folder


@pytest.fixture(scope="module")
def printed(processes: ForkServer, folder: Path, clip: Path) -> list[Printed]:
    """Every command where only ASCII can be printed, and those that change nothing in other encodings."""
    lines = [("ascii", line.replace("TEACHER", str(clip))) for line in LINES.strip().splitlines()]
    again = [line for _, line in lines if line.startswith(READING)]
    others = [(encoding, line) for encoding in ENCODINGS for line in again]
    helps = [(encoding, f"{name} --help") for encoding in ("ascii", "latin-1") for name in COMMANDS]
    return run_lines(processes, folder, [*lines, *others, *helps])


def test_every_command_is_called() -> None:
    lines = LINES.strip().splitlines()
    called = {name for name in COMMANDS for line in lines if line.startswith(f"{name} ")}
    assert called == COMMANDS.keys() - NOT_RUN


def test_no_command_fails_on_what_its_output_cannot_encode(printed: list[Printed]) -> None:
    assert [(one.line, one.err) for one in printed if one.code] == []
    assert [one.line for one in printed if "Traceback" in one.out + one.err] == []


@pytest.mark.parametrize("encoding", ["ascii", *ENCODINGS])
def test_names_are_printed_as_the_output_can_encode_them(printed: list[Printed], encoding: str) -> None:
    of = {one.line: one.out for one in printed if one.encoding == encoding}
    (text,) = (out for line, out in of.items() if line.startswith("rpp predict 猫") and "--json" not in line)
    assert ("猫.jpg\n" if encoding == "utf-8" else "\\u732b.jpg\n") in text
    assert ("na\\xefve caf\\xe9" if encoding == "ascii" else "naïve café") in text
    assert "dog (dog#5)" in text
    (likely,) = next(
        json.loads(out) for line, out in of.items() if line.startswith("rpp predict") and "--json" in line
    )
    assert likely["image"] == "猫.jpg"
    assert [IDS[index] for index in likely["indices"]] == likely["ids"]
    assert [NAMES[index] for index in likely["indices"]] == likely["classes"]
    counts = next(json.loads(out) for line, out in of.items() if "--metrics by-class --json" in line)
    assert counts["by_class_ids"] == list(IDS)
    facts = next(json.loads(out) for line, out in of.items() if line == "rpp-cache stats cache --json")
    assert facts["confused"]
    for pair in facts["confused"]:
        assert (IDS[pair["label"]], IDS[pair["predicted"]]) == (pair["label_id"], pair["predicted_id"])
    for line, out in of.items():
        if line.endswith("--json"):
            json.loads(out)


def test_text_files_are_utf8(printed: list[Printed], folder: Path) -> None:
    """Of an interpreter whose output is not UTF-8."""
    for name in (
        "ход/settings.json",
        "ход/metrics.jsonl",
        "отчёт.html",
        "лицо/README.md",
        "поиск/sweep.json",
    ):
        (folder / name).read_text(encoding="utf-8")
    assert json.loads((folder / "веса/classes.json").read_text(encoding="utf-8"))["names"] == list(NAMES)


def test_an_error_and_its_traceback_are_printed(
    processes: ForkServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RPP_DEBUG", "1")
    lines = ["rpp-cache info кэш", "rpp predict кот.jpg --student нет --classes нет", "rpp report ход"]
    lines += ["rpp-cache stats кэш --кот", "rpp-cache build --encoding кот"]
    for one in run_lines(processes, tmp_path, [(e, line) for e in ("ascii", "latin-1") for line in lines]):
        assert one.code == 2, one.line
        assert "\\u04" in one.err
        assert "UnicodeEncodeError" not in one.err


@pytest.mark.parametrize(
    ("command", "closed"),
    [("info CACHE", ">&-"), ("stats CACHE", "2>&1 | true"), ("--help", "| true"), ("verify CACHE", "2>&-")],
)
def test_a_closed_output_ends_a_command_quietly(
    printed: list[Printed], folder: Path, command: str, closed: str
) -> None:
    words = [str(folder / "cache") if word == "CACHE" else word for word in command.split()]
    program = f"import sys; sys.argv[1:] = {words!r}; "
    program += "from teacher_cache.cli import main; main()"
    script = f"{sys.executable} -c {shlex.quote(program)} {closed}; exit ${{PIPESTATUS[0]}}"
    ended = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=120)
    assert "Traceback" not in ended.stderr
    assert "Exception ignored" not in ended.stderr
    assert ended.returncode in ((0, 1) if "true" in closed else (0,))
