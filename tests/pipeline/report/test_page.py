"""The complete file: its sections, reasons for missing data, its size, and the command."""

import itertools
import json
import os
import re
import shutil
import sys
from html import escape
from pathlib import Path

import numpy as np
import pytest

from pipeline.cli import main
from pipeline.report import make_report
from pipeline.report.gather import Gathered, gather
from pipeline.report.page import render, sections
from pipeline.report.pieces import Cell, Section, Table, Tables, Text
from pipeline.seeds import figure_text, spread
from pipeline.sweep_record import SweepRecord, SweepRow
from student_train.figures import FIGURES
from student_train.runs.record import RESULTS
from teacher_cache.errors import UsageError
from tests.pipeline.report.conftest import SCRIPT, WHY


@pytest.fixture(scope="module")
def of_sweep(sweep_path: Path) -> dict[str, Section]:
    return {section.name: section for section in sections(gather(sweep_path))}


def tables(section: Section) -> list[Table]:
    found = [[piece] for piece in section.pieces if isinstance(piece, Table)]
    found += [list(piece.tables) for piece in section.pieces if isinstance(piece, Tables)]
    return [table for several in found for table in several]


def texts(section: Section) -> str:
    return " ".join(piece.text for piece in section.pieces if isinstance(piece, Text))


def words(cells: object) -> list[str]:
    assert isinstance(cells, list | tuple)
    return [cell.text if isinstance(cell, Cell) else cell for cell in cells]


def test_the_table_has_the_figures_of_the_results(sweep_path: Path, of_sweep: dict[str, Section]) -> None:
    (table,) = tables(of_sweep["results"])
    names = ["top1", "top5", "per_class", "base", "new", "harmonic", "ece"]
    assert list(table.headings) == [
        *("temperature", "soft weight", "seeds done"),
        *(FIGURES[name].heading for name in names),
    ]
    results = {
        seed: json.loads((sweep_path / "runs" / f"t4-w0.5-{seed}" / RESULTS).read_text()) for seed in (0, 1)
    }
    frozen, row = words(table.rows[0]), words(table.rows[4])
    assert frozen == [
        *("zero-shot", "–"),
        *(figure_text(name, spread([results[0]["evals"][0][name]])) for name in names),
    ]
    assert row == [
        *("4", "0.5", "2 of 2"),
        *(figure_text(name, spread(results[s]["evals"][1][name] for s in (0, 1))) for name in names),
    ]


def test_failed_and_waiting_runs_are_rows_that_say_why(of_sweep: dict[str, Section]) -> None:
    (table,) = tables(of_sweep["results"])
    rows = list(map(words, table.rows))
    assert rows[2][:3] == ["1", "2", "1 of 2"]
    assert rows[3] == [f"seed 1 failed: {WHY}"]
    assert rows[5] == ["4", "2", "0 of 2", *["–"] * 7]
    assert rows[6] == ["seeds 0, 1: waiting or running"]
    states = [words(row)[1] for row in tables(of_sweep["runs"])[0].rows]
    assert states == ["done", "done", "done", "failed", "done", "done", "waiting", "waiting"]


def test_what_was_run(of_sweep: dict[str, Section], inputs: Path) -> None:
    html = render_one(of_sweep["run"])
    for word in (
        "local-dir:student",
        f"{inputs}/demo.zarr",
        "factored",
        "cached features, no image",
        "12.5 s",
    ):
        assert word in html
    found = {table.caption: dict(map(words, table.rows)) for table in tables(of_sweep["run"])[1:]}
    assert found["Settings that differ from the defaults, without the axes"]["lr"] == "0.05"
    assert found["Axes of the sweep"] == {"temperature": "1, 4", "soft weight": "0.5, 2", "seed": "0, 1"}


def render_one(section: Section) -> str:
    sweep = SweepRecord(recipe="", cache="", axes={}, seeds=[], rows=[])
    return render(Gathered(Path("x"), True, sweep), [section])


def test_classes_are_those_whose_right_answers_changed_most(run_copy: Path) -> None:
    results = json.loads((run_copy / RESULTS).read_text())
    counts = [[f"class {n}", 100, 50] for n in range(30)]
    counts[7][0] = SCRIPT
    results["evals"][0]["by_class"] = counts
    results["evals"][1]["by_class"] = [
        [name, images, right + (n - 14 if n % 2 else 0)] for n, (name, images, right) in enumerate(counts)
    ]
    (run_copy / RESULTS).write_text(json.dumps(results))
    section = next(one for one in sections(gather(run_copy)) if one.name == "classes")
    gained, lost = tables(section)
    assert [row[0] for row in gained.rows] == [f"class {n}" for n in range(29, 14, -2)]
    assert list(gained.rows[0]) == ["class 29", "100", "50", "65", "+15"]
    assert [row[4] for row in lost.rows] == [f"−{n}" for n in range(13, 0, -2)]
    assert lost.rows[3][0] == SCRIPT
    results["evals"][1]["by_class"] = counts[:-1]
    (run_copy / RESULTS).write_text(json.dumps(results))
    section = next(one for one in sections(gather(run_copy)) if one.name == "classes")
    assert "no counts by class of the run or" in texts(section), "of other classes"


@pytest.mark.parametrize(
    ("gone", "section", "message"),
    [
        (RESULTS, "results", "This run has no evaluation"),
        (RESULTS, "classes", "No classes: results.json has no counts by class"),
        ("metrics.jsonl", "curves", "No curves: no run has a line in its metrics.jsonl"),
        ("student.safetensors", "norms", "No prompts: no run is finished."),
        (None, "results", "One seed: figures have no standard deviation"),
        (None, "axes", "Nothing to compare: this is a single run"),
    ],
)
def test_missing_data_has_a_reason(run_copy: Path, gone: str | None, section: str, message: str) -> None:
    if gone:
        (run_copy / gone).unlink()
    found = {one.name: one for one in sections(gather(run_copy))}
    assert message in texts(found[section])


def test_a_moved_cache_is_reported(run_copy: Path, caplog: pytest.LogCaptureFixture) -> None:
    record = json.loads((run_copy / "settings.json").read_text())
    record["settings"]["cache"] = "/nowhere.zarr"
    (run_copy / "settings.json").write_text(json.dumps(record))
    found = {one.name: one for one in sections(gather(run_copy))}
    assert "No soft labels: no cache at /nowhere.zarr" in texts(found["soft-labels"])
    assert "The cache cannot be read: no cache at /nowhere.zarr" in texts(found["run"])
    assert "the report has no soft labels: no cache at /nowhere.zarr" in caplog.text


def test_a_report_is_made_with_a_damaged_cache(run_copy: Path, inputs: Path, tmp_path: Path) -> None:
    record = json.loads((run_copy / "settings.json").read_text())
    record["settings"]["cache"] = str(shutil.copytree(inputs / "demo.zarr", tmp_path / "demo.zarr"))
    (run_copy / "settings.json").write_text(json.dumps(record))
    for array in ("image_features", "valid"):
        for shard in (tmp_path / "demo.zarr" / array / "c").rglob("*"):
            if shard.is_file():
                shard.write_bytes(b"damaged")
    found = {one.name: one for one in sections(gather(run_copy))}
    assert "The cache cannot be read: 'valid' in " in texts(found["run"])
    assert "No entropy: " in texts(found["soft-labels"])
    assert "No pictures: " in texts(found["soft-labels"])


def test_seconds_that_are_not_recorded_have_a_reason(run_copy: Path) -> None:
    assert "not recorded" not in make_report(run_copy).read_text(encoding="utf-8")
    (run_copy / RESULTS).unlink()
    assert "not recorded; rpp run" in make_report(run_copy).read_text(encoding="utf-8")


def test_a_report_is_made_with_a_damaged_run(sweep_copy: Path) -> None:
    chosen = gather(sweep_copy).chosen
    assert chosen is not None
    folder = sweep_copy / chosen[1].run
    (folder / "student.safetensors").write_bytes(b"no student")
    (folder / RESULTS).write_text("{")
    (folder / "metrics.jsonl").write_text("{\n7\n")
    found = {one.name: one for one in sections(gather(sweep_copy))}
    assert "is damaged or not a student" in texts(found["norms"])
    assert "is damaged or not a student" in texts(found["soft-labels"])
    assert f"{RESULTS} cannot be read" in texts(found["runs"])


def test_a_sweep_that_has_just_started(sweep_copy: Path) -> None:
    record = json.loads((sweep_copy / "sweep.json").read_text())
    for row in record["rows"]:
        row |= {"state": "waiting", "train": None, "evals": [], "why": None, "run": "runs/none"}
    record |= {"zero_shot": [], "zero_shot_why": "the teacher's model is gone"}
    (sweep_copy / "sweep.json").write_text(json.dumps(record))
    html = make_report(sweep_copy).read_text(encoding="utf-8")
    for message in (
        "8 waiting",
        "seeds 0, 1: waiting or running",
        "No run has written its settings yet",
    ):
        assert message in html


def test_nothing_of_the_data_is_markup_and_nothing_is_fetched(sweep_path: Path, tmp_path: Path) -> None:
    html = make_report(sweep_path, tmp_path / "r.html").read_text(encoding="utf-8")
    assert escape(SCRIPT) in html
    assert escape(WHY) in html
    assert "<script" not in html
    assert "<b>" not in html
    links = re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?([^"')\s>]+)""", html)
    assert links
    assert all(link.startswith(("#", "data:image/jpeg;base64,")) for link in links)
    assert "default-src 'none'" in html


def test_the_file_lies_in_the_folder_and_can_be_made_again(run_copy: Path) -> None:
    out = make_report(run_copy)
    assert out == run_copy / "report.html"
    first = out.read_text(encoding="utf-8")
    assert make_report(run_copy) == out
    cut = re.compile(r"Report of [-0-9: ]+")
    assert cut.sub("", out.read_text(encoding="utf-8")) == cut.sub("", first)


def test_a_file_that_cannot_be_written_is_named_and_nothing_is_left(run_copy: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out.html"
    folder.mkdir()
    for out, message in (
        (tmp_path / "none" / "r.html", "cannot be written"),
        (folder, "a folder"),
        (Path(), "a fold"),
    ):
        with pytest.raises(UsageError, match=f"--out .* {message}"):
            make_report(run_copy, out)
    assert sorted(os.listdir(tmp_path)) == ["out.html", "run"]


def test_the_command(
    run_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "r.html"
    monkeypatch.setattr(sys, "argv", ["rpp", "report", str(run_copy), "--out", str(out)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    assert capsys.readouterr().out.strip() == str(out)
    assert out.is_file()
    monkeypatch.setattr(sys, "argv", ["rpp", "report", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "is neither a run nor a sweep" in capsys.readouterr().err


def test_a_large_sweep_gives_a_file_of_a_few_megabytes(tmp_path: Path) -> None:
    """200 runs, the best two with 50,000 lines of metrics and 21,841 classes of long names."""
    axes = {"temperature": list(range(1, 11)), "soft_weight": [n / 10 for n in range(10)]}
    rows = []
    counts = [["n" * 60 + str(c), 50, c % 50] for c in range(21_841)]
    for temperature, weight, seed in itertools.product(*axes.values(), (0, 1)):
        folder = tmp_path / "runs" / str(len(rows))
        folder.mkdir(parents=True)
        steps = 50_000 if len(rows) >= 198 else 300
        losses = np.random.default_rng(len(rows)).normal(size=steps).tolist()
        with open(folder / "metrics.jsonl", "w") as file:
            file.writelines(
                f'{{"step": {s}, "loss": {loss}, "lr": {loss}}}\n' for s, loss in enumerate(losses)
            )
        own = {"student": "s", "images": "i.tar", "classes": 21_841, "top1": weight * temperature / 10}
        results = {"train": {"out": "s"}, "evals": [{**own, "student": "zero-shot"}, own]}
        if len(rows) >= 198:  # the best
            for one in results["evals"]:
                one["by_class"] = counts  # type: ignore[index]
        (folder / RESULTS).write_text(json.dumps(results))
        settings = {"temperature": temperature, "soft_weight": weight}
        rows.append(
            SweepRow(
                settings=settings,
                seed=seed,
                run=f"runs/{len(rows)}",
                state="done",
                evals=[own],
                why="w" * 10**5,
            )
        )
    SweepRecord(recipe="", cache="", axes=axes, seeds=[0, 1], rows=rows).write(tmp_path)
    size = make_report(tmp_path).stat().st_size
    assert 300_000 < size < 1_000_000
