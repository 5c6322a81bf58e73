"""Suites: many data sets in one table; the ready suites on data roots in CoOp's layout."""

import json
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from pipeline.cli import main
from pipeline.suite import READY, load_suite
from pipeline.suite_run import run_suites
from pipeline.tables import evaluation_cells, suite_cells
from student_train.evaluation.evaluate import evaluate
from student_train.evaluation.evaluators import harmonic_mean
from student_train.evaluation.settings import EvalOptions, EvalSettings
from teacher_cache.classes.vocabulary import load_vocabulary
from teacher_cache.errors import UsageError
from teacher_cache.teacher.teacher import Teacher
from tests.student_train.conftest import PICTURES
from tests.student_train.conftest import demo_cache_path as demo_cache_path
from tests.student_train.conftest import pictures as pictures
from tests.student_train.conftest import run_of as run_of
from tests.teacher_cache.inputs import jpeg

CLASSES, NOTO = str(PICTURES / "classes.txt"), str(PICTURES / "noto.tar")
LONG = "a text that is too long for a path " * 9
STYLES = """
    [[data]]
    name = "Fluent"
    images = "fluent-flat.tar"
    classes = "classes.txt"
    templates = "a photo of a {}."

    [[data]]
    name = "Noto v1, new half"
    images = "noto-v1.tar"
    classes = "classes.txt"
    class_subset = "new"
"""


@pytest.fixture
def runs(run_of: Callable[[str], Path]) -> list[str]:
    """A student with prompts in both towers and one with only text prompts."""
    return [str(run_of(towers)) for towers in ("both", "text")]


@pytest.fixture
def styles(tmp_path: Path) -> str:
    path = tmp_path / "styles.toml"
    path.write_text(STYLES)
    return str(path)


def rpp(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["rpp", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_a_suite_equals_single_evaluations(
    demo_cache_path: Path, runs: list[str], styles: str, pictures: Path
) -> None:
    cache = str(demo_cache_path)
    options = EvalOptions(cache=cache, metrics=("accuracy", "calibration", "agreement"), temperature=2.0)
    students = [*runs, "zero-shot"]
    results = run_suites([load_suite(styles, pictures)], students, options)
    found = {(row["data"], row["student"]): row for row in results["rows"]}
    assert list(found) == [
        (data, student) for data in ("Fluent", "Noto v1, new half") for student in students
    ]
    images = {"Fluent": "fluent-flat.tar", "Noto v1, new half": "noto-v1.tar"}
    for (data, student), row in found.items():
        asked = EvalSettings(
            **options.model_dump(exclude={"class_subset", "classes"}),
            student=student,
            images=str(pictures / images[data]),
            classes=CLASSES,
            class_subset="new" if "new" in data else "all",
        )
        alone = evaluate(asked)
        assert row.pop("notes") == alone.pop("notes")
        assert {name: row[name] for name in alone} == pytest.approx(alone, abs=1e-6)
    for mean in results["means"]:
        own = [row for (_, student), row in found.items() if student == mean["student"]]
        assert (mean["datasets"], mean["of"]) == (2, 2)
        for figure in ("top1", "top5", "per_class", "ece", "agreement", "kl"):
            assert mean[figure] == pytest.approx((own[0][figure] + own[1][figure]) / 2)
    assert len({round(mean["top1"], 6) for mean in results["means"]}) == 3


def test_images_are_decoded_once_for_all_students(
    demo_cache_path: Path, runs: list[str], styles: str, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from student_train.evaluation import image_features

    decode, calls = image_features.decode_image, []
    monkeypatch.setattr(
        image_features, "decode_image", lambda *g, **more: calls.append(1) or decode(*g, **more)
    )
    options = EvalOptions(cache=str(demo_cache_path), metrics=("accuracy", "agreement"))
    run_suites([load_suite(styles, pictures)], [*runs, "zero-shot"], options)
    assert len(calls) == 200


def test_a_shared_image_tower_runs_once_per_image(
    demo_cache_path: Path, runs: list[str], styles: str, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The text student, zero-shot and the teacher of all three share the frozen tower."""
    encode, seen = Teacher.image_features, Counter[bool]()

    def count(self: Teacher, pixels: Tensor) -> Tensor:
        seen[getattr(self, "has_image_prompts", False)] += len(pixels)
        return encode(self, pixels)

    monkeypatch.setattr(Teacher, "image_features", count)
    options = EvalOptions(cache=str(demo_cache_path), metrics=("accuracy", "agreement"))
    run_suites([load_suite(styles, pictures)], [*runs, "zero-shot"], options)
    assert seen == {False: 200, True: 200}, "the frozen tower, and that of the student with vision prompts"


def test_names_are_read_once_for_the_teacher_of_several_students(
    demo_cache_path: Path, runs: list[str], styles: str, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, calls = Teacher.class_features, []
    monkeypatch.setattr(Teacher, "class_features", lambda self, names: calls.append(1) or read(self, names))
    options = EvalOptions(cache=str(demo_cache_path), metrics=("agreement",))
    run_suites([load_suite(styles, pictures)], [*runs, "zero-shot"], options)
    assert len(calls) == 2, "one a data set"


def test_root_is_not_prepended_to_a_url(tmp_path: Path) -> None:
    (tmp_path / "far.toml").write_text("[[data]]\nname = 'a'\nimages = 's3://bucket/{0..3}.tar'\n")
    assert load_suite(str(tmp_path / "far.toml"), tmp_path).data[0].images == "s3://bucket/{0..3}.tar"


def test_a_template_may_be_longer_than_a_path(tmp_path: Path) -> None:
    template = f"{LONG}of a {{}}."
    (tmp_path / "one.toml").write_text(f"[[data]]\nname = 'a'\nimages = 'x'\ntemplates = '{template}'\n")
    assert load_suite(str(tmp_path / "one.toml"), tmp_path).data[0].templates == template


def test_the_harmonic_mean_of_a_suite_is_that_of_its_means(
    demo_cache_path: Path, pictures: Path, tmp_path: Path
) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.toml").write_text(STYLES.replace('class_subset = "new"', ""))
    suites = [load_suite(str(tmp_path / f"{name}.toml"), pictures) for name in ("a", "b")]
    options = EvalOptions(cache=str(demo_cache_path), metrics=("base-to-new",))
    results = run_suites(suites, ["zero-shot"], options)
    assert [(mean["suite"], mean["datasets"]) for mean in results["means"]] == [
        ("a", 2),
        ("b", 2),
        ("all", 4),
    ]
    for mean in results["means"]:
        assert mean["harmonic"] == pytest.approx(harmonic_mean(mean["base"], mean["new"]))
    plain = sum(row["harmonic"] for row in results["rows"]) / 4
    assert results["means"][0]["harmonic"] != pytest.approx(plain, abs=1e-9)


def test_the_command_prints_the_figures_as_table_json_and_markdown(
    demo_cache_path: Path,
    runs: list[str],
    styles: str,
    pictures: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = ["eval", "--suite", styles, "--root", str(pictures), "--student", runs[1]]
    command += ["--student", "zero-shot", "--cache", str(demo_cache_path), "--metrics", "accuracy"]
    assert rpp(monkeypatch, *command, "--json") == 0
    results = json.loads(capsys.readouterr().out)
    assert [row["student"] for row in results["rows"]] == [runs[1], "zero-shot"] * 2
    assert "ece" not in results["rows"][0]
    assert rpp(monkeypatch, *command, "--markdown") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| data | student | classes | samples | top-1 % | top-5 % | per class % |"
    assert lines[1] == "| --- | --- | ---: | ---: | ---: | ---: | ---: |"
    first = results["rows"][0]
    figures = " | ".join(f"{100 * first[name]:.2f}" for name in ("top1", "top5", "per_class"))
    assert lines[2] == f"| Fluent | {runs[1]} | 300 | 100 | {figures} |"
    assert lines[6].startswith("| mean of 2, styles | ")
    assert rpp(monkeypatch, *command) == 0
    printed = capsys.readouterr().out
    assert all(f"{100 * row['top1']:.2f}" in printed for row in results["rows"])


def test_several_students_on_one_data_set(
    demo_cache_path: Path,
    runs: list[str],
    pictures: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    students = [word for run in (*runs, "zero-shot") for word in ("--student", run)]
    data = ["--images", str(pictures / "fluent-flat.tar"), "--classes", CLASSES]
    assert rpp(monkeypatch, "eval", *students, *data, "--cache", str(demo_cache_path), "--json") == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["student"] for row in rows] == [*runs, "zero-shot"]
    assert len({row["top1"] for row in rows}) > 1


def coop_root(root: Path) -> Path:
    """Write a data root in the layout of CoOp's DATASETS.md: two classes with a picture each per data set."""
    picture = jpeg(0, 32, 32)
    for entry in load_suite("cross-dataset").data:
        path = root / entry.images
        folder = path.parent / "pictures"
        folder.mkdir(parents=True)
        names = ["crane", "great_horned owl"]
        for number in range(2):
            (folder / f"{number}.jpg").write_bytes(picture)
        if path.suffix == ".json":
            items = [[f"{c}.jpg", c, name] for c, name in enumerate(names)]
            path.write_text(json.dumps({"train": [], "val": [], "test": items}))
        else:
            path.write_text("".join(f"{c} {name}\n" for c, name in enumerate(names)))
            (path.parent / "variants.txt").write_text("\n".join(names))
    synsets = load_vocabulary("imagenet-1k").ids
    for entry in load_suite("domain").data:
        folders = map(str, range(1000)) if entry.name == "ImageNetV2" else synsets
        present = list(folders)[: 200 if entry.class_subset == "present" else 1000]
        for folder in present[::50]:
            (root / entry.images / folder).mkdir(parents=True)
            (root / entry.images / folder / "0.jpeg").write_bytes(picture)
    return root


def test_the_ready_suites_need_only_a_data_root(
    demo_cache_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = coop_root(tmp_path)
    command = ["eval", "--suite", "cross-dataset", "--suite", "domain", "--root", str(root), "--json"]
    command += ["--student", "zero-shot", "--cache", str(demo_cache_path)]
    assert rpp(monkeypatch, *command) == 0
    results: dict[str, Any] = json.loads(capsys.readouterr().out)
    classes = {row["data"]: (row["classes"], row["samples"]) for row in results["rows"]}
    assert len(classes) == 14
    assert classes["FGVCAircraft"] == classes["DTD"] == (2, 2)
    assert classes["ImageNetV2"] == classes["ImageNet-Sketch"] == (1000, 20)
    assert classes["ImageNet-A"] == classes["ImageNet-R"] == (4, 4)
    assert [(mean["suite"], mean["datasets"]) for mean in results["means"]] == [
        ("cross-dataset", 10),
        ("domain", 4),
        ("all", 14),
    ]
    (root / "dtd" / "split_zhou_DescribableTextures.json").unlink()
    assert rpp(monkeypatch, *command) == 2
    assert "1 of 14 data sets cannot be read (DTD: no split file at" in capsys.readouterr().err
    assert rpp(monkeypatch, *command, "--skip-missing") == 0
    printed = capsys.readouterr()
    assert "left out: DTD" in printed.err
    assert [(mean["datasets"], mean["of"]) for mean in json.loads(printed.out)["means"]] == [
        (9, 10),
        (4, 4),
        (13, 14),
    ]


def test_a_data_set_without_its_images_is_missing_before_any_is_evaluated(
    demo_cache_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = coop_root(tmp_path)
    shutil.rmtree(root / "oxford_pets" / "pictures")
    command = ["eval", "--suite", "cross-dataset", "--root", str(root), "--json"]
    command += ["--student", "zero-shot", "--cache", str(demo_cache_path)]
    assert rpp(monkeypatch, *command) == 2
    printed = capsys.readouterr()
    assert "1 of 10 data sets cannot be read (OxfordPets: " in printed.err
    assert "\nimages " not in printed.err, "an image was read before"
    assert rpp(monkeypatch, *command, "--skip-missing") == 0
    printed = capsys.readouterr()
    assert "left out: OxfordPets: " in printed.err
    assert json.loads(printed.out)["means"][0]["datasets"] == 9


def test_a_data_set_that_fails_late_keeps_the_other_figures(
    demo_cache_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken" / "crane").mkdir(parents=True)
    (tmp_path / "broken" / "crane" / "0.jpg").write_bytes(b"no picture")
    (tmp_path / "names.txt").write_text("crane\nowl\n")
    (tmp_path / "two.toml").write_text(
        f"""
        [[data]]
        name = "broken"
        images = "{tmp_path}/broken"
        classes = "{tmp_path}/names.txt"

        [[data]]
        name = "whole"
        images = "{PICTURES}/fluent-flat.tar"
        classes = "{CLASSES}"
        """
    )
    command = ["eval", "--suite", str(tmp_path / "two.toml"), "--json"]
    assert rpp(monkeypatch, *command, "--student", "zero-shot", "--cache", str(demo_cache_path)) == 1
    printed = capsys.readouterr()
    results = json.loads(printed.out)
    assert [row["data"] for row in results["rows"]] == ["whole"]
    assert [failed["data"] for failed in results["failed"]] == ["broken"]
    assert [(mean["datasets"], mean["of"]) for mean in results["means"]] == [(1, 2)]
    assert "1 data sets could not be evaluated; the first is broken: no labelled image" in printed.err


def test_a_data_set_that_does_not_fit_is_refused_before_any_evaluation(
    demo_cache_path: Path,
    runs: list[str],
    styles: str,
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from student_train.evaluation import image_features

    monkeypatch.setattr(image_features, "decode_image", lambda *_, **more: pytest.fail("an image was read"))
    options = EvalOptions(cache=str(demo_cache_path), metrics=("base-to-new",))
    with pytest.raises(UsageError, match="Noto v1, new half: base-to-new splits the classes into halves"):
        run_suites([load_suite(styles, pictures)], ["zero-shot"], options)
    cached = f"[[data]]\nname = 'cached'\nimages = '{demo_cache_path}'\n"
    (tmp_path / "s.toml").write_text(STYLES + cached)
    suite = load_suite(str(tmp_path / "s.toml"), PICTURES)
    with pytest.raises(UsageError, match="cached: the image features"):
        run_suites([suite], runs, EvalOptions(cache=str(demo_cache_path)))
    with pytest.raises(UsageError, match="two suites with the same name: s, s"):
        run_suites([suite, suite], ["zero-shot"], EvalOptions(cache=str(demo_cache_path)))


def test_a_student_named_twice_is_one(
    demo_cache_path: Path, runs: list[str], styles: str, pictures: Path
) -> None:
    options = EvalOptions(cache=str(demo_cache_path), metrics=("accuracy",))
    students = [runs[1], "zero-shot", f"{runs[1]}/", "zero-shot"]
    results = run_suites([load_suite(styles, pictures)], students, options)
    assert [row["student"] for row in results["rows"]] == [runs[1], "zero-shot"] * 2
    assert [(mean["datasets"], mean["of"]) for mean in results["means"]] == [(2, 2)] * 2


def test_ready_suites_are_the_fields_lists() -> None:
    assert sorted(path.stem for path in READY.glob("*.toml")) == ["cross-dataset", "domain"]
    names = [data.name for suite in ("cross-dataset", "domain") for data in load_suite(suite).data]
    assert len(names) == len(set(names)) == 14
    assert all(data.templates for suite in ("cross-dataset", "domain") for data in load_suite(suite).data)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "must have one .*data.* for each data set"),
        ("[data]\nname = 'a'", "must have one .*data.* for each data set"),
        ("data = [3]", "must have one .*data.* for each data set"),
        ("[[data]]\nname = 'a'", r"data set a: --images: Field required"),
        ("[[data]]\nimages = 'a'", r"data set 0: --name: Field required"),
        ("[[data]]\nname = 'a'\nimages = 'x'\nimage = 3", r"data set a: no such setting: image"),
        (
            "[[data]]\nname = 'a'\nimages = 'x'\n[[data]]\nname = 'a'\nimages = 'y'",
            "two data sets with the same name",
        ),
        ("[[data]]\nname = 'a'\nimages = '$NOWHERE_SET/x'", "variable NOWHERE_SET is not set"),
        ("[[data", "is not TOML"),
        ("data = []", "must have one .*data.* for each data set"),
    ],
)
def test_a_wrong_suite_is_one_line(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "suite.toml").write_text(content)
    with pytest.raises(UsageError, match=message) as error:
        load_suite(str(tmp_path / "suite.toml"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give either --images, for one data set, or --suite"),
        (["--suite", "domain", "--images", "x"], "give either --images, for one data set, or --suite"),
        (["--suite", "domains"], "no suite 'domains': not a file, and not one of cross-dataset, domain"),
        (["--suite", "domain", "--classes", "imagenet-1k"], "--classes cannot be used with --suite"),
        (["--suite", "domain", "--root", "nowhere"], "4 of 4 data sets cannot be read"),
        (["--suite", "domain", "--root", "nowhere", "--skip-missing"], "4 of 4 data sets cannot be read"),
        (
            ["--images", "x", "--metrics", "speed"],
            "error: --metrics 'speed': unknown metric; choose from accuracy",
        ),
        (["--images", LONG, "--classes", CLASSES], f"{LONG} does not exist"),
        (["--images", f"{LONG}.json"], f"no split file at {LONG}.json"),
        (["--images", f"{LONG}.zarr"], f"{LONG}.zarr cannot be a folder: File name too long"),
        (["--images", NOTO, "--classes", LONG], f"vocabulary '{LONG}': no such file, and no known name"),
        (["--images", NOTO, "--classes", CLASSES, "--templates", LONG], "not a text with {}, not a file"),
        (["--images", NOTO, "--classes", CLASSES, "--student", LONG], f"no student at {LONG}"),
        (["--images", NOTO, "--classes", CLASSES, "--cache", LONG], "cannot be a folder: File name too long"),
        (["--suite", LONG], f"no suite '{LONG}': not a file, and not one of"),
        (["--images", "x", "--skip-missing"], "--root and --skip-missing need --suite"),
        (["--suite", "domain", "--json", "--markdown"], "not both"),
    ],
)
def test_wrong_use_is_one_line(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if "--student" not in arguments:
        arguments = [*arguments, "--student", "zero-shot" if "--cache" in arguments else "nobody"]
    assert rpp(monkeypatch, "eval", *arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len([line for line in error.splitlines() if line]) == 1


def test_names_do_not_break_a_table() -> None:
    result = {
        "student": "a|b",
        "images": "<script>\n",
        "classes": 2,
        "samples": 3,
        "skipped": 0,
        "without_label": 0,
    }
    lines = evaluation_cells([result | {"top1": 0.5}]).markdown().splitlines()
    assert lines[2] == "| a&#124;b | &#60;script&#62; | 2 | 3 | 0 | 0 | 50.00 |"
    row = {**result, "data": "d", "suite": "s", "base": 1.0}
    cells = suite_cells({"rows": [row, row | {"new": 0.25}], "means": []})
    assert [line[-2:] for line in cells.rows] == [["100.00", ""], ["100.00", "25.00"]]
    assert "unreadable" not in cells.headings
    mean = {"suite": "s", "student": "x", "datasets": 2, "of": 2, "base": 1.0}
    cells = suite_cells({"rows": [row, row | {"skipped": 7}], "means": [mean]})
    assert [line[cells.headings.index("unreadable")] for line in cells.rows] == ["0", "7"]
    assert len(cells.means[0]) == len(cells.headings)
