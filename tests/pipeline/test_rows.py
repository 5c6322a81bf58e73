"""Studies: recipes with named rows, several caches, and the frozen models that rows are compared with."""

import json
import re
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli import main
from pipeline.compare import compare_runs
from pipeline.recipe import load_recipe
from pipeline.report import make_report
from pipeline.report.gather import Gathered, gather
from pipeline.report.overview import headline
from pipeline.report.pieces import Cell, Table
from pipeline.run import run_recipe
from pipeline.settings import SweepSettings
from pipeline.sweep import make_cells, run_sweep
from pipeline.sweep_record import SweepRecord, SweepRow, read_sweep
from pipeline.tables import sweep_cells
from student_train.evaluation.evaluate import evaluate
from student_train.evaluation.settings import EvalSettings
from student_train.training.loop import train
from teacher_cache.build import build_cache, is_built
from teacher_cache.command_settings import ExtendSettings
from teacher_cache.errors import UsageError
from teacher_cache.extend import extend_cache
from teacher_cache.settings import from_flat
from teacher_cache.store.cache_store import CacheStore
from tests.models import write_model
from tests.pipeline.test_sweep import figures, forking
from tests.processes import ForkServer
from tests.student_train.conftest import PICTURES

CLASSES = PICTURES / "classes.txt"
ODD = "larger teacher, α = 1/2"


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two caches, of teachers A and B; the student is A in each of two rows; two seeds."""
    folder = tmp_path_factory.mktemp("study")
    path = folder / "study.toml"
    small, large = write_model(folder / "small", "gelu"), write_model(folder / "large", "gelu", seed=1)
    path.write_text(
        f"""
        seeds = 2

        [[build]]
        images = "{PICTURES}/noto.tar"
        classes = "{CLASSES}"
        out = "{folder}/large.zarr"
        teacher = "{large}"

        [[build]]
        images = "{PICTURES}/noto.tar"
        classes = "{CLASSES}"
        out = "{folder}/small.zarr"
        teacher = "{small}"

        [train]
        out = "{folder}/study"
        student = "{small}"
        towers = "text"
        prompt_length = 2
        batch_size = 64
        epochs = 1
        lr = 0.1
        log_every = 1
        checkpoint_every = 3

        [[row]]
        name = "own teacher"
        cache = "{folder}/small.zarr"

        [[row]]
        name = "{ODD}"
        student_features = "{folder}/small.zarr"
        temperature = 2.0

        [[eval]]
        images = "{PICTURES}/noto-v1.tar"
        classes = "{CLASSES}"
        metrics = ["accuracy", "agreement"]
        """
    )
    return path


@pytest.fixture(scope="module")
def undisturbed(study: Path) -> tuple[Path, SweepRecord]:
    out = study.parent / "undisturbed"
    return out, run_sweep(study, SweepSettings(out=out))


def without_name(found: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value
        for name, value in found.items()
        if name not in ("student", "frozen") and not name.startswith("by_class")
    }


def test_rows_are_the_outermost_axis_and_have_their_caches(undisturbed: tuple[Path, SweepRecord]) -> None:
    out, record = undisturbed
    assert record.axes == {"row": ["own teacher", ODD]}
    assert [(row.settings["row"], row.seed) for row in record.rows] == [
        ("own teacher", 0),
        ("own teacher", 1),
        (ODD, 0),
        (ODD, 1),
    ]
    assert {row.state for row in record.rows} == {"done"}
    assert record.row_settings[ODD] == {
        "student_features": str(out.parent / "small.zarr"),
        "temperature": 2.0,
    }
    caches = [
        json.loads((out / row.run / "settings.json").read_text())["settings"]["cache"] for row in record.rows
    ]
    assert [Path(cache).name for cache in caches] == ["small.zarr"] * 2 + ["large.zarr"] * 2
    assert read_sweep(out) == record


def test_a_row_is_the_run_of_rpp_train_with_its_settings(
    study: Path, undisturbed: tuple[Path, SweepRecord], tmp_path: Path
) -> None:
    for place, row in ((0, undisturbed[1].rows[1]), (1, undisturbed[1].rows[3])):
        settings = load_recipe(study).rows[place].train
        alone = train(settings.model_copy(update={"out": tmp_path / str(place), "seed": 1}))
        assert row.train is not None
        assert row.train["loss"] == alone.loss
        cache = settings.cache  # of the row, for agreement
        data = {"images": PICTURES / "noto-v1.tar", "classes": CLASSES}
        asked = EvalSettings(student=alone.out, cache=cache, metrics=("accuracy", "agreement"), **data)
        assert without_name(evaluate(asked)) == without_name(row.evals[0])


def test_zero_shot_is_the_students_frozen_model_and_teacher_the_other_one(
    study: Path, undisturbed: tuple[Path, SweepRecord]
) -> None:
    record, folder = undisturbed[1], study.parent
    (zero_shot,), (teacher,) = record.zero_shot, record.teacher
    asked: dict[str, Any] = {
        "cache": folder / "large.zarr",
        "images": PICTURES / "noto-v1.tar",
        "classes": CLASSES,
        "metrics": ("accuracy", "agreement", "by-class"),
    }
    own = evaluate(EvalSettings(student=f"zero-shot:{folder / 'small'}", **asked))
    assert zero_shot | {"student": ""} == own | {
        "student": "",
        "frozen": f"zero-shot:local-dir:{folder}/small",
    }
    assert zero_shot["agreement"] < 1
    cached = evaluate(EvalSettings(student="zero-shot", **(asked | {"cache": folder / "small.zarr"})))
    assert cached["top1"] == zero_shot["top1"]
    assert teacher == evaluate(EvalSettings(student="zero-shot", **asked)) | {"student": "teacher"}
    assert teacher["by_class"] != zero_shot["by_class"]
    assert {row.zero_shot for row in record.rows} == {"zero-shot"}


def test_the_table_and_the_report_name_rows_and_models(
    undisturbed: tuple[Path, SweepRecord], tmp_path: Path
) -> None:
    out, record = undisturbed
    cells = sweep_cells(record)
    assert [row[1] for row in cells.rows] == ["zero-shot", "teacher", "own teacher", ODD]
    assert [one.label for one in gather(out).configurations] == ["own teacher", ODD]
    page = make_report(out, tmp_path / "report.html").read_text()
    assert "Settings of the rows" in page
    assert "Rows have several caches: " in page
    assert page.count(ODD) > 3
    assert ">teacher<" in page
    assert re.search(r"Teacher, cache and student are those of .*, seed 0; other rows differ", page)
    assert "Gained most: noto-v1.tar, 300 classes" in page
    compared = compare_runs([out / record.rows[0].run, out / record.rows[2].run])
    assert compared["settings"]["temperature"] == [1.0, 2.0]


@pytest.mark.parametrize(("cache", "marked"), [({}, ["b", "b"]), ({"cache": "other"}, ["b"])])
def test_a_teacher_is_never_the_best_row(tmp_path: Path, cache: dict[str, str], marked: list[str]) -> None:
    def one(student: str, value: float) -> dict[str, Any]:
        return {"student": student, "images": "a.tar", "classes": 2, "top1": value, "agreement": value}

    runs = [
        SweepRow(
            settings={"row": row}, seed=seed, run=row, state="done", evals=[one(row, value + seed / 100)]
        )
        for row, value in (("a", 0.3), ("b", 0.5))
        for seed in (0, 1)
    ]
    record = SweepRecord(
        recipe="r",
        cache="c",
        axes={"row": ["a", "b"]},
        seeds=[0, 1],
        rows=runs,
        zero_shot=[one("zero-shot", 0.1)],
        teacher=[one("teacher", 0.9)],
        row_settings={"a": {}, "b": cache},
    )
    (table,) = (piece for piece in headline(Gathered(tmp_path, True, record)) if isinstance(piece, Table))
    best = [row[0] for row in table.rows for cell in row if isinstance(cell, Cell) and cell.best]
    assert best == marked


@pytest.mark.usefixtures("forked_runs")
def test_killed_in_the_middle_it_gives_the_same_record(
    processes: ForkServer, study: Path, undisturbed: tuple[Path, SweepRecord]
) -> None:
    out = study.parent / "killed"
    sweep = processes.start("rpp", "sweep", study, "--out", out, **forking(processes))
    deadline = time.monotonic() + 200
    while len(list(out.glob("runs/*/results.json"))) < 2:
        assert sweep.poll() is None, sweep.ended().err
        assert time.monotonic() < deadline
        time.sleep(0.02)
    sweep.kill()
    sweep.wait()
    assert sum(row.state == "done" for row in read_sweep(out).rows) < 4
    after = run_sweep(study, SweepSettings(out=out))
    assert figures(after) == figures(undisturbed[1])
    assert after.teacher == undisturbed[1].teacher


@pytest.mark.usefixtures("forked_runs")
def test_run_trains_the_rows_into_the_folder_of_train(
    study: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    one = tmp_path / "one.toml"
    text = study.read_text().replace("seeds = 2", "seeds = 1\njobs = 2")
    one.write_text(text.replace(f"{study.parent}/study", str(tmp_path / "study")))
    assert load_recipe(one).jobs == 2
    monkeypatch.setattr(sys, "argv", ["rpp", "run", str(one), "--json"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((tmp_path / "study" / "sweep.json").read_text())
    assert len(printed["rows"]) == 2
    assert (tmp_path / "study" / "runs" / "row=own teacher,seed=0" / "results.json").exists()
    with pytest.raises(UsageError, match="the recipe has rows"):
        run_recipe(load_recipe(one), print)
    single = text.partition("[[row]]")[0].replace(f"{study.parent}/study", str(tmp_path / "study"))
    (tmp_path / "single.toml").write_text(single.replace("seeds = 1", ""))
    with pytest.raises(UsageError, match="study is the folder of a sweep; choose another out"):
        run_recipe(load_recipe(tmp_path / "single.toml"), print)
    (tmp_path / "study" / "settings.json").write_text("{}")
    with pytest.raises(SystemExit):
        main()
    assert "is the folder of one run" in capsys.readouterr().err


@pytest.mark.usefixtures("forked_runs")
def test_rows_with_several_students_have_a_zero_shot_line_each(study: Path, tmp_path: Path) -> None:
    """The student of each row is the teacher of its cache; the first one names that of another one."""
    folder, several = study.parent, tmp_path / "several.toml"
    text = study.read_text().replace("seeds = 2", "").replace(f'student = "{folder}/small"', "")
    text = text.replace(f'student_features = "{folder}/small.zarr"', "")
    first = f'[[row]]\nname = "named"\nstudent = "{folder}/small"\nstudent_features = "{folder}/small.zarr"'
    several.write_text(text.replace("[[row]]", f"{first}\n[[row]]", 1))
    record = run_sweep(several, SweepSettings(out=tmp_path / "sweep"))
    assert {row.state for row in record.rows} == {"done"}
    assert list(record.baselines()) == ["zero-shot (small)", "zero-shot (large)"]
    assert [row.zero_shot for row in record.rows] == [
        "zero-shot (small)",
        "zero-shot (small)",
        "zero-shot (large)",
    ]
    assert record.teacher == []
    for found, model in zip(record.zero_shot, ("small", "large"), strict=True):
        asked = EvalSettings(
            student="zero-shot",
            cache=folder / f"{model}.zarr",
            images=PICTURES / "noto-v1.tar",
            classes=CLASSES,
        )
        assert found["top1"] == evaluate(asked)["top1"]
        assert found["agreement"] == 1
    gathered = gather(tmp_path / "sweep")
    assert gathered.evaluations[0].zero_shot == {}
    assert "zero-shot (large)" in make_report(tmp_path / "sweep").read_text()


@pytest.mark.usefixtures("forked_runs")
def test_an_evaluation_that_names_another_teachers_cache(study: Path, tmp_path: Path) -> None:
    """A student that is the teacher of its own cache has no agreement with itself in the table."""
    folder, other = study.parent, tmp_path / "other.toml"
    text = study.read_text().replace("seeds = 2", "").replace(f'student = "{folder}/small"', "")
    text = text[: text.index("[[row]]")] + text[text.index("[[eval]]") :]
    other.write_text(
        text.replace("[train]", f'[train]\ncache = "{folder}/small.zarr"').replace(
            "[[eval]]", f'[[eval]]\ncache = "{folder}/large.zarr"'
        )
    )
    record = run_sweep(other, SweepSettings(out=tmp_path / "sweep"))
    assert record.eval_caches == [f"{folder}/large.zarr"]
    assert "agreement" not in record.zero_shot[0]
    assert record.rows[0].evals[0]["agreement"] < 1
    assert record.teacher[0]["agreement"] == 1
    assert [row[1] for row in sweep_cells(record).rows] == ["zero-shot", "teacher", "1"]


@pytest.mark.parametrize(("caches", "several"), [([], True), (["t"], False), (["a", "b"], True)])
def test_rows_of_several_caches_may_be_compared_with_one_teacher(caches: list[str], several: bool) -> None:
    """Records of earlier versions do not have `eval_caches`."""
    record = SweepRecord(
        recipe="",
        cache="a",
        axes={"row": ["own", "other"]},
        seeds=[0],
        rows=[],
        row_settings={"own": {}, "other": {"cache": "b"}},
        eval_caches=caches,
    )
    assert record.several_teachers == several


def test_a_single_run_has_both_baselines_and_several_builds(study: Path, tmp_path: Path) -> None:
    folder, single = study.parent, tmp_path / "single.toml"
    text = study.read_text().replace("seeds = 2", "").replace(f"{folder}/study", str(tmp_path / "run"))
    single.write_text(text[: text.index("[[row]]")] + text[text.index("[[eval]]") :])
    results = run_recipe(load_recipe(single), print)
    assert [built["path"] for built in results["builds"]] == [f"{folder}/large.zarr", f"{folder}/small.zarr"]
    students = [found["student"] for found in results["evals"]]
    assert students == ["zero-shot", "teacher", str(tmp_path / "run")]
    assert results["evals"][0]["frozen"] == f"zero-shot:local-dir:{folder}/small"
    (evaluation,) = gather(tmp_path / "run").evaluations
    assert evaluation.zero_shot == results["evals"][0]
    assert evaluation.baselines["teacher"] == results["evals"][1]
    compared = compare_runs([tmp_path / "run", tmp_path / "run"])["results"]
    assert {name for name in compared if name.endswith(": top1")} == {
        f"{who}noto-v1.tar, 300 classes: top1" for who in ("", "zero-shot ", "teacher ")
    }
    # an earlier version evaluated the teacher as zero-shot
    earlier = [found | {"student": "zero-shot"} for found in results["evals"][1:2]] + results["evals"][2:]
    (tmp_path / "run" / "results.json").write_text(json.dumps(results | {"evals": earlier}))
    assert list(gather(tmp_path / "run").baselines) == ["teacher"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('name = "own teacher"', "two rows have the name 'own teacher'"),
        ('name = "Own Teacher"', "two rows have the name 'Own Teacher'"),
        ('name = "Zero-Shot"', "line of this name for a frozen model"),
        ('name = " "', r"\[\[row\]\] number 3 needs a name in one line, found ' '"),
        ('name = "a\\nb"', r"\[\[row\]\] number 3 needs a name in one line"),
        ("lr = 1", r"\[\[row\]\] number 3 needs a name in one line, found None"),
        ('name = "x"\ntemperatur = 1', r"\[\[row\]\] 'x': no such setting: temperatur \(did you mean"),
        ('name = "x"\nseed = 1', r"\[\[row\]\] 'x': seed cannot differ between rows"),
        ('name = "x"\ncache = "$FOLDER/small.zarr"', r"'x' has the same settings as the row 'own teacher'"),
        ('name = "x"\nlr = 0', r"\[\[row\]\] 'x': --lr 0: Input should be greater than 0"),
    ],
)
def test_a_wrong_row_is_named(
    study: Path, tmp_path: Path, line: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FOLDER", str(study.parent))
    wrong = tmp_path / "wrong.toml"
    wrong.write_text(study.read_text().replace("[[eval]]", f"[[row]]\n{line}\n[[eval]]"))
    with pytest.raises(UsageError, match=message):
        load_recipe(wrong)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[[row]]", "[row]", r"write \[\[row\]\], in double brackets|is not TOML"),
        (
            'small.zarr"\n        teacher',
            'large.zarr"\n        teacher',
            r"two \[\[build\]\] tables have out",
        ),
        ("seeds = 2", "seeds = 0", "--seeds 0: Input should be greater"),
        ("seeds = 2", "seed = 2", "no such setting at the top of a recipe: seed "),
        (
            "batch_size = 64",
            "batch_size = 64\nseeds = 2",
            r"\[train\]: seeds stands at the top of the recipe",
        ),
    ],
)
def test_a_wrong_study_is_named(study: Path, tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in study.read_text()
    wrong = tmp_path / "wrong.toml"
    wrong.write_text(study.read_text().replace(old, new))
    with pytest.raises(UsageError, match=message):
        load_recipe(wrong)


def test_what_a_row_needs_is_checked_before_anything_is_built(study: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.toml"
    wrong.write_text(study.read_text().replace("temperature = 2.0", 'cache = "none.zarr"'))
    with pytest.raises(UsageError, match=f"the row '{ODD}': no cache at none.zarr"):
        run_sweep(wrong, SweepSettings(out=tmp_path / "sweep"))
    assert not (tmp_path / "sweep").exists()
    with pytest.raises(UsageError, match=f"--set train.temperature: the row '{ODD}' sets temperature itself"):
        run_sweep(study, SweepSettings(set=("train.temperature=1,2",), out=tmp_path / "sweep"))
    # the first value makes two rows equal
    equal = tmp_path / "equal.toml"
    text = study.read_text()
    rows = '[[row]]\nname = "a"\n[[row]]\nname = "b"\nlr = 0.5\n'
    equal.write_text(text[: text.index("[[row]]")] + rows + text[text.index("[[eval]]") :])
    with pytest.raises(UsageError, match=r"--set train.lr: the row 'b' sets lr itself"):
        run_sweep(equal, SweepSettings(set=("train.lr=0.5,1",), out=tmp_path / "sweep"))


def test_rows_combine_with_axes_and_names_become_folders(study: Path, tmp_path: Path) -> None:
    names = ["QKV, soft", "a/b", "a=b", "ünï", "QKV, soft, " + "very long " * 30]
    rows = "\n".join(f'[[row]]\nname = "{name}"\nprompt_length = {n}' for n, name in enumerate(names, 3))
    odd = tmp_path / "odd.toml"
    text = study.read_text()
    odd.write_text(text[: text.index("[[row]]")] + rows + "\n" + text[text.index("[[eval]]") :])
    cells = make_cells(odd, {"lr": ["0.1", "1"]}, SweepSettings(seeds=1), tmp_path)
    found = [(cell.settings["row"], cell.settings["lr"]) for cell in cells]
    assert found == [(name.strip(), lr) for name in names for lr in (0.1, 1.0)]
    assert [cell.train.prompts.prompt_length for cell in cells] == [n for n in range(3, 8) for _ in range(2)]
    folders = [cell.name for cell in cells]
    assert folders[:3] == [
        "row=QKV%2C soft,lr=0.1,seed=0",
        "row=QKV%2C soft,lr=1.0,seed=0",
        "row=a%2Fb,lr=0.1,seed=0",
    ]
    assert len(set(folders)) == 10
    assert not any("/" in folder or len(folder) > 250 for folder in folders)


def test_the_page_shows_a_valid_recipe(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "sweeps.md").read_text()
    (tmp_path / "study.toml").write_text(page.partition("```toml\n")[2].partition("```")[0])
    recipe = load_recipe(tmp_path / "study.toml")
    assert [row.train.cache for row in recipe.rows] == ["zarr/own", "zarr/own", "zarr/large"]
    assert [row.evals[0].cache for row in recipe.rows] == ["zarr/own", "zarr/own", "zarr/large"]
    assert (recipe.seeds, recipe.jobs, recipe.is_sweep) == (5, 2, True)


def test_an_option_wins_over_the_recipe(study: Path, tmp_path: Path) -> None:
    assert len(make_cells(study, {}, SweepSettings(), tmp_path)) == 4
    assert len(make_cells(study, {}, SweepSettings(seeds=1), tmp_path)) == 2
    assert from_flat(SweepSettings, {}).seeds is None


@pytest.mark.usefixtures("undisturbed")
@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('teacher = "{folder}/large"', 'teacher = "{folder}/small"', "teacher.weights_digest: stored"),
        ('noto.tar"', 'noto-v1.tar"', "sample_table_digest: stored"),
        ('large.zarr"\n', 'large.zarr"\nview_seed = 7\n', "view_policy.view_seed: stored 0, requested 7"),
        ('large.zarr"\n', 'large.zarr"\ntemplates = "a {}"\n', "vocabulary_digest: stored"),
        ('large.zarr"\n', 'large.zarr"\npixels = "png"\n', "pixels: stored none, requested png"),
    ],
)
def test_a_finished_cache_of_another_build_is_refused(
    study: Path, tmp_path: Path, old: str, new: str, message: str
) -> None:
    changed = tmp_path / "changed.toml"
    old, new = (text.replace("{folder}", str(study.parent)) for text in (old, new))
    changed.write_text(study.read_text().replace(old, new, 1))
    with pytest.raises(UsageError, match=re.escape(message)):
        run_sweep(changed, SweepSettings(out=tmp_path / "sweep"))
    assert not list((tmp_path / "sweep" / "runs").iterdir())


@pytest.mark.usefixtures("undisturbed")
def test_a_finished_cache_needs_neither_its_images_nor_its_teacher(study: Path, tmp_path: Path) -> None:
    build = load_recipe(study).builds[0]
    assert is_built(build)
    gone = {"images": str(tmp_path / "gone.tar"), "teacher": str(tmp_path / "gone")}
    assert is_built(build.model_copy(update=gone))
    copied = tmp_path / "copy.tar"
    shutil.copy(PICTURES / "noto.tar", copied)
    moved = build.model_copy(update={"images": str(copied), "out": str(tmp_path / "zarr")})
    shutil.copytree(build.out, moved.out)
    assert not is_built(moved)  # the build compares the images
    build_cache(moved)
    assert is_built(moved)
    CacheStore.open(moved.out, writable=True).add_views(2)
    assert not is_built(moved)
    extend_cache(moved.out, ExtendSettings(views=2))
    assert is_built(moved)
