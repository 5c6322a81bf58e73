"""Soft labels and pictures, compared with a plain reading of the cache."""

import base64
import io
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.report.gather import gather
from pipeline.report.inside import picture_temperatures, soft_labels
from pipeline.report.pieces import Card, Cards, Piece, Text
from pipeline.report.softlabels import (
    THUMBNAIL,
    describe_pictures,
    entropies,
    load_student,
    open_recorded_cache,
    served_temperatures,
    thumbnail,
    typical_rows,
)
from student_train.evaluation.predict import predict
from student_train.evaluation.settings import PredictSettings
from student_train.runs.record import read_settings
from teacher_cache.build import build_cache
from teacher_cache.command_settings import BuildSettings
from teacher_cache.errors import RppError, UsageError
from teacher_cache.images.reader import ImageReader
from teacher_cache.softlabels import TeacherCache, open_cache
from tests.pipeline.report.conftest import SAMPLES, SCRIPT, first_samples
from tests.student_train.conftest import PICTURES


@pytest.fixture(scope="module")
def cache(inputs: Path) -> TeacherCache:
    return open_cache(inputs / "demo.zarr")


def cards(section: list[Piece]) -> list[Card]:
    return [card for piece in section if isinstance(piece, Cards) for card in piece.cards]


def text_of(section: list[Piece]) -> str:
    return " ".join(piece.text for piece in section if isinstance(piece, Text))


def test_entropy_is_that_of_the_soft_labels(cache: TeacherCache) -> None:
    rows, found = entropies(cache, [0.5, 2.0])
    assert rows == SAMPLES
    for temperature, value in found:
        p = cache.soft_labels(range(SAMPLES), temperature).double()
        assert value == pytest.approx(float(-(p * p.log()).sum(1).mean()), rel=1e-4)
    assert found[0][1] < found[1][1] < math.log(len(cache.vocabulary))


def test_typical_rows_are_the_most_and_the_least_certain(larger_cache: TeacherCache) -> None:
    shown = typical_rows(larger_cache)
    assert [kind for _, kind in shown] == ["certain and right"] * 2 + ["uncertain"] * 2 + [
        "certain and wrong"
    ] * 2
    rows = [row for row, _ in shown]
    assert len(set(rows)) == 6
    p = larger_cache.soft_labels(range(len(larger_cache)))
    best, first = p.max(1)
    labels = torch.from_numpy(larger_cache.labels.astype(np.int64))
    right = first == labels
    assert right[rows[:2]].all()
    assert not right[rows[4:]].any()
    assert best[rows[0]] == best[right].max()
    entropy = -(p * p.log()).sum(1)
    assert entropy[rows[2]] == entropy.max()
    others = ~right & ~torch.isin(torch.arange(len(p)), torch.tensor(rows[2:4]))
    assert best[rows[4]] == best[others].max()
    assert typical_rows(larger_cache) == shown, "the same ones at every call"


@pytest.fixture(scope="module")
def larger_cache(tmp_path_factory: pytest.TempPathFactory, clip: Path) -> TeacherCache:
    """A cache of pictures on which the teacher is right and wrong."""
    out = tmp_path_factory.mktemp("cache") / "demo.zarr"
    build_cache(
        BuildSettings(
            images=str(first_samples(PICTURES / "fluent-flat.tar", out.with_suffix(".tar"), 60)),
            classes=str(PICTURES / "classes.txt"),
            out=str(out),
            teacher=str(clip),
            encoding="topk",
        )
    )
    return open_cache(out)


def test_temperatures_that_the_encoding_does_not_serve_are_left_out(
    larger_cache: TeacherCache, cache: TeacherCache
) -> None:
    asked = [0.001, 1.0, 4.0, 1.0, 1000.0]
    assert served_temperatures(cache, asked) == [0.001, 1.0, 4.0, 1000.0]
    assert served_temperatures(larger_cache, asked) == [1.0, 4.0]


def test_three_temperatures() -> None:
    assert picture_temperatures([]) == (0.5, 1.0, 4.0)
    assert picture_temperatures([1.0, 4.0]) == (0.5, 1.0, 4.0)
    assert picture_temperatures([0.5, 1.0, 2.0, 4.0, 8.0]) == (0.5, 2.0, 8.0)


def test_pictures_have_classes_of_teacher_and_student(
    cache: TeacherCache, run_path: Path, inputs: Path, tmp_path: Path
) -> None:
    shown = describe_pictures(cache, [(2, "uncertain"), (1, "uncertain")], [0.5, 1.0], load_student(run_path))
    assert [one.key for one in shown] == cache.samples.keys(np.array([2, 1]))
    assert shown[1].label == SCRIPT
    for one, row in zip(shown, (2, 1), strict=True):
        for place, temperature in enumerate((0.5, 1.0)):
            best = cache.soft_labels([row], temperature)[0].topk(5)
            assert [name for name, _ in one.teacher] == [cache.vocabulary.names[c] for c in best.indices]
            assert [shares[place] for _, shares in one.teacher] == pytest.approx(best.values.tolist())
        file = tmp_path / f"{row}.jpg"
        file.write_bytes(ImageReader().read(cache.samples.locations(np.array([row]))[0]))
        asked = PredictSettings(student=str(run_path), classes=str(inputs / "classes.txt"))
        (expected,) = predict(asked, [file])
        assert [name for name, _ in one.student] == expected.classes
        assert [share for _, share in one.student] == pytest.approx(expected.probabilities, rel=1e-3)
        head, _, content = one.data.partition(",")
        assert head == "data:image/jpeg;base64"
        assert max(Image.open(io.BytesIO(base64.b64decode(content))).size) <= THUMBNAIL


def test_a_large_picture_becomes_a_small_one() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (900, 2000, 3), dtype=np.uint8)
    assert len(thumbnail(noise)) < 20_000


def test_the_section_of_a_sweep(sweep_path: Path, cache: TeacherCache) -> None:
    gathered = gather(sweep_path)
    section = soft_labels(gathered, cache, "")
    shown = cards(section)
    assert len(shown) == SAMPLES
    assert f"hard label: {SCRIPT}" in [card.lines[0] for card in shown]
    assert all([len(table.rows) for table in card.tables] == [5, 5] for card in shown)
    assert gathered.chosen is not None
    assert gathered.chosen[0].label in text_of(section)


def test_missing_inputs_have_a_reason(run_copy: Path, inputs: Path, cache: TeacherCache) -> None:
    (run_copy / "student.safetensors").unlink()
    section = soft_labels(gather(run_copy), cache, "")
    assert "No predictions of the student: no run is finished" in text_of(section)
    assert [len(card.tables) for card in cards(section)] == [1] * SAMPLES
    moved = inputs / "train.tar"
    os.rename(moved, inputs / "elsewhere.tar")
    try:
        section = soft_labels(gather(run_copy), open_cache(inputs / "demo.zarr"), "")
    finally:
        os.rename(inputs / "elsewhere.tar", moved)
    assert all(not card.picture and "train.tar" in card.why for card in cards(section))
    assert len(cards(section)[0].tables[0].rows) == 5, "soft labels are in the cache"
    section = soft_labels(gather(run_copy), None, "no cache at nowhere")
    assert text_of(section) == "No soft labels: no cache at nowhere"


def test_a_changed_cache_is_not_used(run_path: Path) -> None:
    record = read_settings(run_path)
    assert len(open_recorded_cache(run_path, record)) == SAMPLES
    other = {**record, "cache": {**record["cache"], "sample_table_digest": "blake2b:00"}}
    with pytest.raises(UsageError, match="is not the cache that the run was trained on"):
        open_recorded_cache(run_path, other)
    nowhere = {**record, "settings": {**record["settings"], "cache": "/nowhere.zarr"}, "from_run": {}}
    with pytest.raises(RppError, match="no cache at"):
        open_recorded_cache(run_path, nowhere)
