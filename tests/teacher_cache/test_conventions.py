"""A weights file from its build to its evaluation: what it was loaded with is recorded and used again."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from pydantic import ValidationError

from student_train.evaluation.evaluate import evaluate
from student_train.evaluation.settings import EvalSettings
from student_train.model.settings import PromptSettings
from student_train.model.student import load_student
from student_train.training.loop import train
from student_train.training.settings import TrainSettings
from teacher_cache import open_cache
from teacher_cache.build import build_cache
from teacher_cache.command_settings import BuildSettings, ExtendSettings, RelabelSettings
from teacher_cache.conventions import ConventionOptions, described, recorded_conventions
from teacher_cache.errors import CacheMismatchError, RppError, UsageError
from teacher_cache.extend import extend_cache
from teacher_cache.relabel import relabel_cache
from teacher_cache.store.cache_store import CacheStore
from teacher_cache.store.header_objects import header_objects
from teacher_cache.teacher.openclip import load_model
from tests.models import CONFIGS, loaded
from tests.teacher_cache.conftest import Run
from tests.teacher_cache.inputs import settings
from tests.teacher_cache.teacher.archives import write_openai

HALF = (0.5, 0.5, 0.5)
TAGS: dict[str, dict[str, Any]] = {
    "openai": {"quick_gelu": True},
    "other": {"mean": HALF, "std": HALF, "interpolation": "bilinear", "resize_mode": "squash"},
}
OPENAI = {"mean": list(open_clip.OPENAI_DATASET_MEAN), "quick_gelu": True, "resize_mode": "shortest"}


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small models in open_clip's registry: `tiny` with tags that differ, `half` with tags that agree."""
    for name, tags in {"tiny": TAGS, "half": {"a": TAGS["other"], "b": TAGS["other"]}}.items():
        monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, name, CONFIGS["gelu"])
        monkeypatch.setitem(open_clip.pretrained._PRETRAINED, name, tags)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "weights.pt"
    torch.save({"state_dict": loaded("gelu").model.state_dict()}, path)
    return path


@pytest.fixture
def build(shards: Path, names: Path, weights: Path, tmp_path: Path) -> Any:
    def built(out: str = "zarr", model: str = "tiny", notes: list[str] | None = None, **more: Any) -> Path:
        asked = settings(shards, names, tmp_path / out, Path(model), **{"pretrained": str(weights)} | more)
        build_cache(asked, (notes if notes is not None else []).append)
        return tmp_path / out

    return built


def teacher_of(cache: Path) -> dict[str, Any]:
    return open_cache(cache).teacher


def forget(cache: Path) -> None:
    """Make a cache one of an earlier version, which recorded no source."""
    store = CacheStore.open(cache)
    teacher = {name: x for name, x in store.header.teacher.items() if name != "conventions_from"}
    older = replace(store.header, teacher=teacher)
    for key, content in header_objects(older, store.samples_checksum).items():
        (cache / key).write_bytes(content)


def test_a_file_whose_conventions_are_not_known_is_refused(build: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"weights.pt does not contain its conventions.*--weights-like TAG"):
        build()
    assert not (tmp_path / "zarr").exists()
    cache = build(weights_like="openai")
    assert OPENAI.items() <= teacher_of(cache).items()
    assert teacher_of(cache)["conventions_from"] == "tag openai (--weights-like)"
    other = teacher_of(build("other", weights_like="other"))
    assert (other["quick_gelu"], other["mean"], other["interpolation"]) == (False, [0.5] * 3, "bilinear")
    assert other["weights_digest"] != teacher_of(cache)["weights_digest"]


def test_a_file_has_the_conventions_in_which_all_tags_agree(build: Any) -> None:
    notes: list[str] = []
    record = teacher_of(build(model="half", notes=notes))
    assert (record["quick_gelu"], record["std"], record["resize_mode"]) == (False, [0.5] * 3, "squash")
    assert "weights.pt: GELU; mean 0.5, 0.5, 0.5; " in notes[0]
    assert notes[0].endswith("(all tags of half: a, b)")


def test_pixels_are_normalised_as_stated(build: Any) -> None:
    stated = {"quick_gelu": False, "mean": HALF, "std": HALF, "interpolation": "bilinear"}
    one, other = build("one", weights_like="other"), build("two", **stated, resize_mode="squash")
    features = open_cache(one).image_features(slice(None))
    assert torch.equal(features, open_cache(other).image_features(slice(None)))
    wrong = build("wrong", **stated, resize_mode="shortest")
    assert not torch.equal(features, open_cache(wrong).image_features(slice(None)))


def test_an_archive_of_openai_runs_with_quick_gelu(build: Any, tmp_path: Path) -> None:
    path = write_openai(tmp_path / "ViT.pt", "gelu")
    cache = build(pretrained=str(path))
    assert OPENAI.items() <= teacher_of(cache).items()
    same = load_model("tiny", str(path), conventions=ConventionOptions(quick_gelu=True))
    assert teacher_of(cache)["weights_digest"] == same.digest


def test_a_folder_is_overridden_and_says_what_it_lacks(teacher: Path, build: Any, tmp_path: Path) -> None:
    notes: list[str] = []
    record = teacher_of(build(model=str(teacher), pretrained=None, mean=HALF, notes=notes))
    assert record["mean"] == [0.5] * 3
    assert record["std"] == [0.27, 0.26, 0.28]
    assert record["conventions_from"] == "options --mean; open_clip_config.json"
    assert notes == []
    bare = shutil.copytree(teacher, tmp_path / "bare")
    config = json.loads((bare / "open_clip_config.json").read_text())
    (bare / "open_clip_config.json").write_text(json.dumps({"model_cfg": config["model_cfg"]}))
    build("bare-zarr", model=str(bare), pretrained=None, notes=notes)
    assert "has no preprocess_cfg with mean and std; those of OpenAI's models are assumed" in notes[0]


def test_everything_after_the_build_uses_what_it_recorded(
    build: Any, weights: Path, shards: Path, names: Path, tmp_path: Path, run: Run
) -> None:
    cache = build(weights_like="other")
    moved = weights.rename(tmp_path / "moved.pt")
    extend_cache(str(cache), ExtendSettings(views=2, teacher="tiny", pretrained=str(moved), device="cpu"))
    relabel_cache(
        str(cache),
        RelabelSettings(name="b", classes=str(names), teacher="tiny", pretrained=str(moved), device="cpu"),
    )
    assert "conventions_from tag other (--weights-like)" in run("info", cache)[1]
    out = tmp_path / "run"
    asked = TrainSettings(
        cache=cache,
        student="tiny",
        pretrained=str(moved),
        out=out,
        prompts=PromptSettings(towers="both", prompt_length=2),
        max_steps=1,
        batch_size=4,
        device="cpu",
        workers=0,
    )
    without_file = asked.model_copy(update={"pretrained": None, "weights_like": "openai"})
    with pytest.raises(UsageError, match="--weights-like openai is for a weights file; give the file with"):
        train(without_file)
    train(asked)
    train(asked.model_copy(update={"resume": True}))
    student = load_student(out)
    assert student.base.conventions.fields == recorded_conventions(teacher_of(cache)).fields
    assert student.base.preprocess.mean == HALF
    again = moved.rename(tmp_path / "again.pt")
    figures = evaluate(
        EvalSettings(student=str(out), pretrained=str(again), images=str(shards), classes=str(names))
    )
    assert figures["student"] == str(out)
    student.save_pretrained(tmp_path / "hub")
    assert load_student(tmp_path / "hub", "tiny", str(again)).base.preprocess.mean == HALF


def test_a_student_model_of_another_file_needs_its_conventions(
    build: Any, weights: Path, tmp_path: Path
) -> None:
    cache = build(weights_like="other")
    torch.save(loaded("gelu", 1).model.state_dict(), tmp_path / "student.pt")
    asked = TrainSettings(
        cache=cache, student="tiny", pretrained=str(tmp_path / "student.pt"), out=tmp_path / "run"
    )
    small = {"max_steps": 1, "batch_size": 4, "device": "cpu", "workers": 0}
    with pytest.raises(UsageError, match="add --weights-like TAG"):
        train(asked.model_copy(update=small))
    train(asked.model_copy(update=small | {"weights_like": "openai"}))
    assert load_student(tmp_path / "run").base.conventions.source == "tag openai (--weights-like)"
    features = build("features", pretrained=str(tmp_path / "student.pt"), weights_like="openai", mean=HALF)
    more = {"weights_like": "openai", "student_features": str(features), "out": tmp_path / "other"}
    text_only = {"prompts": PromptSettings(towers="text", prompt_length=2)}
    with pytest.raises(UsageError, match=r"with other conventions than the student's model: mean"):
        train(asked.model_copy(update=small | more | text_only))


def test_a_build_is_resumed_with_what_the_cache_records(build: Any) -> None:
    cache = build(weights_like="other")
    notes: list[str] = []
    assert build(notes=notes) == cache
    assert notes == []
    with pytest.raises(CacheMismatchError, match="quick_gelu: stored False, requested True"):
        build(weights_like="openai")


def test_a_cache_of_an_earlier_version_continues_with_a_warning(
    build: Any, weights: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It ran with the configuration's GELU and open_clip's default preprocessing."""
    unknown = build("unknown", quick_gelu=False, **earlier())
    agreed = build("agreed", model="half", **earlier())
    for cache, model, warning in (
        (unknown, "tiny", "if the weights have other conventions, build a new cache"),
        (agreed, "half", "mean 0.481455, 0.457827, 0.408211, not 0.5, 0.5, 0.5"),
    ):
        forget(cache)
        notes: list[str] = []
        build(cache.name, model=model, notes=notes)
        assert warning in notes[0]
        extend_cache(str(cache), ExtendSettings(views=2, device="cpu"))
        assert warning in caplog.text
        assert open_cache(cache).num_views == 2


def earlier() -> dict[str, Any]:
    return {
        "mean": open_clip.OPENAI_DATASET_MEAN,
        "std": open_clip.OPENAI_DATASET_STD,
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    }


def test_the_record_of_a_teacher_is_checked(build: Any) -> None:
    record = teacher_of(build(weights_like="other"))
    assert recorded_conventions({"model": "x"}) is None
    for damage in ({"std": [0, 1, 1]}, {"mean": [1, 2]}, {"mean": "x"}, {"resize_mode": "x"}):
        with pytest.raises(UsageError, match="the record of the teacher is damaged"):
            recorded_conventions(record | damage)


@pytest.mark.parametrize(
    "stated",
    [
        {"std": (0.0, 1.0, 1.0)},
        {"mean": (1.0, 2.0)},
        {"mean": (float("nan"),) * 3},
        {"mean": (123.675, 116.28, 103.53)},
        {"std": (58.395, 57.12, 57.375)},
    ],
)
def test_options_are_checked(stated: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ConventionOptions(**stated)


def test_a_tokenizer_that_cannot_be_fetched_is_named(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("transformers")
    text = {**CONFIGS["gelu"]["text_cfg"], "hf_tokenizer_name": str(tmp_path / "nowhere")}
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "half", CONFIGS["gelu"] | {"text_cfg": text})
    with pytest.raises(RppError, match=r"the tokenizer of half could not be fetched: .* weights are a file"):
        load_model("half", str(weights))


def test_options_of_the_command_line(run: Run, build: Any, arguments: dict[str, Any], weights: Path) -> None:
    words = [x for pair in (arguments | {"--teacher": "tiny", "--pretrained": weights}).items() for x in pair]
    words += ["--no-quick-gelu", "--mean", 0.5, 0.5, 0.5, "--std", 0.5, 0.5, 0.5, "--resize-mode", "squash"]
    code, _, errors = run("build", *words)
    assert (code, "also takes --interpolation)" in errors) == (2, True)
    code, _, errors = run("build", *words, "--mean", 123.675, 116.28, 103.53)
    assert (code, "divide those for pixels of 0 to 255" in " ".join(errors.split())) == (2, True)
    code, _, errors = run("build", *words, "--interpolation", "bilinear")
    assert code == 0
    assert "options --no-quick-gelu, --mean, --std, --interpolation, --resize-mode" in errors
    assert isinstance(BuildSettings.model_fields["mean"].description, str)
    assert described(teacher_of(arguments["--out"])).startswith("GELU; mean 0.5, 0.5, 0.5; ")
