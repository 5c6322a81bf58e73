"""The study on photographs: its parts, the choice of learning rates, and the tables from its record."""

import importlib
import statistics
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F

from pipeline.sweep_record import SweepRow

ROOT = Path(__file__).parents[2]


@pytest.fixture
def photos(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The benchmark, imported as running it as a script does."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("photos")


def test_the_parts_are_disjoint_and_have_every_label_alike(photos: Any, tmp_path: Path) -> None:
    labels = np.repeat(np.arange(4), 10)
    table = pa.table({"image": [str(i) for i in range(40)], "label": labels})
    pq.write_table(table, tmp_path / "all.parquet")
    counts = photos.split_pictures(tmp_path / "all.parquet", tmp_path / "a.parquet", tmp_path / "b.parquet")
    fit, held = (pq.read_table(tmp_path / f"{name}.parquet") for name in "ab")
    assert counts == (fit.num_rows, held.num_rows) == (32, 8)
    assert sorted(fit["image"].to_pylist() + held["image"].to_pylist()) == sorted(map(str, range(40)))
    assert Counter(held["label"].to_pylist()) == {0: 2, 1: 2, 2: 2, 3: 2}


def test_tuning_sees_no_test_picture_and_keeps_every_other_setting(photos: Any, tmp_path: Path) -> None:
    text = (ROOT / photos.RECIPE).read_text(encoding="utf-8")
    before, after = tomllib.loads(text), tomllib.loads(photos.tuning_recipe(text, tmp_path))
    assert "$PHOTOS/test" in text
    assert "$PHOTOS/test" not in photos.tuning_recipe(text, tmp_path)
    assert all(build["images"] == f"{tmp_path}/fit.parquet" for build in after["build"])
    assert [one["images"] for one in after["eval"]] == [f"{tmp_path}/validation.parquet"]
    for old, new in zip(before["row"], after["row"], strict=True):
        differs = {name for name in old if old[name] != new.get(name)}
        assert differs - {"cache", "student_features"} == {"lr"}
    assert {**before["train"], "out": ""} == {**after["train"], "out": ""}


def test_each_row_gets_the_rate_with_its_highest_harmonic_mean(photos: Any) -> None:
    scores = {"a": {0.005: 0.3, 0.02: 0.5, 0.08: 0.4}, "b": {0.005: 0.6, 0.02: 0.5, 0.08: 0.1}}
    rows = [
        SweepRow(
            settings={"row": name, "lr": rate}, seed=0, run="r", state="done", evals=[{"harmonic": score}]
        )
        for name, rates in scores.items()
        for rate, score in rates.items()
    ]
    assert photos.best_rates(rows) == {"a": 0.02, "b": 0.005}
    rows[3].state, rows[3].why = "failed", "no memory"
    with pytest.raises(SystemExit, match="no memory"):
        photos.best_rates(rows)


def test_rates_are_written_into_the_rows_that_they_belong_to(photos: Any) -> None:
    text = (ROOT / photos.RECIPE).read_text(encoding="utf-8")
    names = [row["name"] for row in tomllib.loads(text)["row"]]
    rates = {name: 0.001 * number for number, name in enumerate(names, start=1)}
    changed = tomllib.loads(photos.with_rates(text, rates))
    assert {row["name"]: row["lr"] for row in changed["row"]} == rates
    before = tomllib.loads(text)
    for row in (*before["row"], *changed["row"]):
        row.pop("lr")
    assert changed == before


def test_tables_are_those_of_the_record(photos: Any, tmp_path: Path) -> None:
    record = example_record()
    page = tmp_path / "page.md"
    marks = [f"<!-- {n}: written by benchmarks/photos.py tables -->\n<!-- end of {n} -->" for n in TABLES]
    page.write_text("before\n" + "\n".join(marks) + "\nafter\n", encoding="utf-8")
    found = photos.markdown_tables(record)
    assert list(found) == TABLES
    harmonics = [run["harmonic"] for run in record["rows"][0]["runs"]]
    spread = f"{100 * statistics.mean(harmonics):.2f} ± {100 * statistics.stdev(harmonics):.2f}"
    (line,) = [line for line in found["photographs"].splitlines() if line.startswith("| hard |")]
    assert spread in line
    assert "| 0.02 |" in line
    source = tmp_path / "record.json"
    source.write_text(photos.json.dumps(record), encoding="utf-8")
    for _ in range(2):  # the second call replaces the first one's tables
        photos.tables(source=source, page=page)
        text = page.read_text(encoding="utf-8")
        assert all(text.count(table) == 1 for table in found.values())
        assert text.startswith("before\n")
        assert text.endswith("\nafter\n")


def test_a_linear_classifier_is_fitted_until_its_gradient_is_zero(photos: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(300) % 3
    features = F.normalize(torch.eye(8)[labels] + torch.randn(300, 8, generator=generator), dim=-1)
    layer = photos.fit_linear(features, labels, 1e-2)
    loss = F.cross_entropy(layer(10 * features), labels) + 1e-2 * layer.weight.square().sum()
    slopes = torch.autograd.grad(loss, list(layer.parameters()))
    assert max(float(slope.abs().max()) for slope in slopes) < 1e-4
    assert photos.accuracy(layer, features, labels) > 0.6
    assert photos.accuracy(layer, features, (labels + 1) % 3) < 0.4


TABLES = ["photographs", "transfer"]


def example_record() -> dict[str, Any]:
    """A record with one row of two seeds."""
    figures = {"base": 0.5, "new": 0.4, "agreement": 0.7, "kl": 0.1, "ece": 0.05}
    runs = [{"seed": s, **figures, "harmonic": h, "seconds": 10.0} for s, h in ((0, 0.44), (1, 0.46))]
    return {
        "rows": [{"name": "hard", "settings": {"soft_weight": 0.0, "lr": 0.02}, "runs": runs}],
        "frozen": [{"name": "zero-shot", **figures, "harmonic": 0.4, "kl": None}],
        "transfer": {"rows": {"zero-shot": {"emoji": [0.1], "photographs": [0.5]}}},
    }
