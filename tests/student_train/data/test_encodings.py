"""A run on a cache of every encoding trains in the mode that the encoding allows, on the right labels."""

import json
from pathlib import Path
from typing import Any

import pytest

from student_train.model.settings import PromptSettings
from student_train.training.loop import train
from student_train.training.settings import TrainSettings
from teacher_cache import open_cache
from teacher_cache.build import build_cache
from teacher_cache.command_settings import BuildSettings
from tests.student_train.conftest import PICTURES

# The largest differences allowed to the soft loss of `factored`.
SOFT_LOSS_WITHIN = {"factored": 0.0, "factored-int8": 2e-3, "topk": 2e-4, "dense": 2e-4}


@pytest.fixture(scope="module")
def caches(tmp_path_factory: pytest.TempPathFactory, clip: Path) -> dict[str, Path]:
    """The demo's student over 300 pictures of 300 classes, in every encoding; topk leaves one class out."""
    folder, made = tmp_path_factory.mktemp("encodings"), {}
    for encoding in SOFT_LOSS_WITHIN:
        made[encoding] = folder / encoding
        build_cache(
            BuildSettings(
                images=str(PICTURES / "noto.tar"),
                classes=str(PICTURES / "classes.txt"),
                out=made[encoding],
                teacher=str(clip),
                encoding=encoding,
                topk=299 if encoding == "topk" else None,
            )
        )
    return made


def run(cache: Path, out: Path, towers: str, **more: Any) -> tuple[str, list[dict[str, Any]]]:
    """Mode and metrics of three steps."""
    values: dict[str, Any] = {"max_steps": 3, "batch_size": 20, "log_every": 1, "device": "cpu", **more}
    done = train(TrainSettings(cache=cache, out=out, prompts=PromptSettings(towers=towers), **values))
    return done.mode, [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("encoding", SOFT_LOSS_WITHIN)
@pytest.mark.parametrize(
    ("towers", "more"), [("text", {}), ("both", {"temperature": 3.0, "classes_per_step": 50})]
)
def test_every_encoding_trains_on_the_same_soft_labels(
    caches: dict[str, Path], tmp_path: Path, encoding: str, towers: str, more: dict[str, Any]
) -> None:
    mode, lines = run(caches[encoding], tmp_path / "run", towers, **more)
    keeps = open_cache(caches[encoding]).keeps_image_features
    assert mode == ("features" if keeps and towers == "text" else "images")
    _, exact = run(caches["factored"], tmp_path / "exact", towers, **more)
    assert lines[0]["soft_loss"] > 0.01
    for ours, theirs in zip(lines, exact, strict=True):
        assert ours["soft_loss"] == pytest.approx(theirs["soft_loss"], abs=SOFT_LOSS_WITHIN[encoding])
        assert ours["hard_loss"] == pytest.approx(theirs["hard_loss"], rel=1e-2)
