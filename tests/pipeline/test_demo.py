"""The demo end to end with its packaged teacher and a third of its pictures, one epoch and two seeds."""

import io
import json
import statistics
import sys
import tarfile
from pathlib import Path

import pytest

from pipeline.cli import main
from pipeline.demo import compare, make_pictures
from pipeline.demo.compare import FIGURES, FROZEN, HERE, STUDENTS, train_settings
from pipeline.settings import DemoSettings
from student_train.evaluation.evaluators import harmonic_mean
from teacher_cache.teacher.openclip import load_model
from tests.student_train.conftest import pictures as pictures

MEGABYTE = 1024**2


def test_the_demo_prints_and_stores_every_figure(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "pictures").symlink_to(pictures)
    (tmp_path / "teacher").symlink_to(HERE / "teacher")
    monkeypatch.setattr(compare, "HERE", tmp_path)
    command = ["rpp", "demo", "--out", str(tmp_path / "demo"), "--epochs", "1", "--seeds", "2"]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    printed = capsys.readouterr().out
    results = json.loads((tmp_path / "demo" / "results.json").read_text())
    rows = {row.pop("name"): row for row in results["rows"]}
    assert list(rows) == [FROZEN, *STUDENTS]
    for name, row in rows.items():
        runs = 1 if name == FROZEN else 2
        for figure in FIGURES:
            found = row[figure]
            assert len(found["runs"]) == runs
            assert found["mean"] == pytest.approx(statistics.mean(found["runs"]))
            assert f"{100 * found['mean']:.1f}" in printed
            if runs == 2:
                assert found["std"] == pytest.approx(statistics.stdev(found["runs"]))
        for base, new, both in zip(*(row[f]["runs"] for f in ("base", "new", "harmonic")), strict=True):
            assert both == pytest.approx(harmonic_mean(base, new))
    frozen = rows[FROZEN]
    assert frozen["agreement"]["mean"] == 1.0
    assert frozen["base"]["mean"] > 0.2, "150 classes: guessing gives 0.7 %"
    assert frozen["new"]["mean"] > 0.2
    assert all(0.2 < rows[name]["agreement"]["mean"] < 1.0 for name in STUDENTS)


def test_rows_differ_only_in_the_named_setting(tmp_path: Path) -> None:
    records = [
        train_settings(DemoSettings(), tmp_path, tmp_path / "run", 0, differs).model_dump()
        for differs in STUDENTS.values()
    ]
    for record in records:
        record["prompts"].pop("prompt_structure")
        record.pop("soft_weight")
    assert records[0] == records[1] == records[2]


def test_the_packaged_teacher_is_small_and_real() -> None:
    assert sum(path.stat().st_size for path in (HERE / "teacher").iterdir()) <= 15 * MEGABYTE
    teacher = load_model(str(HERE / "teacher"))
    empty = (teacher.model.token_embedding.weight == 0).all(dim=1)
    names = (HERE / "pictures" / "classes.txt").read_text().split("\n")[:-1]
    assert empty.any()
    assert not empty[teacher.tokenizer([f"a photo of a {name}." for name in names])].any()


def test_the_packaged_pictures_are_complete_and_licensed() -> None:
    folder = HERE / "pictures"
    names = (folder / "classes.txt").read_text().splitlines()
    assert len(names) == len(set(names)) == 300
    for style, (package, _, licence) in make_pictures.STYLES.items():
        with tarfile.open(folder / f"{style}.tar") as tar:
            members = tar.getnames()
        assert len([name for name in members if name.endswith(".jpg")]) == 300
        assert package in (folder / "README.md").read_text()
        assert (folder / f"LICENSE-{licence}.txt").stat().st_size > 1000


def test_make_pictures_writes_the_same_bytes_each_time(tmp_path: Path) -> None:
    """On shards of the packaged pictures, named like the original shards."""
    names = (HERE / "pictures" / "classes.txt").read_text().splitlines()
    (tmp_path / "emoji").mkdir()
    for style in make_pictures.STYLES:
        add_names(HERE / "pictures" / f"{style}.tar", tmp_path / "emoji" / f"{style}.tar", names)
    for out in ("a", "b"):
        make_pictures.main(emoji=tmp_path / "emoji", classes=40, out=tmp_path / out)
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == ["README.md", "classes.txt", *sorted(f"{style}.tar" for style in make_pictures.STYLES)]
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in files)
    drawn = (tmp_path / "a" / "classes.txt").read_text().splitlines()
    with (
        tarfile.open(tmp_path / "a" / "noto.tar") as tar,
        tarfile.open(tmp_path / "emoji" / "noto.tar") as all_,
    ):
        label = tar.extractfile(tar.getmembers()[7])
        image = tar.extractfile(tar.getmembers()[6])
        assert label is not None
        assert image is not None
        assert label.read() == b"3"
        stem = tar.getnames()[6].removesuffix(".jpg")
        original, name = all_.extractfile(f"{stem}.jpg"), all_.extractfile(f"{stem}.txt")
        assert original is not None
        assert name is not None
        assert image.read() == original.read()
        assert name.read().decode() == drawn[3]


def add_names(shard: Path, out: Path, names: list[str]) -> None:
    """A copy of a packaged shard whose samples have a `.txt` with the class name."""
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
        assert "one to two minutes" in " ".join(printed.split()).lower()
