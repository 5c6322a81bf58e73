"""Places: each setting and argument that is one, chains in folders with odd names, and trees that moved."""

import html
import importlib
import pkgutil
import shutil
import sys
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from pydantic import BaseModel

import pipeline
import pipeline.cli
import student_train
import student_train.cli
import teacher_cache
import teacher_cache.cli
from pipeline.compare import compare_runs
from pipeline.recipe import load_recipe
from pipeline.report.softlabels import open_recorded_cache
from student_train.evaluation.evaluate import evaluate
from student_train.evaluation.settings import EvalSettings
from student_train.interchange.published import import_prompts
from student_train.interchange.settings import ImportSettings
from student_train.model.student import load_student
from student_train.runs.record import STUDENT, read_settings
from student_train.training.loop import train
from student_train.training.settings import TrainSettings
from teacher_cache import open_cache
from teacher_cache.build import build_cache
from teacher_cache.command_settings import ExtendSettings
from teacher_cache.errors import UsageError
from teacher_cache.extend import extend_cache
from teacher_cache.options import as_written
from teacher_cache.settings import LocalPlace, Place, PlaceOrText
from teacher_cache.teacher.openclip import load_model
from tests.models import write_model
from tests.teacher_cache.files.hub_server import Hub
from tests.teacher_cache.files.hub_server import hub as hub
from tests.teacher_cache.inputs import settings, write_names, write_shards

# Every text that is a setting, or an argument or option of a command, and no place.
NO_PLACES = {
    *(
        "device",
        "scheduler",
        "vocabulary",
        "name",
        "split",
        "prompt_init",
        "set",
        "metrics",
        "log",
        "temperature",
    ),
    *("optimizer", "format", "fixed_words", "weights_like", "text_memory"),
}
TYPES = tuple(typing.get_args(kind)[1] for kind in (Place, LocalPlace, PlaceOrText))


def settings_classes() -> Iterator[type[BaseModel]]:
    """Every settings class: those with options have a description in each field."""
    for package in (teacher_cache, student_train, pipeline):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if module.name.endswith(("settings", "suite")):
                for found in vars(importlib.import_module(module.name)).values():
                    if isinstance(found, type) and issubclass(found, BaseModel) and found is not BaseModel:
                        yield found


def is_text(annotation: Any) -> bool:
    """Return whether a value of this type may be any text or path."""
    if typing.get_origin(annotation) in (types.UnionType, typing.Union, tuple, list):
        return any(map(is_text, typing.get_args(annotation)))
    if typing.get_origin(annotation) is typing.Annotated:
        return is_text(typing.get_args(annotation)[0])
    return annotation in (str, Path)


def is_place(annotation: Any, metadata: list[Any]) -> bool:
    parts = [part for one in typing.get_args(annotation) for part in typing.get_args(one)]
    return any(kind in (*metadata, *parts) for kind in TYPES)


def test_every_setting_that_is_a_place_has_its_type() -> None:
    fields = {
        f"{found.__name__}.{name}": field
        for found in settings_classes()
        for name, field in found.model_fields.items()
        if field.description and is_text(field.annotation) and name not in NO_PLACES
    }
    assert len(fields) > 40
    assert [n for n, field in fields.items() if not is_place(field.annotation, field.metadata)] == []


def test_every_argument_that_is_a_place_is_converted() -> None:
    """Those of settings are converted by their types."""
    in_settings = {name for found in settings_classes() for name in found.model_fields}
    places = []
    for module in (teacher_cache.cli, student_train.cli, pipeline.cli):
        for registered in walk_typer(module.app):
            hints = typing.get_type_hints(registered, include_extras=True)
            for name, hint in hints.items():
                if typing.get_origin(hint) is typing.Annotated and is_text(hint):
                    callback = getattr(typing.get_args(hint)[1], "callback", None)
                    if name not in NO_PLACES and (callback is not None or name not in in_settings):
                        places.append((registered.__name__, name, callback))
    assert len(places) > 10
    assert [place for place in places if place[2] is not as_written] == []


def walk_typer(app: typer.Typer) -> Iterator[Any]:
    yield from (command.callback for command in app.registered_commands)
    for group in app.registered_groups:
        assert group.typer_instance is not None
        yield from walk_typer(group.typer_instance)


def run(monkeypatch: pytest.MonkeyPatch, main: Any, *arguments: str | Path) -> None:
    """Run a command in this process; it has to succeed."""
    monkeypatch.setattr(sys, "argv", ["command", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code


ODD_NAMES = ("a b", "[1] {x} [bold]", "%20#1+é", "a::b:c", "-x", "$5 'q' <b>&")


@pytest.mark.parametrize("name", ODD_NAMES)
def test_the_chain_works_in_a_folder_with_any_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / name
    write_shards(folder / "images", shards=2, samples=10)
    write_names(folder / "names.txt")
    write_model(folder / "teacher", "gelu")
    monkeypatch.chdir(tmp_path)
    at = f"./{name}"
    cache, out = f"{at}/zarr", f"{at}/run"
    build = ("--images", f"{at}/images", "--classes", f"{at}/names.txt", "--teacher", f"{at}/teacher")
    run(monkeypatch, teacher_cache.cli.main, "build", *build, "--out", cache)
    assert f"{at}/zarr: 20 samples" in capsys.readouterr().out
    run(monkeypatch, teacher_cache.cli.main, "info", cache)
    assert f"images: {tmp_path}/{name}/images" in capsys.readouterr().out
    run(monkeypatch, teacher_cache.cli.main, "export", cache, "--out", f"{at}/soft.parquet", "--top", "2")
    train_options = ("--batch-size", "10", "--max-steps", "2", "--workers", "0", "--log", "tensorboard")
    run(monkeypatch, student_train.cli.main, "--cache", cache, "--out", out, *train_options)
    assert f"{name}/run: 2 steps" in capsys.readouterr().out
    data = ("--images", f"{at}/images/*.tar", "--classes", f"{at}/names.txt")
    run(monkeypatch, pipeline.cli.main, "eval", "--student", out, *data, "--markdown")
    assert name in html.unescape(capsys.readouterr().out).replace("\\", "")
    run(monkeypatch, pipeline.cli.main, "eval", "--student", out, *data)
    assert f"{name}/run" in capsys.readouterr().out
    run(monkeypatch, pipeline.cli.main, "report", out, "--out", f"{at}/report.html")
    assert "The cache cannot be read" not in (folder / "report.html").read_text()
    run(monkeypatch, pipeline.cli.main, "export", "huggingface", "--student", out, "--out", f"{at}/hub")
    run(
        monkeypatch,
        pipeline.cli.main,
        "export",
        "classifier",
        "--student",
        out,
        *data[2:],
        "--out",
        f"{at}/c",
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == [name]


def test_a_recipe_with_tildes_writes_into_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, work = tmp_path / "home", tmp_path / "work"
    work.mkdir()
    write_shards(home / "images", shards=1, samples=10)
    write_names(home / "names.txt")
    write_model(home / "teacher", "gelu")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(work)
    (home / "r.toml").write_text(
        '[build]\nimages = "~/images/*.tar"\nclasses = "~/names.txt"\nteacher = "~/teacher"\nout = "~/zarr"\n'
        '[train]\nout = "~/run"\nbatch_size = 10\nmax_steps = 1\ntowers = "text"\n'
        '[[eval]]\nimages = "~/zarr/"\nstudent = "~/run/"\n'
    )
    recipe = load_recipe("~/r.toml")
    assert recipe.build is not None
    assert [recipe.build.out, str(recipe.train.out)] == [f"{home}/zarr", f"{home}/run"]
    run(monkeypatch, pipeline.cli.main, "run", "~/r.toml")
    assert not list(work.iterdir())
    assert len(open_cache("~/zarr")) == 10
    assert load_student("~/run").settings.towers == "text"
    run(monkeypatch, pipeline.cli.main, "report", "~/run")
    assert (home / "run" / "report.html").exists()


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with teacher, images, cache and a run, all named relative to it."""
    tree = tmp_path / "tree"
    write_shards(tree / "images", shards=1, samples=10)
    write_names(tree / "names.txt")
    write_model(tree / "teacher", "gelu")
    monkeypatch.chdir(tree)
    build_cache(settings("images", "names.txt", Path("zarr"), Path("teacher")))
    options: dict[str, Any] = {"batch_size": 10, "max_steps": 1, "workers": 0}
    train(TrainSettings(cache="zarr", out="runs/a", **options))
    monkeypatch.chdir(tmp_path)
    return tree


def test_a_run_finds_its_cache_from_any_folder(tree: Path) -> None:
    record = read_settings(tree / "runs" / "a")
    assert record["settings"]["cache"] == str(tree / "zarr")
    assert record["from_run"]["cache"] == "../../zarr"
    assert record["from_run"]["student_model"] == "../../teacher"
    assert open_recorded_cache(tree / "runs" / "a", record).path == str(tree / "zarr")


def test_a_moved_tree_finds_its_cache_and_its_models(tree: Path, tmp_path: Path) -> None:
    shutil.move(tree, tmp_path / "moved")
    moved = tmp_path / "moved" / "runs" / "a"
    record = read_settings(moved)
    assert open_recorded_cache(moved, record).path == str(tmp_path / "moved" / "zarr")
    assert load_student(moved).base.name == f"local-dir:{tmp_path}/moved/teacher"
    assert record["cache"]["teacher"]["model"] == f"local-dir:{tmp_path}/moved/teacher"
    shutil.copytree(moved, tmp_path / "moved" / "runs" / "b")
    assert compare_runs([moved, str(tmp_path / "moved" / "runs" / "b")])["settings"] == {}


def test_a_cache_whose_teacher_moved_names_the_option(tree: Path) -> None:
    shutil.move(tree / "teacher", tree / "elsewhere")
    with pytest.raises(UsageError, match=r"no model folder \S+; if it moved, .* with --teacher"):
        extend_cache(str(tree / "zarr"), ExtendSettings(views=2))
    zero_shot = EvalSettings(student="zero-shot", cache=tree / "zarr", images=tree / "zarr")
    with pytest.raises(UsageError, match=r"no model folder \S+; if it moved, .* with --model"):
        evaluate(zero_shot)
    assert extend_cache(str(tree / "zarr"), ExtendSettings(views=2, teacher=tree / "elsewhere")).views == 2


def test_another_cache_at_the_place_is_never_taken(tree: Path, tmp_path: Path) -> None:
    """The recorded place may have another cache now; the one beside the run is the right one."""
    (tmp_path / "moved").mkdir()
    for name in ("runs", "zarr", "teacher"):
        shutil.move(tree / name, tmp_path / "moved" / name)
    write_shards(tree / "others", shards=1, samples=9)
    teacher = tmp_path / "moved" / "teacher"
    build_cache(settings(tree / "others", tree / "names.txt", tree / "zarr", teacher))
    moved = tmp_path / "moved" / "runs" / "a"
    assert len(open_recorded_cache(moved, read_settings(moved))) == 10
    shutil.move(tmp_path / "moved" / "zarr", tmp_path / "elsewhere")
    with pytest.raises(
        UsageError, match=r"is not the cache that the run was trained on \(sample_table_digest"
    ):
        open_recorded_cache(moved, read_settings(moved))
    assert len(open_recorded_cache(moved, read_settings(moved), str(tmp_path / "elsewhere"))) == 10
    shutil.rmtree(tree / "zarr")
    both = rf"no cache at {tree}/zarr nor at {tmp_path}/moved/zarr; give its place with --cache"
    with pytest.raises(UsageError, match=both):
        open_recorded_cache(moved, read_settings(moved))


@pytest.mark.parametrize("cwd", ["tree", "."])
def test_an_earlier_run_recorded_its_cache_as_it_was_typed(
    cwd: str, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path / cwd)
    record = read_settings(tree / "runs" / "a")
    del record["from_run"]
    for typed, out in (("zarr", "runs/a"), ("./zarr/", None), (str(tree / "zarr"), str(tree / "runs" / "a"))):
        record["settings"] |= {"cache": typed, "out": out}
        assert len(open_recorded_cache(tree / "runs" / "a", record)) == 10


def test_a_resumed_run_records_where_its_cache_is_now(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.move(tree / "zarr", tmp_path / "elsewhere")
    options: dict[str, Any] = {"batch_size": 10, "max_steps": 1, "workers": 0, "resume": True}
    train(TrainSettings(cache="elsewhere", out=tree / "runs" / "a", **options))
    record = read_settings(tree / "runs" / "a")
    assert record["settings"]["cache"] == str(tmp_path / "elsewhere")
    assert record["from_run"]["cache"] == "../../../elsewhere"


def test_a_checkpoint_on_the_hub_is_imported(hub: Hub, tmp_path: Path) -> None:
    write_model(tmp_path / "teacher", "gelu")
    width = int(load_model(str(tmp_path / "teacher")).model.ln_final.weight.shape[0])
    (hub.folder / "org" / "coop").mkdir(parents=True)
    torch.save({"state_dict": {"ctx": torch.ones(4, width)}}, hub.folder / "org" / "coop" / "model.pth.tar-5")
    made = ImportSettings(model=tmp_path / "teacher", out=tmp_path / "out")
    assert import_prompts(made, "hf://org/coop/model.pth.tar-5") == tmp_path / "out" / STUDENT
    with pytest.raises(UsageError, match="the hub has no such repository, or it is private"):
        import_prompts(made.model_copy(update={"out": tmp_path / "b"}), "hf://org/none/model.pth")
