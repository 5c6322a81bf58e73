"""Every command in README, docs and recipes: it can be read, and it is run on tiny data or says why not."""

import argparse
import contextlib
import importlib.util
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
from itertools import pairwise
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch.distributed.run
import typer
from distributed.cli import dask_scheduler, dask_worker
from typer.main import get_command

from student_train import clip_benchmark
from tests.docs.pages import OTHERS, PAGES, RECIPES, ROOT, SHELL, Block, Command, blocks_of, commands_of
from tests.models import write_model
from tests.pipeline.test_command_lines import COMMANDS, PROGRAMS
from tests.student_train.conftest import PICTURES

DOCUMENTS = [*PAGES, *RECIPES]
BLOCKS = [block for page in DOCUMENTS for block in blocks_of(page)]
SHELL_BLOCKS = [block for block in BLOCKS if block.language in SHELL]
TARGETS = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
EXTRAS = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
# not of this project: what their options mean is theirs
FOREIGN = {
    ".", "cp", "debootstrap", "echo", "gunzip", "mkdir", "tar", "tensorboard",
    ".venv/bin/ruff", ".venv/bin/mypy", ".ci/run",
}  # fmt: skip

# What `...` stands for in a command that is shortened to what is new in it.
SHORTENED = {
    "rpp-cache build": "--images 'train/{0000..0099}.tar' --classes imagenet-21k --out zarr/mine "
    "--teacher ViT-B-16 --pretrained openai",
}
# What is put in place of what tiny data cannot be, in commands that are run or read.
SUBSTITUTED = {
    "--teacher ViT-B-16 --pretrained openai": "--teacher models/teacher",
    "--classes imagenet-21k": "--classes pipeline/demo/pictures/classes.txt",
    "--classes imagenet-1k": "--classes pipeline/demo/pictures/classes.txt",
    # a run more is a matter of time alone
    "--set train.temperature=0.5,1,2,4 --set train.soft_weight=0,0.5,1 --seeds 3": (
        "--set train.temperature=1 --set train.soft_weight=1"
    ),
    "--precision PRECISION --seed SEED": "--precision fp32 --seed 0",
}


def test_blocks_say_what_they_are() -> None:
    """A fence that is set in, or in an unknown language, would be passed over in silence."""
    for page in PAGES:
        assert not re.findall(r"^ +```", page.read_text(), re.MULTILINE), page
    unknown = {block.where: block.language for block in BLOCKS if block.language not in (*SHELL, *OTHERS)}
    assert not unknown
    assert len(SHELL_BLOCKS) > 30
    assert {block.page for block in SHELL_BLOCKS} >= {ROOT / "README.md", *RECIPES}


def test_marks_are_before_the_blocks_of_a_shell() -> None:
    """A mark that is before nothing, or before what is no command, says something that is not so."""
    for page in PAGES:
        text = page.read_text()
        own = [block for block in blocks_of(page) if block.not_run]
        marks = len(re.findall("<!-- not run: ", text))
        whole = text.startswith("<!-- not run: ")
        assert all(block.language in SHELL for block in own) or whole, page
        assert marks == 1 if whole else marks == len(own), page


@pytest.mark.parametrize("block", SHELL_BLOCKS, ids=lambda block: block.where)
def test_commands_can_be_read(block: Block) -> None:
    """Programs, options, choices, make's targets and files are there, in blocks that are run and others."""
    commands = commands_of(block)
    assert commands
    for command in commands:
        read(substituted(command))


def test_the_quickstart_has_every_command() -> None:
    texts = [
        f"{command.text} "
        for block in SHELL_BLOCKS
        if block.page.stem == "quickstart"
        for command in commands_of(block)
    ]
    assert {path for path in COMMANDS if not any(text.startswith(f"{path} ") for text in texts)} == set()


def test_nothing_is_put_in_for_what_no_page_says() -> None:
    said = [command.text for block in SHELL_BLOCKS for command in commands_of(block)]
    shortened = [f"{program} ... " for program in SHORTENED]
    assert {one for one in (*SUBSTITUTED, *shortened) if not any(one in f"{text} " for text in said)} == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_options_in_the_text_are_there(page: Path) -> None:
    """Of commands within sentences, which stop short or have words in capitals for what is meant."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for code in re.findall(r"`((?:rpp|rpp-cache|rpp-train) [^`]+)`", text):
        code = " ".join(code.split())
        called = max((path for path in COMMANDS if f"{code} ".startswith(f"{path} ")), key=len, default="")
        options = set(re.findall(r"(?<= )--[\w-]+", code)) - {"--install-completion"}
        known = (
            {option for parameter in COMMANDS[called].params for option in parameter.opts}
            if called
            else set()
        )
        assert options <= known | {"--help"}, code


@pytest.mark.parametrize(
    "block", [b for b in BLOCKS if b.language == "python"], ids=lambda block: block.where
)
def test_python_can_be_read(block: Block) -> None:
    compile(block.text, block.where, "exec")


def substituted(command: Command) -> Command:
    """With what stands for `...`, and the table's words put in."""
    text = command.text
    for program, options in SHORTENED.items():
        if text.startswith(f"{program} ... ") or text == f"{program} ...":
            text = text.replace(" ...", f" {options}", 1)
    for old, new in SUBSTITUTED.items():
        if f" {old} " in f"{text} ":
            text = text.replace(old, new)
    return Command(command.where, commands_of(Block(ROOT / "x", 0, "", text))[0].words, command.environment)


def read(command: Command) -> None:
    """Parse a command as its program does; ends with what is wrong."""
    program, *rest = command.words
    if program in PROGRAMS:
        called = next((path for path in COMMANDS if f"{command.text} ".startswith(f"{path} ")), None)
        if called is None:
            assert rest in (["--help"], ["--install-completion"]), f"{command.where}: no such command"
            return
        COMMANDS[called].make_context(called, command.words[len(called.split()) :])
    elif program == "make":
        assert {word for word in rest if "=" not in word} <= TARGETS, command.where
    elif program in ("python", ".venv/bin/python"):
        read_python(command, rest)
    elif program == "torchrun":
        given = torch.distributed.run.get_args_parser().parse_args(rest)
        assert (given.module, given.training_script) == (True, "student_train.cli")
        read(Command(command.where, ["rpp-train", *given.training_script_args]))
    elif program == "srun":
        read(Command(command.where, rest[rest.index("torchrun") :]))
    elif program == "dask":
        tools = {"scheduler": dask_scheduler.main, "worker": dask_worker.main}
        if rest[0] != "cuda":  # dask-cuda is installed on machines with CUDA alone
            tools[rest[0]].make_context(rest[0], rest[1:])
    elif program == "pip":
        assert rest[0] == "install", command.where
        for extra in re.findall(r"rpp-clip\[(.*?)\]|\.\[(.*?)\]", " ".join(rest)):
            assert set("".join(extra).split(",")) <= EXTRAS, command.where
    else:
        assert program in FOREIGN, f"{command.where}: unknown program {program}"


def read_python(command: Command, rest: list[str]) -> None:
    """`python -m MODULE ...` and `python benchmarks/NAME.py ...`."""
    if rest[0] == "-m" and rest[1].startswith("pipeline.demo."):
        rest = [f"{rest[1].replace('.', '/')}.py", *rest[2:]]
    if rest[:2] == ["-m", "pytest"]:
        for before, word in pairwise(rest[1:]):
            if before in ("-k", "-m"):
                continue
            path, _, test = word.partition("::")
            assert word.startswith("-") or (ROOT / path).exists(), f"{command.where}: no {path}"
            assert not test or f"def {test.partition('[')[0]}(" in (ROOT / path).read_text(), command.where
    elif rest[:2] == ["-m", "student_train.clip_benchmark"]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["clip_benchmark", *rest[2:]])
            clip_benchmark.register().get_parser_args()
    else:
        path = ROOT / rest[0]
        assert path.parent in {ROOT / name for name in ("benchmarks", "pipeline/demo", "tests")}, (
            command.where
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.syspath_prepend(path.parent)
            # not by its name: Python has a module `encodings` itself
            spec = importlib.util.spec_from_file_location(f"benchmark_{path.stem}", path)
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            main = module.main
            if isinstance(main, typer.Typer):  # several commands: the next word names one
                commands = {one.callback.__name__: one.callback for one in main.registered_commands}
                main, rest = commands[rest[1]], rest[1:]
            patch.setattr(sys, "argv", rest)
            if main.__annotations__.keys() - {"return"}:
                app = typer.Typer()
                app.command()(main)
                get_command(app).make_context(path.stem, rest[1:])
            else:  # argparse, in its main
                patch.setattr(argparse.ArgumentParser, "parse_args", _parsed)
                with pytest.raises(KeyboardInterrupt):
                    main()


def _parsed(parser: argparse.ArgumentParser) -> None:
    parser.parse_known_args()
    if parser.parse_known_args()[1]:
        parser.error(f"unknown: {parser.parse_known_args()[1]}")
    raise KeyboardInterrupt  # go no further


class Desk:
    """A folder in which the paths of the pages hold tiny things; commands are run in it, page after page."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ran: dict[Path, list[Command]] = {}
        pictures = folder / "pipeline" / "demo" / "pictures"
        pictures.mkdir(parents=True)
        packaged = ROOT / "pipeline" / "demo" / "pictures"
        for name in ("classes.txt", "woman-firefighter.jpg"):
            shutil.copy(packaged / name, pictures)
        for style in ("noto", "noto-v1", "fluent-flat"):
            few = pq.read_table(packaged / f"{style}.parquet").slice(0, 40)
            pq.write_table(few, pictures / f"{style}.parquet")
        noto = PICTURES / "noto.tar"
        for name in ("student", "teacher"):
            write_model(folder / "models" / name, "gelu")
        (folder / "recipes").symlink_to(ROOT / "recipes")

        (folder / "train").mkdir()
        for number in range(100):
            _first_pictures(noto, folder / "train" / f"{number:04d}.tar", number, 1)
        (folder / "val").mkdir()
        _first_pictures(PICTURES / "fluent-flat.tar", folder / "val" / "0.tar", 0, 40)
        pets = folder / "oxford_pets"
        (pets / "images").mkdir(parents=True)
        with tarfile.open(noto) as tar:
            one, other = [m for m in tar.getmembers() if m.name.endswith(".jpg")][:2]
            for member, name in ((one, "cat.jpg"), (other, "dog.png")):  # known by their content
                (folder / name).write_bytes(tar.extractfile(member).read())  # type: ignore[union-attr]
                shutil.copy(folder / name, pets / "images")
        split = {"train": [], "val": [], "test": [["cat.jpg", 0, "cat"], ["dog.png", 1, "dog"]]}
        (pets / "split_zhou_OxfordPets.json").write_text(json.dumps(split))
        for block in BLOCKS:
            if block.language == "toml" and (named := re.match(r"# (\w+\.toml)\n", block.text)):
                (folder / named[1]).write_text(block.text)

    def run_to(self, page: Path) -> list[Command]:
        """Run the commands of the pages up to this one that were not run yet; gives those of this one."""
        for each in DOCUMENTS[: DOCUMENTS.index(page) + 1]:
            if each not in self.ran:
                self.ran[each] = []
                for block in SHELL_BLOCKS:
                    if block.page == each and not block.not_run:
                        self.ran[each] += [self.run(substituted(c), c.output) for c in commands_of(block)]
        return self.ran[page]

    def run(self, command: Command, output: str | None) -> Command:
        """Call the program: one of ours in this process, where torch is imported already."""
        if command.words[0] == "tar":
            subprocess.run(command.words, cwd=self.folder, check=True)
            return command
        assert command.words[0] in PROGRAMS, f"{command.where}: '{command.words[0]}' is not run by this test"
        said = io.StringIO()
        with (
            pytest.MonkeyPatch.context() as patch,
            contextlib.chdir(self.folder),
            contextlib.redirect_stdout(said),
        ):
            patch.setattr(sys.modules["__main__"], "__package__", None)
            patch.setattr(sys, "argv", command.words)
            patch.setenv("PYTHONPATH", str(ROOT))  # for processes that a command begins
            patch.delenv("WANDB_MODE", raising=False)  # a page says so itself, where no server is meant
            for name, value in command.environment.items():
                patch.setenv(name, value)
            code = None
            try:
                PROGRAMS[command.words[0]].main()
            except SystemExit as ended:
                code = ended.code
            assert not code, f"{command.where}: {command.text}\n{said.getvalue()}"
            if output:
                Path(output).write_text(said.getvalue())
            assert said.getvalue(), f"{command.where}: {command.text} says nothing"
            if "--out" in command.words and "--dry-run" not in command.words:
                made = command.words[command.words.index("--out") + 1]
                assert os.path.exists(made), f"{command.where}: no {made}"
        return command


def _first_pictures(tar: Path, out: Path, first: int, count: int) -> None:
    """A tar of some samples of a tar of pictures with their labels, two members each."""
    with tarfile.open(tar) as whole, tarfile.open(out, "w") as part:
        for member in whole.getmembers()[2 * first : 2 * (first + count)]:
            part.addfile(member, whole.extractfile(member))


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    """Shared by all pages: a later one uses what an earlier one made."""
    return Desk(tmp_path_factory.mktemp("desk"))


RUN_PAGES = [page for page in DOCUMENTS if any(b.page == page and not b.not_run for b in SHELL_BLOCKS)]


@pytest.mark.usefixtures("forked_runs")
@pytest.mark.parametrize("page", RUN_PAGES, ids=lambda page: page.stem)
def test_commands_run(page: Path, desk: Desk) -> None:
    """Every command of the page that is not marked, and of the pages before it."""
    assert desk.run_to(page)
