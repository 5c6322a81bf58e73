"""The study on photographs: its parts, the choice of learning rates, and the tables from its record."""

import gzip
import importlib
import io
import pickle
import re
import statistics
import tarfile
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
from PIL import Image

from pipeline.settings import SweepSettings
from pipeline.sweep import run_sweep
from pipeline.sweep_record import SweepRecord, SweepRow
from teacher_cache.errors import UsageError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def photos(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The benchmark, imported as running it as a script does."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("photos")


@pytest.fixture
def cifar(tmp_path: Path) -> Path:
    """Three pictures of two names as in CIFAR-100's archive for Python 2; two files have the same name."""
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (3, 3 * 32 * 32)).astype(np.uint8)
    for name, rows in (("train", [0, 1]), ("test", [2])):
        content = {
            "filenames": [["a_s_1.png", "a_s_1.png", "b_s_2.png"][row] for row in rows],
            "fine_labels": [[0, 1, 1][row] for row in rows],
            "data": pixels[rows],
        }
        written = pickle.dumps(content, protocol=2)
        assert b"numpy._core." in written
        (folder / name).write_bytes(written.replace(b"numpy._core.", b"numpy.core."))
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": ["apple", "aquarium_fish"]}, protocol=2))
    return folder


def write_split(photos: Any, path: Path, pixels: np.ndarray) -> None:
    order = {"one": [("aquarium_fish/a_s_1.png", 1), ("apple/a_s_1.png", 0)]}
    order["two"] = [("aquarium_fish/b_s_2.png", 2)]
    parts = {
        part: {
            "sha256": photos.pixels_digest(
                pixels[row].reshape(3, 32, 32).transpose(1, 2, 0) for _, row in rows
            ),
            "pictures": [name for name, _ in rows],
        }
        for part, rows in order.items()
    }
    path.write_bytes(gzip.compress(photos.json.dumps(parts).encode()))


def test_the_parts_of_cifar_are_written_in_the_studys_order(
    photos: Any, cifar: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(photos, "SPLIT", tmp_path / "split.json.gz")
    pixels = np.random.default_rng(0).integers(0, 256, (3, 3 * 32 * 32)).astype(np.uint8)
    write_split(photos, photos.SPLIT, pixels)
    out = tmp_path / "photos"
    photos.split(cifar, out)
    assert (out / "classes.txt").read_text() == "apple\naquarium fish\n"
    rows = pq.read_table(out / "one.parquet").to_pylist()
    assert [(row["image"]["path"], row["label"]) for row in rows] == [
        ("aquarium_fish/a_s_1.png", 1),
        ("apple/a_s_1.png", 0),
    ]
    for row, number in zip(rows, (1, 0), strict=True):
        decoded = np.asarray(Image.open(io.BytesIO(row["image"]["bytes"])))
        assert (decoded.transpose(2, 0, 1).reshape(-1) == pixels[number]).all()

    other = pixels.copy()
    other[2, 5] ^= 1
    write_split(photos, photos.SPLIT, other)
    with pytest.raises(UsageError, match=r"two in .* have other pixels"):
        photos.split(cifar, out)
    (cifar / "test").write_bytes(pickle.dumps({**photos.read_cifar(cifar / "test"), "filenames": ["c"]}))
    with pytest.raises(UsageError, match=r"lacks 1 pictures of two; the first: aquarium_fish/b_s_2\.png"):
        photos.split(cifar, out)


def test_a_pickle_that_would_run_code_is_refused(photos: Any, tmp_path: Path) -> None:
    class Runs:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "ran",)

    (tmp_path / "meta").write_bytes(pickle.dumps(Runs(), protocol=2))
    with pytest.raises(UsageError, match="have arrays only"):
        photos.read_cifar(tmp_path / "meta")
    assert not (tmp_path / "ran").exists()
    (tmp_path / "meta").write_bytes(b"not a pickle")
    with pytest.raises(UsageError, match="not a file of CIFAR-100"):
        photos.read_cifar(tmp_path / "meta")


def test_the_studys_parts_are_disjoint(photos: Any) -> None:
    parts = photos.json.loads(gzip.decompress((ROOT / photos.SPLIT).read_bytes()))
    names = {part: wanted["pictures"] for part, wanted in parts.items()}
    assert {part: len(found) for part, found in names.items()} == {
        "clip-train": 15000,
        "prompt-train": 15000,
        "test": 10000,
    }
    for part, each in (("clip-train", 150), ("prompt-train", 150), ("test", 100)):
        counts = Counter(name.split("/")[0] for name in names[part])
        assert set(counts.values()) == {each}
        assert len(counts) == 100
    assert len(set().union(*names.values())) == 40000


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
    scores = {"a": {0.005: 0.3, 0.02: 0.5, 0.08: 0.5}, "b": {0.005: 0.6, 0.02: 0.5, 0.08: 0.1}}
    rows = [
        SweepRow(
            settings={"row": name, "lr": rate}, seed=0, run="r", state="done", evals=[{"harmonic": score}]
        )
        for name, rates in scores.items()
        for rate, score in rates.items()
    ]
    found = photos.scores_of(rows)
    assert found == {name: {str(rate): score for rate, score in row.items()} for name, row in scores.items()}
    assert photos.best_rates(found) == {"a": 0.08, "b": 0.005}


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
    assert line.startswith("| hard | 0.02 | 45.00 |")
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
    assert max(float(slope.abs().max()) for slope in slopes) < 1e-3
    assert photos.accuracy(layer, features, labels) > 0.6
    assert photos.accuracy(layer, features, (labels + 1) % 3) < 0.4


@pytest.mark.parametrize(
    ("runs", "why"),
    [
        ([{"seed": 0, "harmonic": 0.4}], "at least two"),
        ([{"seed": 0, "harmonic": 0.4}, {"seed": 0, "harmonic": 0.4}], "at least two"),
        ([{"seed": 0, "harmonic": 0.4}, {"seed": 1, "harmonic": None}], "1 of 2 runs have no harmonic"),
    ],
)
def test_tables_need_every_figure_of_several_seeds(photos: Any, runs: list[dict[str, Any]], why: str) -> None:
    record = example_record()
    record["rows"][0]["runs"] = [{**record["rows"][0]["runs"][0], **run} for run in runs]
    with pytest.raises(UsageError, match=why):
        photos.markdown_tables(record)


@pytest.mark.parametrize(
    "places", [[1, 0, 2, 3, 4, 5], [0, 1, 2, 3, 5, 4], [0, 1, 2, 3, 4], [0, 1, 1, 2, 3, 4, 5]]
)
def test_a_page_without_the_marks_is_left_as_it_is(photos: Any, tmp_path: Path, places: list[int]) -> None:
    lines = []
    for name in TABLES:
        lines += [f"<!-- {name}: written by benchmarks/photos.py tables -->", f"<!-- end of {name} -->"]
    page, source = tmp_path / "page.md", tmp_path / "record.json"
    page.write_text("\n".join([lines[place] for place in places] + ["after"]))
    source.write_text(photos.json.dumps(example_record()))
    before = page.read_text()
    with pytest.raises(UsageError, match="must have the lines"):
        photos.tables(source=source, page=page)
    assert page.read_text() == before


def test_the_cost_counts_the_runs_that_the_timed_one_stands_for(photos: Any) -> None:
    recipe = tomllib.loads((ROOT / photos.RECIPE).read_text(encoding="utf-8"))
    sweep = SweepRecord(
        recipe="",
        cache="",
        axes={"row": []},
        seeds=[0],
        rows=[],
        row_settings={row["name"]: row for row in recipe["row"]},
    )
    found = photos.teacher_rows(sweep, "soft, teacher, T = 1")
    assert len(found) == 9
    assert {"soft, teacher, T = 8", "soft, shared", "soft, depth 1"} <= set(found)
    assert not {"hard", "soft, own, T = 1", "text, soft", "soft, 16 shots"} & set(found)


def write_pictures(path: Path, labels: list[int], random: np.random.Generator) -> None:
    """Pictures with the mean colour of their label."""
    rows = []
    for number, label in enumerate(labels):
        pixels = random.integers(0, 90, (32, 32, 3)) + np.array([label & 1, label >> 1, 1]) * 150
        file = io.BytesIO()
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "PNG")
        rows.append({"image": {"bytes": file.getvalue(), "path": f"{number}.png"}, "label": label})
    pq.write_table(pa.Table.from_pylist(rows), path)


def test_every_command_on_a_few_pictures(
    photos: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The study's models, five rows of its recipe, two seeds; both sets of pictures have two names alike."""
    random, folder, emoji = np.random.default_rng(0), tmp_path / "photos", tmp_path / "emoji"
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "photos").symlink_to(ROOT / "recipes" / "photos")
    text = (ROOT / photos.RECIPE).read_text(encoding="utf-8")
    head, *rows = re.split(r"(?=^\[\[row\]\]$)", text, flags=re.MULTILINE)
    kept = {*photos.TRANSFERRED, "soft, own, T = 1", "soft, 1 shot"}
    rows = [row for row in rows if tomllib.loads(row)["row"][0]["name"] in kept]
    head = re.sub(r"^epochs = 2$", "epochs = 1", head, flags=re.MULTILINE)
    head = re.sub(r"^seeds = 5$", "seeds = 2", head, flags=re.MULTILINE)
    (tmp_path / photos.RECIPE).write_text(head + "".join(rows), encoding="utf-8")
    for place, names in ((folder, ["apple", "bee", "cup", "dog"]), (emoji, ["bee", "dog", "tram"])):
        place.mkdir()
        (place / "classes.txt").write_text("\n".join(names) + "\n")
    write_pictures(folder / "prompt-train.parquet", [0, 1, 2, 3] * 10, random)
    write_pictures(folder / "test.parquet", [0, 1, 2, 3] * 4, random)
    with tarfile.open(emoji / "style.tar", "w") as tar:
        for label in range(3):
            file = io.BytesIO()
            Image.new("RGB", (64, 64), (80 * label, 90, 20)).save(file, "PNG")
            for suffix, content in ((".png", file.getvalue()), (".cls", str(label).encode())):
                member = tarfile.TarInfo(f"{label}{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PHOTOS", "")
    monkeypatch.setattr(photos, "RATES", (0.002, 0.03))

    photos.tune(folder, photos.FOLDER / "tune", jobs=1)
    recipe = tomllib.loads(photos.RECIPE.read_text(encoding="utf-8"))
    assert {row["lr"] for row in recipe["row"]} <= {0.002, 0.03}
    with pytest.raises(UsageError, match="no sweep at"):
        photos.record(photos.RECORD)
    run_sweep(photos.RECIPE, SweepSettings(out=photos.SWEEP, jobs=1), on_note=print)
    with pytest.raises(UsageError, match=r"photos\.py cost"):
        photos.record(photos.RECORD)
    with pytest.raises(UsageError, match="no row 'hard' with soft labels"):
        photos.cost(folder, "hard", 1)
    photos.cost(folder, "soft, teacher, T = 1", 1)
    photos.transfer(folder, emoji)
    photos.probe(folder)
    photos.record(photos.RECORD)
    Path("docs/results.md").write_text(
        "\n".join(
            f"<!-- {n}: written by benchmarks/photos.py tables -->\n<!-- end of {n} -->" for n in TABLES
        )
    )
    photos.tables(photos.RECORD, Path("docs/results.md"))

    made = photos.json.loads(photos.RECORD.read_text(encoding="utf-8"))
    assert {row["name"] for row in made["rows"]} == kept
    assert [one["name"] for one in made["frozen"]] == ["zero-shot", "teacher"]
    assert made["cost"]["runs"] == 2
    assert made["cost"]["losses"]["cached"] == pytest.approx(made["cost"]["losses"]["online"], abs=1e-3)
    assert made["transfer"]["pictures"] == {"emoji": 2, "photographs": 8}
    assert set(made["transfer"]["rows"]) == {
        "zero-shot",
        *(f"{name}, from {kind}" for name in photos.TRANSFERRED for kind in ("photographs", "emoji")),
    }
    assert made["probe"]["student"]["base"] > 0.9  # labels are colours
    assert "| soft, 1 shot |" in Path("docs/results.md").read_text(encoding="utf-8")


def test_differences_are_those_of_equal_seeds(photos: Any) -> None:
    record = example_record()
    hard = record["rows"][0]
    runs = [{**run, "new": 0.4 + 0.01 * run["seed"]} for run in reversed(hard["runs"])]
    record["rows"].append({"name": "hard, shared", "settings": {"lr": 0.1}, "runs": runs})
    lines = photos.differences(record).splitlines()[2:]
    assert lines == [
        "| hard labels, against zero-shot | +0.00 ± 0.00 | +0.00 ± 0.00 | +5.00 ± 1.41 |",
        "| QKV, against shared, equal positions (hard) | +0.00 ± 0.00 | −0.50 ± 0.71 | +0.00 ± 0.00 |",
    ]


def test_differences_are_between_rows_of_the_recipe(photos: Any) -> None:
    recipe = tomllib.loads((ROOT / photos.RECIPE).read_text(encoding="utf-8"))
    names = {row["name"] for row in recipe["row"]} | {"zero-shot"}
    assert {name for _, *pair in photos.CONTRASTS for name in pair} <= names
    assert len({label for label, *_ in photos.CONTRASTS}) == len(photos.CONTRASTS)


TABLES = ["photographs", "differences", "transfer"]


def example_record() -> dict[str, Any]:
    """A record with one row of two seeds."""
    figures = {"base": 0.5, "new": 0.4, "agreement": 0.7, "kl": 0.1, "ece": 0.05}
    runs = [{"seed": s, **figures, "harmonic": h, "seconds": 10.0} for s, h in ((0, 0.44), (1, 0.46))]
    return {
        "rows": [{"name": "hard", "settings": {"soft_weight": 0.0, "lr": 0.02}, "runs": runs}],
        "frozen": [{"name": "zero-shot", **figures, "harmonic": 0.4, "kl": None}],
        "transfer": {"rows": {"zero-shot": {"emoji": [0.1], "photographs": [0.5]}}},
        "tuning": {"rows": {"hard": {"0.02": 0.45, "0.08": 0.43}}, "frozen": {"zero-shot": 0.41}},
    }
