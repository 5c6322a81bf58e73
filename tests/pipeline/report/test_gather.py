"""Reading the folders of runs and sweeps."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.report.gather import (
    Evaluation,
    axis_name,
    changed_settings,
    gather,
    label,
    paired_evals,
    reason,
    value_text,
)
from pipeline.report.plots import Bar, bar_chart
from pipeline.seeds import exact
from pipeline.sweep_record import SWEEP, read_sweep
from student_train.runs.record import RESULTS, SETTINGS, STUDENT, read_settings
from teacher_cache.errors import UsageError
from tests.pipeline.report.conftest import AXES


def test_a_sweep_is_grouped_into_configurations(sweep_path: Path) -> None:
    gathered = gather(sweep_path)
    assert gathered.is_sweep
    assert [one.label for one in gathered.configurations] == [
        f"temperature {t}, soft weight {w}" for t in ("1", "4") for w in ("0.5", "2")
    ]
    assert [len(one.done) for one in gathered.configurations] == [2, 1, 2, 0]
    assert gathered.axes == AXES
    (evaluation,) = gathered.evaluations
    assert evaluation.title == "test.tar, 40 classes"
    assert evaluation.headline == "harmonic"
    assert evaluation.zero_shot["student"] == "zero-shot"


def test_figures_are_those_of_the_runs(sweep_path: Path) -> None:
    gathered = gather(sweep_path)
    found = []
    for seed in (0, 1):
        results = json.loads((sweep_path / "runs" / f"t1-w0.5-{seed}" / RESULTS).read_text())
        found.append(results["evals"][1]["ece"])
    figure = gathered.configurations[0].figure(0, "ece")
    assert figure is not None
    assert list(figure.values) == found
    assert gathered.configurations[3].figure(0, "ece") is None
    assert gathered.configurations[0].figure(1, "ece") is None, "no second evaluation"
    assert gathered.configurations[0].figure(0, "kl") is None, "not measured"


@pytest.mark.parametrize(
    ("figures", "headline"),
    [(["top1", "ece", "harmonic"], "harmonic"), (["ece", "top1"], "top1"), (["ece"], "ece"), ([], None)],
)
def test_the_headline_is_the_first_known_figure(figures: list[str], headline: str | None) -> None:
    assert Evaluation(0, "", "", {}, figures, {}).headline == headline


def test_the_chosen_run_has_the_best_configuration(sweep_copy: Path) -> None:
    record = read_sweep(sweep_copy)
    for row in record.rows:
        for one in row.evals:
            one["harmonic"] = 0.9 if row.settings == record.rows[4].settings else 0.5
    record.write(sweep_copy)
    gathered = gather(sweep_copy)
    assert gathered.chosen is not None
    configuration, row = gathered.chosen
    assert configuration.label == "temperature 4, soft weight 0.5"
    assert row.seed == 0
    assert gathered.record == read_settings(sweep_copy / row.run)


def test_a_run_is_a_sweep_of_one(run_path: Path) -> None:
    gathered = gather(run_path)
    assert not gathered.is_sweep
    assert not gathered.axes
    (one,) = gathered.configurations
    assert (one.label, one.rows[0].state) == ("this run", "done")
    results = json.loads((run_path / RESULTS).read_text())
    assert one.rows[0].train == results["train"]
    assert one.rows[0].evals == [results["evals"][1]]
    assert gathered.evaluations[0].zero_shot == results["evals"][0]


def test_an_unfinished_run_is_reported(run_copy: Path) -> None:
    (run_copy / STUDENT).unlink()
    (row,) = gather(run_copy).sweep.rows
    assert row.state == "waiting"
    assert row.why is not None
    assert "not finished: it stopped after its first steps" in row.why


def test_other_folders_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nothing", Path(__file__)):
        with pytest.raises(UsageError, match=r"is neither a run nor a sweep: it has no settings\.json"):
            gather(path)


@pytest.mark.parametrize("content", ["{", "[]", '{"settings": {}}', "\x00\xff"])
def test_damaged_records_are_one_sentence(tmp_path: Path, content: str) -> None:
    (tmp_path / SETTINGS).write_text(content, encoding="latin-1")
    with pytest.raises(UsageError, match=r"settings\.json is damaged"):
        gather(tmp_path)
    (tmp_path / SWEEP).write_text(content, encoding="latin-1")
    with pytest.raises(UsageError, match=r"sweep\.json is damaged"):
        gather(tmp_path)


@pytest.mark.parametrize("content", ["{", "[1]", "\x00"])
def test_damaged_results_are_noted(run_copy: Path, content: str) -> None:
    (run_copy / RESULTS).write_text(content)
    gathered = gather(run_copy)
    assert gathered.evaluations == []
    assert len(gathered.notes) == 1
    assert RESULTS in gathered.notes[0]


@pytest.mark.parametrize(
    "evals", [None, 7, {}, [7, None, "x"], [{"student": None}], [{"student": "runs/other", "top1": 1.0}]]
)
def test_evaluations_of_other_students_are_left_out(evals: Any) -> None:
    assert paired_evals({"train": {"out": "runs/a"}, "evals": evals}) == []


def test_a_zero_shot_row_belongs_to_the_same_evaluation() -> None:
    def one(student: str, images: str) -> dict[str, Any]:
        return {"student": student, "images": images, "classes": 3}

    evals = [one("zero-shot", "a"), one("runs/a", "a"), one("zero-shot", "b"), one("runs/a", "c")]
    assert paired_evals({"train": {"out": "runs/a"}, "evals": evals}) == [
        (evals[0], evals[1]),
        ({}, evals[3]),
    ]


def test_names_of_axes() -> None:
    assert axis_name("soft_weight") == "soft weight"
    settings = {"prompt_structure": "qkv", "prompt_depth": None, "lr": 0.002}
    assert label(settings) == "qkv, depth default, lr 0.002"
    # a row of the structure ablation holds all four axes
    longest = label(
        {"prompt_structure": "shared", "carry": "residual", "prompt_depth": 12, "prompt_length": 16}
    )
    assert "…" not in bar_chart([Bar(longest, exact(0.2), "22.41 ± 0.64")], "title", "harmonic %", None)
    assert [value_text(value) for value in (True, 4.0, 12, "all", None)] == [
        "yes",
        "4",
        "12",
        "all",
        "default",
    ]


def test_reasons_are_one_line_of_bounded_length() -> None:
    assert reason("a\n  b") == "a b"
    assert reason(None) == "no reason is recorded"
    assert len(reason("word " * 1000)) <= 301


def test_settings_that_differ_from_the_defaults(run_path: Path, sweep_path: Path) -> None:
    changed = changed_settings(read_settings(run_path), [])
    assert changed == {"prompt_length": 2, "prompt_depth": 3, "epochs": 3, "log_every": 1, "workers": 0}
    of_sweep = changed_settings(read_settings(sweep_path / "runs" / "t4-w0.5-0"), list(AXES))
    assert of_sweep["lr"] == 0.05
    assert not {"temperature", "soft_weight", "seed", "out", "cache"} & set(of_sweep)
    older = {"settings": {"lr": 0.002, "forgotten": 3}}
    assert changed_settings(older, []) == {"forgotten": 3}
