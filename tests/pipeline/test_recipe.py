"""Recipes from file to figures, and messages about wrong ones."""

import json
import re
import shlex
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from pipeline.axes import parse_axes
from pipeline.cli import main
from pipeline.recipe import load_recipe
from pipeline.run import run_recipe
from pipeline.settings import SweepSettings
from pipeline.sweep import make_cells
from teacher_cache.errors import UsageError
from teacher_cache.settings import from_flat
from tests.models import write_model
from tests.student_train.conftest import PICTURES

ROOT = Path(__file__).parents[2]


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A small experiment: 300 pictures, text prompts, two evaluations."""
    model = write_model(tmp_path / "model", "gelu")
    path = tmp_path / "small.toml"
    path.write_text(
        f"""
        [build]
        images = "$PICTURES/noto.tar"
        classes = "{PICTURES}/classes.txt"
        out = "{tmp_path}/small.zarr"
        teacher = "{model}"
        views = 2

        [train]
        out = "{tmp_path}/run"
        towers = "text"
        prompt_length = 2
        batch_size = 64
        epochs = 2

        [[eval]]
        images = "{PICTURES}/fluent-flat.tar"
        classes = "{PICTURES}/classes.txt"
        class_subset = "new"
        """
    )
    return path


@pytest.fixture(autouse=True)
def pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PICTURES", str(PICTURES))


def test_a_recipe_runs_and_a_second_call_repeats_nothing(recipe: Path, tmp_path: Path) -> None:
    notes: list[str] = []
    first = run_recipe(load_recipe(recipe), notes.append)
    assert first["build"]["parts_computed"] == 1
    assert first["train"]["steps"] == 8
    assert [found["student"] for found in first["evals"]] == ["zero-shot", str(tmp_path / "run")]
    assert all(found["samples"] == found["classes"] == 150 for found in first["evals"])
    assert json.loads((tmp_path / "run" / "results.json").read_text()) == first
    assert any("1 of 1 parts computed now" in note for note in notes)
    assert any(re.match(r"pace: [\d.,]+ images/s of 2 views per worker", note) for note in notes)
    assert first["build"]["pace"][0]["images"] == 300

    student = (tmp_path / "run" / "student.safetensors").read_bytes()
    second = run_recipe(load_recipe(recipe), notes.append)
    assert second["build"]["parts_computed"] == 0
    assert second["train"] == first["train"], "the figures are those of the call that trained"
    assert first["train"]["samples"] > 0
    assert second["evals"] == first["evals"]
    assert json.loads((tmp_path / "run" / "results.json").read_text()) == second
    assert (tmp_path / "run" / "student.safetensors").read_bytes() == student


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("fluent-flat.tar", "nothing.tar", r"\[\[eval\]\]: image source .*nothing.tar.* does not exist"),
        ('class_subset = "new"', 'cache = "none.zarr"', r"\[\[eval\]\]: no cache at none.zarr"),
        ('class_subset = "new"', 'student = "nobody"', r"\[\[eval\]\]: no student at nobody"),
        ('class_subset = "new"', 'student = "zero-shot:./none"', r"\[\[eval\]\]: no model folder .*none"),
        (
            'class_subset = "new"',
            'weights_like = "openai"',
            r"\[\[eval\]\]: --weights-like openai is for the",
        ),
        ('classes.txt"\n        class_s', 'none.txt"\n        class_s', r"\[\[eval\]\]: .*none.txt"),
    ],
)
def test_a_wrong_evaluation_is_named_before_the_build(
    recipe: Path, tmp_path: Path, old: str, new: str, message: str
) -> None:
    assert old in recipe.read_text()
    recipe.write_text(recipe.read_text().replace(old, new))
    with pytest.raises(UsageError, match=message):
        run_recipe(load_recipe(recipe), print)
    assert not (tmp_path / "small.zarr").exists()


def test_an_evaluation_that_fails_leaves_the_figures_of_the_training(recipe: Path, tmp_path: Path) -> None:
    """The labels do not fit the vocabulary, which is found only when the images are read."""
    few = tmp_path / "few.txt"
    few.write_text("cat\ndog\n")
    whole = recipe.read_text()
    recipe.write_text(
        whole.replace('classes.txt"\n        class_s', 'x"\n        class_s').replace(
            f"{PICTURES}/x", str(few)
        )
    )
    with pytest.raises(UsageError, match="2 classes"):
        run_recipe(load_recipe(recipe), print)
    recipe.write_text(whole)
    assert run_recipe(load_recipe(recipe), print)["train"]["samples"] > 0


def test_another_train_table_uses_the_same_cache(recipe: Path, tmp_path: Path) -> None:
    run_recipe(load_recipe(recipe), print)
    recipe.write_text(recipe.read_text().replace('/run"', '/warmer"').replace("prompt_length", "temperature"))
    second = run_recipe(load_recipe(recipe), print)
    assert second["build"]["parts_computed"] == 0
    assert second["train"]["steps"] == 8
    record = json.loads((tmp_path / "warmer" / "settings.json").read_text())
    assert record["settings"]["temperature"] == 2.0


def test_the_command_prints_json(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["rpp", "run", str(recipe), "--json"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert found.keys() == {"build", "train", "evals"}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "[train]",
            "[training]",
            r"must have the tables \[build\] and \[train\].*unknown table \[training\]",
        ),
        ("towers =", "tower =", r"\[train\]: no such setting: tower \(did you mean towers\?\)"),
        ('towers = "text"', 'towers = "txt"', r"\[train\]: --towers 'txt': Input should be"),
        ("views = 2", "views = 0", r"\[build\]: --views 0: "),
        ("$PICTURES", "$NOWHERE_SET", r"environment variable NOWHERE_SET is not set"),
        ("views = 2", "views = ", r"is not TOML"),
        ("[[eval]]", "[eval]", r"write \[\[eval\]\], in double brackets"),
        ("teacher =", "#", r"\[build\]: --teacher: Field required"),
    ],
)
def test_a_wrong_recipe_is_named(recipe: Path, old: str, new: str, message: str) -> None:
    recipe.write_text(recipe.read_text().replace(old, new))
    with pytest.raises(UsageError, match=message):
        load_recipe(recipe)


def test_a_recipe_without_a_run_folder_or_file_is_refused(recipe: Path, tmp_path: Path) -> None:
    recipe.write_text(recipe.read_text().replace(f'out = "{tmp_path}/run"', ""))
    with pytest.raises(UsageError, match="must have out"):
        load_recipe(recipe)
    with pytest.raises(UsageError, match="cannot read the recipe"):
        load_recipe(tmp_path / "none.toml")


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("imagenet21k-*.toml")), ids=lambda p: p.stem)
def test_the_packaged_recipes_are_valid(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAGENET21K", "/data/imagenet21k")
    monkeypatch.setenv("IMAGENET21K_VAL", "/data/imagenet21k-val")
    recipe = load_recipe(path)
    assert recipe.build.classes == "imagenet-21k"
    assert (recipe.train.shots, recipe.train.batch_size, recipe.train.epochs) == (16, 256, 5)
    assert recipe.evals[0].cache == recipe.build.out
    assert "Measured here: nothing yet" in path.read_text()


def test_the_sweeps_that_a_recipe_names_are_grids(monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands in the head of the recipe are parsed but not run, because they take hours."""
    monkeypatch.setenv("EMOJI", "emoji")
    path = ROOT / "recipes" / "emoji-ablation.toml"
    head = " ".join(line[1:] for line in path.read_text().split("[build]")[0].splitlines())
    commands = [shlex.split(text) for text in head.replace("\\", " ").split("rpp sweep ")[1:]]
    grids = []
    for words in commands:
        sets = tuple(value for name, value in pairwise(words) if name == "--set")
        asked = SweepSettings(set=sets, seeds=int(words[words.index("--seeds") + 1]))
        grids.append(len(make_cells(path, parse_axes(sets), asked, Path("sweeps"))))
    assert grids == [5 * 4 * 3, 2 * 2 * 2 * 2 * 3]


@pytest.mark.parametrize(
    "line", ['out = "a\\u0000b"', "lr = 1e39", "temperature = 1e300", "workers = 100_000"]
)
def test_a_setting_that_cannot_be_is_one_line(recipe: Path, line: str) -> None:
    text = recipe.read_text()
    recipe.write_text(
        text.replace("[train]", f"[train]\n{line}")
        if "out" not in line
        else re.sub(r'out = "[^"]*run"', lambda _: line, text)
    )
    with pytest.raises(UsageError, match=rf"\[train\]: --{line.split()[0]} .*:") as refused:
        load_recipe(recipe)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["out", "teacher"])
def test_zero_bytes_in_the_build_are_refused(recipe: Path, name: str) -> None:
    recipe.write_text(
        re.sub(rf'{name} = "', lambda found: found[0] + "a\\u0000", recipe.read_text(), count=1)
    )
    with pytest.raises(UsageError, match=rf"\[build\]: --{name} .*must not contain control characters"):
        load_recipe(recipe)


@pytest.mark.parametrize(("value", "port"), [("true", 8787), ("8790", 8790), ("false", None)])
def test_the_dashboard_is_true_or_a_port(recipe: Path, value: str, port: int | None) -> None:
    recipe.write_text(recipe.read_text().replace("[train]", f"dashboard = {value}\n[train]"))
    build = load_recipe(recipe).build
    assert build is not None
    assert build.dashboard_port == port


def test_a_single_text_stands_for_a_list_of_one(recipe: Path) -> None:
    recipe.write_text(
        recipe.read_text()
        .replace("[train]", '[train]\nlog = "none"')
        .replace("[[eval]]", '[[eval]]\nmetrics = "by-class"', 1)
    )
    loaded = load_recipe(recipe)
    assert loaded.train.log == ("none",)
    assert loaded.evals[0].metrics == ("by-class",)
    assert from_flat(SweepSettings, {"out": "a", "set": "train.lr=1"}).set == ("train.lr=1",)


@pytest.mark.parametrize("asked", [{"jobs": 10**6}, {"seeds": 10**9}])
def test_more_runs_than_a_machine_could_have_are_refused(asked: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="Input should be less than or equal to"):
        from_flat(SweepSettings, asked)
