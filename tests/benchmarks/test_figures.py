"""The README's figures show what the record says, and the commands beside them make the files."""

import importlib
import json
import re
import shlex
import statistics
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner, Result

ROOT = Path(__file__).parents[2]
SVG = "{http://www.w3.org/2000/svg}"
TEMPERATURES = (0.5, 1, 2, 4, 8)
COMMAND = "python benchmarks/figures.py "
Call = Callable[..., Result]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch) -> Call:
    """Calls a command of the script."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    main = importlib.import_module("figures").main
    return lambda *arguments: CliRunner().invoke(main, [str(argument) for argument in arguments])


def row(name: str, *harmonic: float) -> dict[str, Any]:
    runs = [
        {"seed": seed, "base": value, "new": value, "harmonic": value} for seed, value in enumerate(harmonic)
    ]
    return {"name": name, "settings": {}, "runs": runs}


@pytest.fixture
def record() -> dict[str, Any]:
    """Five temperatures and two teachers, whose figures and deviations all differ."""
    rows = [row("hard", 0.601, 0.609, 0.612)]
    for place, value in enumerate(TEMPERATURES):
        for name, first in (("teacher", 0.62), ("own", 0.61)):
            harmonic = (first, first + 0.004 + 0.001 * place, first + 0.011 - 0.002 * place)
            rows.append(row(f"soft, {name}, T = {value:g}", *harmonic))
    cost = {
        "pictures": 1000,
        "views": 4,
        "build_seconds": 61.4,
        "cache_bytes": 4_200_000,
        "runs": 33,
        "runs_seconds": 1200.0,
        "cached_run_seconds": 40,
        "online_run_seconds": 90.25,
    }
    frozen = [row("zero-shot"), row("teacher")]
    for one, harmonic in zip(frozen, (0.58, 0.77), strict=True):
        one["harmonic"] = harmonic
    return {"rows": rows, "frozen": frozen, "cost": cost, "machine": {}, "command": "rpp run x.toml"}


@pytest.fixture
def file(record: dict[str, Any], tmp_path: Path) -> Path:
    path = tmp_path / "record.json"
    path.write_text(json.dumps(record))
    return path


def of_kind(svg: ElementTree.Element, tag: str, *kinds: str) -> list[ElementTree.Element]:
    """Elements that have these classes."""
    return [one for one in svg.iter(SVG + tag) if set(kinds) <= set(one.get("class", "").split())]


def y_of_percent(svg: ElementTree.Element) -> Callable[[float], float]:
    """The vertical axis as its ticks show it: the baseline of a number is 5 below its line."""
    ticks = of_kind(svg, "text", "y-tick")
    (low, at_low), *_, (high, at_high) = [(float(t.text or ""), float(t.get("y", "")) - 5) for t in ticks]
    return lambda percent: at_low + (percent - low) / (high - low) * (at_high - at_low)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_error_bars_are_standard_deviations(
    call: Call, file: Path, record: dict[str, Any], theme: str, tmp_path: Path
) -> None:
    assert call("temperature", file, "--out", tmp_path / "new" / "plot").exit_code == 0
    svg = ElementTree.parse(tmp_path / "new" / f"plot-{theme}.svg").getroot()
    place = y_of_percent(svg)
    ticks = {float(t.text or ""): float(t.get("x", "")) for t in of_kind(svg, "text", "x-tick")}
    assert tuple(ticks) == TEMPERATURES
    harmonic = {one["name"]: [100 * run["harmonic"] for run in one["runs"]] for one in record["rows"]}
    for name in ("teacher", "own"):
        bars = of_kind(svg, "path", "spread", name)
        for value, bar in zip(TEMPERATURES, bars, strict=True):
            values = harmonic[f"soft, {name}, T = {value:g}"]
            mean, deviation = statistics.mean(values), statistics.stdev(values)
            x, top, bottom = map(float, re.findall(r"M([\d.]+) ([\d.]+)V([\d.]+)", bar.get("d", ""))[0])
            assert abs(x - ticks[value]) < 10
            assert top == pytest.approx(place(mean + deviation), abs=0.1)
            assert bottom == pytest.approx(place(mean - deviation), abs=0.1)
    mean, deviation = statistics.mean(harmonic["hard"]), statistics.stdev(harmonic["hard"])
    (band,) = of_kind(svg, "rect", "band")
    assert float(band.get("y", "")) == pytest.approx(place(mean + deviation), abs=0.1)
    assert float(band.get("height", "")) == pytest.approx(place(0) - place(2 * deviation), abs=0.1)
    hard, zero_shot = of_kind(svg, "path", "level")
    assert float(hard.get("d", "").split()[-1]) == pytest.approx(place(mean), abs=0.1)
    assert float(zero_shot.get("d", "").split()[-1]) == pytest.approx(place(58), abs=0.1)
    assert "dashed" in zero_shot.get("class", "")


def test_markers_are_means(call: Call, file: Path, record: dict[str, Any], tmp_path: Path) -> None:
    call("temperature", file, "--out", tmp_path / "plot")
    svg = ElementTree.parse(tmp_path / "plot-light.svg").getroot()
    place = y_of_percent(svg)
    ys = {
        "teacher": [float(dot.get("cy", "")) for dot in svg.iter(f"{SVG}circle")],
        "own": [float(one.get("y", "")) + 4.5 for one in of_kind(svg, "rect", "fill-second")],
    }
    means = {
        one["name"]: 100 * statistics.mean([r["harmonic"] for r in one["runs"]]) for one in record["rows"]
    }
    for name, found in ys.items():
        expected = [place(means[f"soft, {name}, T = {value:g}"]) for value in TEMPERATURES]
        assert found == pytest.approx(expected, abs=0.1)


@pytest.mark.parametrize("figure", ["temperature", "stages"])
def test_files_are_small_and_need_nothing_else(call: Call, figure: str, file: Path, tmp_path: Path) -> None:
    arguments = [figure, file] if figure == "temperature" else [figure]
    assert call(*arguments, "--out", tmp_path / "x").exit_code == 0
    texts = []
    for path in (tmp_path / "x-light.svg", tmp_path / "x-dark.svg"):
        text = path.read_text(encoding="utf-8")
        svg = ElementTree.fromstring(text)
        assert path.stat().st_size <= 200_000
        assert not list(svg.iter(f"{SVG}script"))
        assert not re.search(r"href|url\(|@import|\bon\w+=", text)
        width, height = map(float, svg.get("viewBox", "").split()[2:])
        for one in svg.iter(f"{SVG}text"):
            assert 0 <= float(one.get("x", 0)) <= width
            assert 0 <= float(one.get("y", 0)) <= height
        named = {kind for one in svg.iter() for kind in one.get("class", "").split()}
        assert {kind for kind in named if f".{kind}" not in text} <= {"teacher", "own", "x-tick", "y-tick"}
        texts.append(re.sub(r"#[0-9a-f]{6}", "", text))
    assert texts[0] == texts[1]  # only colours differ


def labels_of(svg: ElementTree.Element) -> list[float]:
    return [float(one.get("y", "")) for one in svg.iter(f"{SVG}text") if float(one.get("x", 0)) > 590]


@pytest.mark.parametrize("level", [0.61, 0.62, 0.65])
def test_labels_do_not_overlap(call: Call, record: dict[str, Any], level: float, tmp_path: Path) -> None:
    """All figures nearly equal, at the bottom, in the middle, or at the top of the plot."""
    file = tmp_path / "equal.json"
    for one in record["rows"]:
        one["runs"] = row("", *(level + 0.0001 * seed for seed in range(3)))["runs"]
    record["frozen"][0]["harmonic"] = 0.62
    file.write_text(json.dumps(record))
    call("temperature", file, "--out", tmp_path / "plot")
    svg = ElementTree.parse(tmp_path / "plot-light.svg").getroot()
    ys = sorted(labels_of(svg))
    assert len(ys) == 8  # four labels of two lines
    assert all(later - earlier >= 17.9 for earlier, later in pairwise(ys))
    assert ys[0] > 10
    assert ys[-1] < float(svg.get("height", ""))


@pytest.mark.parametrize("missing", ["soft, teacher, T = 0.5", "soft, own, T = 8", "hard", "zero-shot"])
def test_a_missing_row_is_refused(call: Call, record: dict[str, Any], missing: str, tmp_path: Path) -> None:
    for part in ("rows", "frozen"):
        record[part] = [one for one in record[part] if one["name"] != missing]
    file = tmp_path / "record.json"
    file.write_text(json.dumps(record))
    result = call("temperature", file, "--out", tmp_path / "plot")
    assert result.exit_code == 2
    said = " ".join(re.sub("[│╭╮╰╯─]", " ", result.output).split())
    assert f"no row '{missing}', which the plot needs; it has '" in said
    assert not list(tmp_path.glob("*.svg"))


def test_a_damaged_record_is_refused(call: Call, record: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "record.json"
    assert "cannot be read: No such file" in " ".join(call("sentence", file).output.split())
    record["rows"][3]["runs"] = record["rows"][3]["runs"][:1]
    file.write_text(json.dumps(record))
    result = call("temperature", file, "--out", tmp_path / "plot")
    assert result.exit_code == 2
    assert "rows.3.runs" in result.output


def alike_seeds(record: dict[str, Any]) -> None:
    record["rows"][2]["runs"][1]["seed"] = 0


def alike_names(record: dict[str, Any]) -> None:
    record["rows"].append(record["rows"][0])


def endless_build(record: dict[str, Any]) -> None:
    record["cost"]["build_seconds"] = float("inf")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (alike_seeds, "has a seed twice"),
        (alike_names, "same name: 'hard'"),
        (endless_build, "cost.build_seconds"),
    ],
)
def test_a_record_that_would_mislead_is_refused(
    call: Call, record: dict[str, Any], damage: Callable[[dict[str, Any]], None], said: str, tmp_path: Path
) -> None:
    damage(record)
    file = tmp_path / "record.json"
    file.write_text(json.dumps(record))
    result = call("sentence", file)
    assert result.exit_code == 2
    assert said in " ".join(re.sub("[│╭╮╰╯─]", " ", result.output).split())


def test_the_sentence_has_the_totals(call: Call, file: Path) -> None:
    assert call("sentence", file).output == (
        "The teacher ran once: 61 s for 4,000 views of 1,000 pictures, 4.2 MB on disk. 33 runs with its "
        "soft labels then took 1,200 s. With the teacher online they would have taken 2,708 s: one run, "
        "measured both ways, takes 40.0 s from the cache and 90.2 s online.\n"
    )


README = re.sub(r"<!--.*?-->", "", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
COMMANDS = re.findall(rf"`{COMMAND}([^`]+)`", README)


def test_the_readme_names_the_command_of_each_picture() -> None:
    shown = re.findall(r'(?:src|srcset)="([^"]+)"', README)
    outs = [shlex.split(command)[-1] for command in COMMANDS if "--out" in command]
    assert sorted(shown) == sorted(f"{out}-{theme}.svg" for out in outs for theme in ("light", "dark"))
    assert "![" not in README


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_of_the_readme_make_what_it_shows(
    command: str, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "data").symlink_to(ROOT / "docs" / "data")
    monkeypatch.chdir(tmp_path)
    result = call(*shlex.split(command))
    assert result.exit_code == 0, result.output
    if "--out" in command:
        made = list((tmp_path / "docs" / "images").iterdir())
        assert len(made) == 2
        for path in made:
            assert path.read_text() == (ROOT / "docs" / "images" / path.name).read_text()
    else:
        assert result.output.strip() in " ".join(README.replace("\n> ", "\n").split())
