"""Layouts of data sets: CLIP_benchmark's, CoOp's, image folders, Parquet, caches."""

import json
import re
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch

from student_train.evaluation.dataset_layouts import find_format
from student_train.evaluation.datasets import Dataset, check_dataset, open_dataset
from student_train.evaluation.evaluate import evaluate
from student_train.evaluation.image_features import cached_images, encode_images
from student_train.evaluation.models import FeatureModels
from student_train.evaluation.settings import DataSettings, EvalSettings
from student_train.model.settings import PromptSettings
from student_train.training.loop import train
from student_train.training.settings import TrainSettings
from teacher_cache import open_cache
from teacher_cache.errors import UsageError
from teacher_cache.teacher.teacher import Teacher
from tests.student_train.conftest import PICTURES, build_with
from tests.teacher_cache.inputs import jpeg, webdataset_members, write_folder, write_parquet, write_shard

NOTO, CLASSES = str(PICTURES / "noto.tar"), str(PICTURES / "classes.txt")


def write_clip_benchmark(folder: Path, names: list[str], shards: int = 2, **files: str) -> Path:
    """A data set in CLIP_benchmark's layout: five classes, six pictures per shard."""
    for shard in range(shards):
        write_shard(folder / "test" / f"{shard}.tar", webdataset_members(6 * shard, 6))
    (folder / "test" / "nshards.txt").write_text(f"{shards}\n")
    (folder / "classnames.txt").write_text("\n".join(names) + "\n")
    for name, content in files.items():
        (folder / f"{name}.txt").write_text(content)
    return folder


def opened(images: Path | str, **others: Any) -> Dataset:
    return open_dataset(DataSettings(images=str(images), **others))


def test_clip_benchmarks_layout(tmp_path: Path) -> None:
    folder = write_clip_benchmark(
        tmp_path,
        ["7", "cat", "cat", 'dog, "hot"', "猫"],
        zeroshot_classification_templates="a photo of {c}.\nart of the {c}\n",
    )
    dataset = opened(folder)
    assert find_format(DataSettings(images=str(folder))) == "clip-benchmark"
    assert dataset.vocabulary.names == ("7", "cat", "cat", 'dog, "hot"', "猫")
    assert dataset.vocabulary.templates == ("a photo of {}.", "art of the {}")
    assert dataset.labels.tolist() == [n % 5 for n in range(12)], (
        "labels are line numbers, whatever the names"
    )
    assert opened(folder, templates="a {} drawn").vocabulary.templates == ("a {} drawn",)


def test_classes_that_are_called_by_numbers_keep_their_lines(tmp_path: Path) -> None:
    assert opened(write_clip_benchmark(tmp_path, ["5", "4", "1", "2", "3"])).labels.tolist() == [
        n % 5 for n in range(12)
    ]


@pytest.mark.parametrize("templates", [None, "{} from above"])
def test_a_data_sets_templates_go_before_the_models(
    demo_cache_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, templates: str | None
) -> None:
    folder = write_clip_benchmark(
        tmp_path, ["cat", "dog", "owl", "eel", "urchin"], zeroshot_classification_templates="a {c} drawn"
    )
    read, seen = Teacher.class_features, []
    monkeypatch.setattr(
        Teacher, "class_features", lambda self, names: seen.append(names.templates) or read(self, names)
    )
    evaluate(
        EvalSettings(student="zero-shot", cache=str(demo_cache_path), images=str(folder), templates=templates)
    )
    assert seen == [(templates or "a {} drawn",)]


def test_shards_beyond_nshards_are_not_read(tmp_path: Path) -> None:
    folder = write_clip_benchmark(tmp_path, list("abcde"), shards=3)
    (folder / "test" / "nshards.txt").write_text("2")
    assert len(opened(folder).labels) == 12
    (folder / "test" / "nshards.txt").unlink()
    assert len(opened(folder).labels) == 18


def test_synsets_in_clip_benchmarks_class_names_are_no_part_of_the_names(tmp_path: Path) -> None:
    dataset = opened(
        write_clip_benchmark(tmp_path, [f"n0144076{n} {name}" for n, name in enumerate("abcde")])
    )
    assert dataset.vocabulary.names == tuple("abcde")
    assert dataset.labels.tolist() == [n % 5 for n in range(12)]
    assert any("start with a synset" in note for note in dataset.notes)


def test_contradictory_labels_need_a_choice_and_leftovers_are_told(tmp_path: Path) -> None:
    members = [("._0.jpg", b"\0\5\26\7"), ("0.jpg", jpeg(0)), ("0.json", b'{"label": 1}'), ("0.cls", b"0")]
    shard = write_shard(tmp_path / "s.tar", members)
    (tmp_path / "c.txt").write_text("0: cat\n1: dog\n")
    with pytest.raises(UsageError, match=r"contradict one another .*choose with --labels"):
        opened(shard, classes=str(tmp_path / "c.txt"))
    dataset = opened(shard, classes=str(tmp_path / "c.txt"), labels="json")
    assert (dataset.labels.tolist(), dataset.vocabulary.names) == ([1], ("cat", "dog"))
    for said in ("passed over 1 leftover of macOS", "contradict", "start with a number"):
        assert any(said in note for note in dataset.notes), said


@pytest.mark.parametrize(
    ("files", "others", "message"),
    [
        ({"classnames": "a\n\nc\nd\ne\n"}, {}, r"classnames.txt: line 2 is empty"),
        ({"classnames": "a\nb\nc\nd\ne\n\n"}, {}, r"classnames.txt: line 6 is empty"),
        ({"classnames": ""}, {}, r"classnames.txt has no class names"),
        ({"classnames": "a\nb\n"}, {}, r"has the label 2, but the vocabulary has 2 classes"),
        ({"dataset_type": "retrieval"}, {}, "is a data set for retrieval"),
        ({"test/nshards": "two"}, {}, r"nshards.txt: expected the number of shards, found 'two'"),
        ({"test/nshards": "3"}, {}, r"2.tar does not exist"),
        ({}, {"split": "val"}, "has no split 'val'; it has test"),
        ({}, {"format": "coop"}, "has the layout 'clip-benchmark', not 'coop'"),
    ],
)
def test_errors_in_clip_benchmarks_layout_are_one_line(
    tmp_path: Path, files: dict[str, str], others: dict[str, Any], message: str
) -> None:
    folder = write_clip_benchmark(tmp_path, list("abcde"), **files)
    with pytest.raises(UsageError, match=message) as error:
        opened(folder, **others)
    assert "\n" not in str(error.value)


def write_coop(folder: Path) -> Path:
    items = [
        [f"{name}/{n}.jpg", c, name] for c, name in enumerate(("abyssinian", "beagle")) for n in range(2)
    ]
    for number, (place, *_) in enumerate(items):
        (folder / "images" / place).parent.mkdir(parents=True, exist_ok=True)
        (folder / "images" / place).write_bytes(jpeg(number, 16, 16))
    path = folder / "split_zhou_Pets.json"
    path.write_text(json.dumps({"train": items[1:], "val": [], "test": items[:3]}))
    return path


def test_coops_split_brings_its_classes_and_is_tested_on_its_test_part(tmp_path: Path) -> None:
    path = write_coop(tmp_path)
    assert opened(path).labels.tolist() == [0, 0, 1]
    assert opened(path, split="train").labels.tolist() == [0, 1, 1]
    assert opened(f"{path}#train").labels.tolist() == [0, 1, 1]
    assert opened(path).vocabulary.names == ("abyssinian", "beagle")
    assert opened(path).vocabulary.templates == ()
    (tmp_path / "other.txt").write_text("beagle\nabyssinian\n")
    assert opened(path, classes=str(tmp_path / "other.txt")).labels.tolist() == [1, 1, 0]


def test_folders_tars_and_parquet_need_class_names(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "images")
    shard = write_shard(tmp_path / "shard.tar", webdataset_members(0, 5))
    parquet = write_parquet(
        tmp_path / "rows.parquet", [{"bytes": jpeg(n), "path": None} for n in range(5)], labels=range(5)
    )
    names = tmp_path / "names.txt"
    names.write_text("cat\ndog\ngreat horned owl\naxolotl\nsea urchin\n")
    for source, form in ((folder, "folder"), (shard, "tars"), (parquet, "parquet")):
        assert find_format(DataSettings(images=str(source))) == form
        assert sorted(set(opened(source, classes=str(names)).labels.tolist())) == [0, 1, 2, 3, 4]
        with pytest.raises(UsageError, match="has no class names; give a vocabulary with --classes"):
            check_dataset(DataSettings(images=str(source)))


def test_present_classes_are_those_with_images(tmp_path: Path) -> None:
    labels = dict(enumerate((3, 0, 3, 0, -1)))
    shard = write_shard(tmp_path / "shard.tar", webdataset_members(0, 5, labels=labels))
    names = tmp_path / "names.txt"
    names.write_text("\n".join("abcde"))
    assert opened(shard, classes=str(names), class_subset="present").classes.tolist() == [0, 3]
    assert opened(shard, classes=str(names), class_subset="new").classes.tolist() == [3, 4]
    assert opened(shard, classes=str(names)).classes.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("images", ["nowhere.json", "nowhere.zarr", "nowhere.tar", "nowhere"])
def test_missing_images_are_named(images: str) -> None:
    with pytest.raises(UsageError, match=images):
        check_dataset(DataSettings(images=images, classes=CLASSES if "zarr" not in images else None))


@pytest.fixture(scope="module")
def text_run(demo_cache_path: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("runs") / "text"
    prompts = PromptSettings(towers="text")
    train(TrainSettings(cache=demo_cache_path, out=out, prompts=prompts, batch_size=30, epochs=2))
    return str(out)


def test_a_caches_features_give_the_figures_that_its_images_give(
    demo_cache_path: Path, text_run: str
) -> None:
    """Features in the cache are rounded to float16: no logit may change by more than that."""
    metrics = ("accuracy", "calibration", "agreement", "base-to-new")
    for student in ("zero-shot", text_run):
        asked = EvalSettings(
            student=student, cache=str(demo_cache_path), images=NOTO, classes=CLASSES, metrics=metrics
        )
        from_images = evaluate(asked)
        from_cache = evaluate(asked.model_copy(update={"images": str(demo_cache_path), "classes": None}))
        for figure in ("top1", "top5", "per_class", "base", "new", "harmonic", "agreement", "samples"):
            assert from_cache[figure] == from_images[figure], figure
        for figure in ("ece", "kl"):
            assert from_cache[figure] == pytest.approx(from_images[figure], abs=2e-4)
        assert 0.1 < from_images["top1"] < 1
    models = [FeatureModels().load(asked.model_copy(update={"student": student})).model]
    cached = cached_images(models, open_cache(demo_cache_path)).features[models[0].image_tower]
    computed = encode_images(models, open_cache(demo_cache_path).samples).features[models[0].image_tower]
    torch.testing.assert_close(cached, computed, atol=2**-11, rtol=0)


def test_a_cache_of_other_features_is_refused(
    demo_cache_path: Path, cache_path: Path, text_run: str, tmp_path: Path
) -> None:
    asked = EvalSettings(student=text_run, images=str(cache_path))
    with pytest.raises(UsageError, match="evaluate this model on images"):
        evaluate(asked)
    with pytest.raises(UsageError, match="evaluate this model on images"):
        evaluate(asked.model_copy(update={"images": str(demo_cache_path), "precision": "bf16"}))
    train(
        TrainSettings(
            cache=demo_cache_path, out=tmp_path / "run", prompts=PromptSettings(towers="vision"), max_steps=1
        )
    )
    with pytest.raises(UsageError, match="the student has image prompts") as refused:
        evaluate(asked.model_copy(update={"student": str(tmp_path / "run"), "images": str(demo_cache_path)}))
    assert str(refused.value).endswith(": evaluate this model on images")
    assert not re.search(r"prompts of \d", str(refused.value))


def test_images_that_a_cache_could_not_read_are_counted(demo_cache_path: Path, tmp_path: Path) -> None:
    with tarfile.open(NOTO) as tar:
        members = [(member.name, tar.extractfile(member).read()) for member in tar][:60]  # type: ignore[union-attr]
    first = next(number for number, (name, _) in enumerate(members) if name.endswith(".jpg"))
    members[first] = (members[first][0], b"no picture")
    shard = write_shard(tmp_path / "damaged.tar", members)
    cache = build_with(
        Path(open_cache(demo_cache_path).teacher["model"].removeprefix("local-dir:")),
        tmp_path / "c.zarr",
        str(shard),
    )
    asked = EvalSettings(student="zero-shot", cache=str(cache), images=str(cache))
    from_cache = evaluate(asked)
    from_images = evaluate(asked.model_copy(update={"images": str(shard), "classes": CLASSES}))
    assert from_cache["skipped"] == from_images["skipped"] == 1
    for figure in ("samples", "top1", "top5"):
        assert from_cache[figure] == from_images[figure]
