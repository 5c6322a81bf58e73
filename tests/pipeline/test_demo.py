"""The demo end to end with its packaged models and a sixth of its pictures, one epoch and two seeds."""

import io
import json
import os
import re
import statistics
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.cli import main
from pipeline.demo import clips, compare, make_pictures
from pipeline.demo.clips import STUDENT, TEACHER, pack_weights, unpack_clip
from pipeline.demo.compare import FIGURES, HERE, ROWS, SOFT, headline, spread_text
from pipeline.demo.online import OnlineRun
from pipeline.demo.story import story
from pipeline.recipe import load_recipe
from pipeline.settings import SweepSettings
from pipeline.sweep import run_sweep
from student_train.evaluation.evaluators import harmonic_mean
from student_train.figures import ZERO_SHOT
from student_train.training.loop import train
from teacher_cache.build import build_cache
from teacher_cache.command_settings import BuildSettings
from teacher_cache.errors import UsageError
from teacher_cache.images.decode import decode_image
from teacher_cache.settings import to_flat
from teacher_cache.teacher.openclip import load_model
from tests.models import write_model
from tests.student_train.conftest import PICTURES
from tests.student_train.conftest import pictures as pictures
from tests.student_train.training.test_loop import metrics, settings

MEGABYTE = 1024**2
TRAINED = "student.safetensors"


def call_demo(monkeypatch: pytest.MonkeyPatch, out: Path, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["rpp", "demo", "--out", str(out), "--device", "cpu", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def write_few(folder: Path) -> None:
    """The demo's pictures of its first 100 classes."""
    packaged = HERE / "pictures"
    folder.mkdir()
    names = (packaged / "classes.txt").read_text().splitlines()[:100]
    (folder / "classes.txt").write_text("\n".join(names) + "\n")
    for style in packaged.glob("*.parquet"):
        pq.write_table(pq.read_table(style).slice(0, 100), folder / style.name)


def test_the_demo_prints_and_stores_every_figure(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    forked_runs: None,
) -> None:
    write_few(tmp_path / "pictures")
    monkeypatch.setattr(compare, "HERE", tmp_path)
    # with other tests beside it, either of the two runs may be the slower one
    monkeypatch.setattr(compare, "online_ratio", lambda o: o["seconds"]["online"] / o["seconds"]["cached"])
    out = tmp_path / "demo"
    assert call_demo(monkeypatch, out, "--epochs", "1", "--seeds", "2") == 0
    printed = capsys.readouterr().out
    results = json.loads((out / "results.json").read_text())
    check_figures(results)
    check_costs(results)
    check_printed(results, printed)
    assert Path(results["report"]).is_file()

    # a second call keeps what is finished, as does the recipe that the demo wrote
    before = {path: path.stat().st_mtime_ns for path in out.rglob(TRAINED)}
    assert len(before) == 2 * len(ROWS)
    assert call_demo(monkeypatch, out, "--epochs", "1", "--seeds", "2", "--json") == 0
    again = json.loads(capsys.readouterr().out)
    timed = {"seconds": 0.0}
    assert again | timed == results | timed
    recipe = load_recipe(out / "demo.toml")
    record = run_sweep(out / "demo.toml", SweepSettings(out=recipe.train.out))
    assert [row.state for row in record.rows] == ["done"] * len(before)
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob(TRAINED)}

    described = (out / "demo.toml").read_text()
    assert call_demo(monkeypatch, out, "--epochs", "2", "--seeds", "2") == 2
    refused = capsys.readouterr().err
    assert "epochs: stored 1, requested 2" in refused
    assert f"{out}/sweep" not in refused
    assert (out / "demo.toml").read_text() == described


def check_figures(results: dict[str, Any]) -> None:
    """Means, deviations and harmonic means are those of the seeds; the models tell classes apart."""
    rows = {row["name"]: row for row in results["rows"]}
    assert list(rows) == list(ROWS)
    for row in rows.values():
        for found in (row["seconds"], *(row["figures"][figure] for figure in FIGURES)):
            assert len(found["runs"]) == results["seeds"] == 2
            assert found["mean"] == pytest.approx(statistics.mean(found["runs"]))
            assert found["std"] == pytest.approx(statistics.stdev(found["runs"]))
        by_seed = zip(*(row["figures"][name]["runs"] for name in ("base", "new", "harmonic")), strict=True)
        for base, new, both in by_seed:
            assert both == pytest.approx(harmonic_mean(base, new))
        assert 0.2 < row["figures"]["agreement"]["mean"] < 1.0
        assert row["figures"]["kl"]["mean"] > 0
    assert set(results["frozen"]) <= {ZERO_SHOT, TEACHER}
    for frozen in results["frozen"].values():
        assert frozen["base"]["mean"] > 0.2, "150 classes: guessing gives 0.7 %"
        assert frozen["new"]["mean"] > 0.2
    assert results["headline"] == headline(
        results["frozen"][ZERO_SHOT]["harmonic"], rows[SOFT[1]]["figures"]["harmonic"]
    )


def check_costs(results: dict[str, Any]) -> None:
    """The cost online is that of one measured run, and the measured runs have equal losses."""
    teacher, online = results["teacher"], results["online"]
    assert (teacher["pictures"], teacher["views"]) == (200, compare.VIEWS["views"])
    assert min(teacher["seconds"], teacher["bytes"]) > 0
    assert online["loss"]["online"] == pytest.approx(online["loss"]["cached"], abs=0.01)
    ratio = online["seconds"]["online"] / online["seconds"]["cached"]
    soft = [row for row in results["rows"] if row["name"] in SOFT.values()]
    total = sum(second for row in soft for second in row["seconds"]["runs"])
    assert online["runs"] == 2 * len(soft)
    assert online["sweep_seconds"] == pytest.approx(total)
    assert online["sweep_seconds_online"] == pytest.approx(total * ratio)
    for row in results["rows"]:
        factor = ratio if row in soft else 1
        assert row["seconds_online"] == pytest.approx(row["seconds"]["mean"] * factor)


def check_printed(results: dict[str, Any], printed: str) -> None:
    """The first line is the headline; the tables have a line of the right figures for each row."""
    lines = [re.sub(r" {2,}", " ", line).strip() for line in printed.splitlines()]
    assert lines[0] == results["headline"]
    teacher, online = results["teacher"], results["online"]
    text = " ".join(lines)
    assert f"200 pictures × 4 views in {teacher['seconds']:.1f} s, {teacher['bytes'] / 1e6:.2f} MB" in text
    seconds = online["seconds"]
    assert (
        f"The 8 runs with soft labels took {online['sweep_seconds']:.0f} s. Online it would have been "
        f"{online['sweep_seconds_online']:.0f} s (one run: cached {seconds['cached']:.1f} s, online "
        f"{seconds['online']:.1f} s)"
    ) in text
    rows = {row["name"]: row for row in results["rows"]}
    temperatures = {"hard labels": "QKV, hard labels", **{f"T = {t}": name for t, name in SOFT.items()}}
    for label, name in temperatures.items():
        texts = [
            spread_text(figure, rows[name]["figures"][figure]) for figure in ("harmonic", "agreement", "kl")
        ]
        texts += [f"{rows[name]['seconds']['mean']:.1f}", f"{rows[name]['seconds_online']:.1f}"]
        assert " ".join([label, *texts]) in lines
    compared = {name: rows[name]["figures"] for name in ("shared, hard labels", "QKV, hard labels")}
    for label, figures in {
        **results["frozen"],
        **compared,
        "QKV + soft, T = 1": rows[SOFT[1]]["figures"],
    }.items():
        texts = [spread_text(figure, figures[figure]) for figure in ("base", "new", "harmonic", "agreement")]
        assert " ".join([label, *texts]) in lines
    assert f"Report: {results['report']}" in lines
    assert max(len(line) for line in printed.splitlines() if "±" in line and line != lines[0]) <= 80


def test_rows_differ_only_in_the_named_setting(tmp_path: Path) -> None:
    path = tmp_path / "demo.toml"
    path.write_text(compare.recipe_text(compare.DemoSettings(out=tmp_path / 'a "quoted" folder')))
    rows = {row.name: to_flat(row.train) for row in load_recipe(path).rows}
    shared = rows["QKV, T = 1"]
    for name, row in rows.items():
        differ = {setting for setting, value in row.items() if value != shared[setting]}
        if name == "shared, hard labels":
            assert differ == {"prompt_structure", "soft_weight"}
        elif name == "QKV, hard labels":
            assert differ == {"soft_weight"}
        elif name != "QKV, T = 1":
            assert differ == {"temperature"}
            assert row["temperature"] == float(name.removeprefix("QKV, T = "))
    assert rows["QKV, hard labels"]["soft_weight"] == rows["shared, hard labels"]["soft_weight"] == 0


@pytest.mark.parametrize(
    ("mean", "deviation", "expected"),
    [
        (0.52, 0.01, "Gain of 2.00 ± 1.00 points over zero-shot: "),
        (0.52, 0.03, "No gain over zero-shot: "),
        (0.48, 0.01, "No gain over zero-shot: "),
        (0.52, None, "One seed shows neither gain nor loss: "),
    ],
)
def test_a_gain_is_claimed_only_if_it_exceeds_its_spread(
    mean: float, deviation: float | None, expected: str
) -> None:
    runs = [mean] if deviation is None else [mean - deviation, mean, mean + deviation]
    student = {"mean": mean, "std": deviation, "runs": runs}
    line = headline({"mean": 0.5, "std": 0.0, "runs": [0.5]}, student)
    assert line.startswith(expected)
    assert f"{100 * mean:.2f}" in line
    assert "zero-shot has 50.00 %" in line


@pytest.mark.parametrize(("cached", "online", "ratio"), [(10.0, 15.0, 1.5), (280.0, 132.0, None)])
def test_a_comparison_that_other_work_disturbed_is_not_reported(
    cached: float, online: float, ratio: float | None
) -> None:
    seconds = {"seconds": {"cached": cached, "online": online}}
    assert compare.online_ratio(seconds) == ratio
    results = example_results()
    results["online"] |= seconds
    if ratio is None:
        results["online"]["sweep_seconds_online"] = None
        results["rows"] = [row | {"seconds_online": None} for row in results["rows"]]
    lines = " ".join(line for line in story(results) if isinstance(line, str))
    assert ("Online it would have been 1 s" in lines) == (ratio is not None)
    assert ("disturbed the comparison" in lines) == (ratio is None)


def test_a_teacher_that_is_the_students_model_has_no_line() -> None:
    """And a figure that a frozen model does not have is a dash."""
    *_, table, _, _, _ = story(example_results())
    assert not isinstance(table, str)
    first, *_, last = (list(column.cells) for column in table.columns)
    assert first == [ZERO_SHOT, "shared, hard labels", "QKV, hard labels", "QKV + soft, T = 1"]
    assert last == ["–", "50.00", "50.00", "50.00"]


def example_results() -> dict[str, Any]:
    """Results of a demo whose teacher is the student's model."""
    one = {"mean": 0.5, "std": None, "runs": [0.5]}
    figures = dict.fromkeys(FIGURES, one)
    seconds = {"mean": 1.0, "std": None, "runs": [1.0]}
    return {
        "headline": "",
        "teacher": {"pictures": 1, "views": 1, "seconds": 1.0, "bytes": 1},
        "online": {"seconds": {"cached": 1.0, "online": 1.0}, "runs": 4}
        | {"sweep_seconds": 1.0, "sweep_seconds_online": 1.0},
        "frozen": {ZERO_SHOT: {**figures, "agreement": {}}},
        "rows": [{"name": n, "figures": figures, "seconds": seconds, "seconds_online": 1.0} for n in ROWS],
        "seeds": 1,
        "seconds": 1.0,
        "recipe": "demo.toml",
        "report": "report.html",
    }


@pytest.mark.parametrize("name", [STUDENT, TEACHER])
def test_the_packaged_clips_are_real(name: str, tmp_path: Path) -> None:
    clip = load_model(str(unpack_clip(name, tmp_path)))
    empty = (clip.model.token_embedding.weight == 0).all(dim=1)
    names = (HERE / "pictures" / "classes.txt").read_text().split("\n")[:-1]
    assert empty.any()
    assert not empty[clip.tokenizer([f"a photo of a {name}." for name in names])].any()


def test_models_and_pictures_are_small() -> None:
    files = [*(HERE / "clips").rglob("*"), *(HERE / "pictures").rglob("*")]
    assert sum(path.stat().st_size for path in files if path.is_file()) <= 15 * MEGABYTE


def test_clips_are_unpacked_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clips.main(tmp_path)
    assert capsys.readouterr().out.split() == [str(tmp_path / name) for name in (STUDENT, TEACHER)]
    weights = tmp_path / STUDENT / "open_clip_model.safetensors"
    content, times = weights.read_bytes(), [path.stat().st_mtime_ns for path in tmp_path.rglob("*.*")]
    clips.main(tmp_path)
    assert times == [path.stat().st_mtime_ns for path in tmp_path.rglob("*.*")]
    weights.write_bytes(content[:1000])
    unpack_clip(STUDENT, tmp_path)
    assert weights.read_bytes() == content


def test_packed_weights_depend_on_their_bytes_only(tmp_path: Path) -> None:
    packed = []
    for number, name in enumerate(("a", "b")):
        weights = tmp_path / f"{name}.safetensors"
        weights.write_bytes(bytes(1000) + b"weights")
        os.utime(weights, (number, number))
        packed.append(pack_weights(weights).read_bytes())
        assert not weights.exists()
    assert packed[0] == packed[1]
    assert packed[0][4:8] == bytes(4), "no time in the file"
    assert len(packed[0]) < 100


@pytest.mark.parametrize("case", ["vision, other pixels", "vision, same pixels", "text, own features"])
def test_online_and_cached_runs_have_nearly_the_same_losses(
    case: str, tmp_path: Path, clip: Path, pictures: Path
) -> None:
    """The cache holds float16. Teachers: 48 pixels for a student of 32, another model of the same size, and
    the student's own model, whose features the cache has."""
    teacher = clip if case == "vision, other pixels" else write_model(tmp_path / "teacher", "gelu", seed=1)
    student = write_model(tmp_path / "student", "gelu")
    cache = cache_of(teacher, pictures, tmp_path)
    named = {} if case == "text, own features" else {"student": str(student)}
    towers, workers = case.partition(",")[0], int(case == "vision, other pixels")
    asked = settings(
        cache, tmp_path / "cached", towers=towers, soft_weight=4.0, max_steps=3, workers=workers, **named
    )
    online = asked.model_copy(update={"out": tmp_path / "online"})
    runs = train(asked), train(online, OnlineRun)
    assert runs[0].mode == runs[1].mode == ("features" if case == "text, own features" else "images")
    lines = metrics(tmp_path / "cached"), metrics(tmp_path / "online")
    assert len(lines[0]) == 3
    for one, other in zip(*lines, strict=True):
        for loss in ("hard_loss", "soft_loss"):
            assert one[loss] > 0
            assert one[loss] == pytest.approx(other[loss], rel=0.002)


def test_online_runs_that_need_no_teacher_or_cannot_ask_it_are_refused(
    tmp_path: Path, pictures: Path
) -> None:
    teacher = write_model(tmp_path / "teacher", "gelu")
    asked = settings(cache_of(teacher, pictures, tmp_path), tmp_path / "run", soft_weight=0.0)
    with pytest.raises(UsageError, match="needs no teacher"):
        train(asked, OnlineRun)
    asked = settings(
        cache_of(teacher, pictures, tmp_path, encoding="topk", topk=5), tmp_path / "run", workers=0
    )
    with pytest.raises(UsageError, match="the encoding 'topk' is not computed from image features"):
        train(asked, OnlineRun)


def cache_of(teacher: Path, pictures: Path, folder: Path, **options: Any) -> Path:
    """A cache of 2 views of some Noto pictures."""
    out = folder / f"{options.get('encoding', 'factored')}.zarr"
    build_cache(
        BuildSettings(
            images=str(pictures / "noto.tar"),
            classes=str(pictures / "classes.txt"),
            out=str(out),
            teacher=str(teacher),
            view_policy={"views": 2},
            **options,
        )
    )
    return out


def test_the_packaged_pictures_are_complete_and_licensed() -> None:
    folder = HERE / "pictures"
    names = (folder / "classes.txt").read_text().splitlines()
    assert len(names) == len(set(names)) == 600
    for style, (package, _, licence) in make_pictures.STYLES.items():
        table = pq.read_table(folder / f"{style}.parquet")
        assert table["label"].to_pylist() == list(range(600))
        assert decode_image(table["image"][0]["bytes"].as_py()).shape == (64, 64, 3)
        assert package in (folder / "README.md").read_text()
        assert (folder / f"LICENSE-{licence}.txt").stat().st_size > 1000
    decode_image((folder / "woman-firefighter.jpg").read_bytes())


def test_make_pictures_writes_the_same_bytes_each_time(tmp_path: Path) -> None:
    """On shards of the tests' pictures, named like the original shards."""
    names = (PICTURES / "classes.txt").read_text().splitlines()
    (tmp_path / "emoji").mkdir()
    for style in make_pictures.STYLES:
        add_names(PICTURES / f"{style}.tar", tmp_path / "emoji" / f"{style}.tar", names)
    for out in ("a", "b"):
        make_pictures.main(emoji=tmp_path / "emoji", classes=40, out=tmp_path / out)
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    styles = [f"{style}.parquet" for style in make_pictures.STYLES]
    assert files == sorted(["README.md", "classes.txt", "woman-firefighter.jpg", *styles])
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in files)
    drawn = (tmp_path / "a" / "classes.txt").read_text().splitlines()
    table = pq.read_table(tmp_path / "a" / "noto.parquet")
    assert table["label"].to_pylist() == list(range(40))
    image = table["image"][3].as_py()
    with tarfile.open(tmp_path / "emoji" / "noto.tar") as tar:
        stem = image["path"].removesuffix(".webp")
        original, name = tar.extractfile(f"{stem}.jpg"), tar.extractfile(f"{stem}.txt")
        assert original is not None
        assert name is not None
        assert name.read().decode() == drawn[3]
        whole = Image.open(original).resize((64, 64), Image.Resampling.LANCZOS)
    difference = np.abs(np.asarray(whole, dtype=int) - decode_image(image["bytes"]))
    assert difference.mean() < 6, "lossy, but the same drawing"


def add_names(shard: Path, out: Path, names: list[str]) -> None:
    """A copy of a shard of the tests' pictures whose samples have a `.txt` with the class name."""
    with tarfile.open(shard) as source, tarfile.open(out, "w") as target:
        for member in source:
            content = source.extractfile(member)
            assert content is not None
            data = content.read()
            target.addfile(member, io.BytesIO(data))
            if member.name.endswith(".cls"):
                info = tarfile.TarInfo(member.name.replace(".cls", ".txt"))
                text = names[int(data)].encode()
                info.size = len(text)
                target.addfile(info, io.BytesIO(text))


def test_help_and_readme_say_the_same_time(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["rpp", "demo", "--help"])
    with pytest.raises(SystemExit):
        main()
    readme = (HERE.parents[1] / "README.md").read_text(encoding="utf-8")
    for printed in (capsys.readouterr().out, readme):
        assert "about three minutes" in " ".join(printed.split()).lower()
