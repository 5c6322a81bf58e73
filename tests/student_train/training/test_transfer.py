"""Prompts that travel: a run that starts from another run's prompts, on another cache with other classes."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from student_train.model.settings import PromptSettings
from student_train.model.student import load_student
from student_train.training.loop import train
from student_train.training.settings import TrainSettings
from teacher_cache import open_cache
from teacher_cache.errors import UsageError
from tests.student_train.conftest import PICTURES, build, build_with
from tests.student_train.training.test_loop import assert_same_result, metrics, result, settings


@pytest.fixture(scope="module")
def pretrained(cache_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pretrained") / "run"
    train(settings(cache_path, out, towers="both", max_steps=4, lr=0.05))
    return out


@pytest.fixture(scope="module")
def other_cache(cache_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same teacher over other pictures, in another order of the classes."""
    folder = tmp_path_factory.mktemp("other")
    names = (PICTURES / "classes.txt").read_text(encoding="utf-8").splitlines()
    (folder / "classes.txt").write_text("\n".join(reversed(names)), encoding="utf-8")
    teacher = Path(open_cache(cache_path).teacher["model"])
    return build_with(teacher, folder / "other.zarr", str(PICTURES / "noto-v1.tar"), folder / "classes.txt")


def from_prompts(cache: Path, out: Path, init: Path, **others: Any) -> TrainSettings:
    return settings(cache, out, towers="both", init=init, max_steps=3, **others)


def test_a_run_starts_from_the_prompts_of_another(
    pretrained: Path, other_cache: Path, tmp_path: Path
) -> None:
    train(from_prompts(other_cache, tmp_path / "still", pretrained, lr=1e-20))
    before, after = result(pretrained), result(tmp_path / "still")
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    train(from_prompts(other_cache, tmp_path / "moved", pretrained / "student.safetensors", shots=1))
    assert any(not torch.equal(tensor, before[name]) for name, tensor in result(tmp_path / "moved").items())
    record = json.loads((tmp_path / "moved" / "settings.json").read_text())
    assert record["init"].startswith("blake2b:")
    train(settings(other_cache, tmp_path / "scratch", towers="both", max_steps=3))
    assert metrics(tmp_path / "scratch")[0]["loss"] != metrics(tmp_path / "moved")[0]["loss"]


@pytest.mark.parametrize("frozen", ["text", "vision"])
def test_frozen_prompts_do_not_change(
    pretrained: Path, other_cache: Path, tmp_path: Path, frozen: str
) -> None:
    train(from_prompts(other_cache, tmp_path / "frozen", pretrained, freeze=frozen))
    train(from_prompts(other_cache, tmp_path / "free", pretrained))
    before, after, free = result(pretrained), result(tmp_path / "frozen"), result(tmp_path / "free")
    for name in before:
        stays = name.startswith(frozen)
        assert torch.equal(before[name], after[name]) == stays, name
        assert not torch.equal(before[name], free[name]), name
    never_read = json.loads((tmp_path / "frozen" / "settings.json").read_text())["never_read"]
    learns = {"text": "vision", "vision": "text"}[frozen]
    assert [line.split(":")[0] for line in never_read] == [learns], "frozen prompts are not mentioned"
    ours, theirs = metrics(tmp_path / "frozen")[0], metrics(tmp_path / "free")[0]
    assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-6)  # the first step sees equal prompts


def test_a_stopped_run_resumes_without_the_run_it_started_from(
    pretrained: Path, other_cache: Path, tmp_path: Path
) -> None:
    init = tmp_path / "init.safetensors"
    init.write_bytes((pretrained / "student.safetensors").read_bytes())
    train(from_prompts(other_cache, tmp_path / "whole", init))
    late = tmp_path / "late"
    train(from_prompts(other_cache, late, init, checkpoint_every=2))
    (late / "student.safetensors").unlink()
    init.unlink()
    train(from_prompts(other_cache, late, init, checkpoint_every=2, resume=True))
    assert_same_result(tmp_path / "whole", late)


def test_without_a_checkpoint_a_run_resumes_from_the_same_prompts_only(
    pretrained: Path, other_cache: Path, tmp_path: Path
) -> None:
    """Killed between its first line of metrics and its first checkpoint: it starts from --init again."""
    out = tmp_path / "run"
    train(from_prompts(other_cache, tmp_path / "whole", pretrained))
    train(from_prompts(other_cache, out, pretrained))
    (out / "student.safetensors").unlink()
    (out / "checkpoint.safetensors").unlink()
    for other in (tmp_path / "whole", None):
        asked = from_prompts(other_cache, out, pretrained, resume=True).model_copy(update={"init": other})
        with pytest.raises(
            UsageError, match=r"created with different settings \(prompts of --init: stored blake2b:"
        ):
            train(asked)
    train(from_prompts(other_cache, out, pretrained, resume=True))
    assert_same_result(tmp_path / "whole", out)


def test_prompts_that_do_not_fit_are_refused_with_the_reason(
    pretrained: Path, cache_path: Path, tmp_path: Path
) -> None:
    other = PromptSettings(prompt_depth=2, prompt_length=5)
    with pytest.raises(UsageError, match=r"--prompt-depth stored its default, requested 2; --prompt-length"):
        train(TrainSettings(cache=str(cache_path), out=tmp_path / "a", init=pretrained, prompts=other))
    with pytest.raises(UsageError, match="--towers stored both, requested text"):
        train(settings(cache_path, tmp_path / "b", towers="text", init=pretrained))
    with pytest.raises(UsageError, match="no student at"):
        train(settings(cache_path, tmp_path / "c", towers="both", init=tmp_path / "nowhere"))
    another = build(tmp_path, "quickgelu")
    with pytest.raises(UsageError, match="was trained on weights"):
        train(settings(another, tmp_path / "d", towers="both", init=pretrained))
    assert not (tmp_path / "d").exists()
    with pytest.raises(UsageError, match="start from a run, --init RUN"):
        settings(cache_path, tmp_path / "e", towers="both", freeze="text")
    with pytest.raises(UsageError, match="needs --towers both, not text"):
        settings(cache_path, tmp_path / "e", towers="text", freeze="text", init=pretrained)
    assert load_student(pretrained).settings.prompt_length == 3


def test_prompts_with_other_fixed_words_are_refused(cache_path: Path, tmp_path: Path) -> None:
    """The same prompts with other words behind them are another function."""
    first = settings(cache_path, tmp_path / "first", max_steps=1)
    words = first.prompts.model_copy(update={"fixed_words": "of a"})
    train(first.model_copy(update={"prompts": words}))
    with pytest.raises(UsageError, match="--fixed-words stored 'of a', requested ''"):
        train(settings(cache_path, tmp_path / "second", max_steps=1, init=tmp_path / "first"))


def test_a_tower_of_depth_0_leaves_nothing_to_learn(cache_path: Path, tmp_path: Path) -> None:
    asked = settings(cache_path, tmp_path / "run", towers="both", init=tmp_path)
    prompts = asked.prompts.model_copy(update={"vision_prompt_depth": 0})
    with pytest.raises(
        UsageError, match="--freeze text leaves nothing to learn: the vision tower has prompt"
    ):
        TrainSettings(**{**dict(asked), "prompts": prompts, "freeze": "text"})
