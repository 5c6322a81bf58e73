"""Features that evaluations share: equal figures, computed once, and anew whenever something changed."""

import resource
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from student_train.evaluation.evaluate import evaluate
from student_train.evaluation.feature_store import FeatureStore, StoredFeatures
from student_train.evaluation.settings import EvalSettings
from teacher_cache.teacher.teacher import Teacher
from tests.teacher_cache.inputs import jpeg, write_names


class Counted:
    """Counts the batches of images and the class lists that towers compute."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.images = self.classes = 0
        encode, features = Teacher.image_features, Teacher.class_features

        def image_features_of(model: Teacher, pixels: torch.Tensor) -> torch.Tensor:
            self.images += 1
            return encode(model, pixels)

        def class_features_of(model: Teacher, *arguments: Any) -> torch.Tensor:
            self.classes += 1
            return features(model, *arguments)

        monkeypatch.setattr(Teacher, "image_features", image_features_of)
        monkeypatch.setattr(Teacher, "class_features", class_features_of)

    def since(self) -> tuple[int, int]:
        found = self.images, self.classes
        self.images = self.classes = 0
        return found


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counted:
    return Counted(monkeypatch)


@pytest.fixture
def evaluation(pictures: Path, tmp_path: Path, demo_cache_path: Path) -> Callable[..., EvalSettings]:
    """Settings to evaluate on a copy of 100 pictures."""
    shutil.copy(pictures / "noto.tar", tmp_path / "images.tar")

    def of(student: Path | str, **more: Any) -> EvalSettings:
        data = {"images": tmp_path / "images.tar", "classes": pictures / "classes.txt"}
        cache = {"cache": demo_cache_path} if student == "zero-shot" else {}
        return EvalSettings(student=student, metrics=("accuracy", "agreement"), **data, **cache, **more)

    return of


def test_runs_share_what_is_frozen_in_them(
    evaluation: Callable[..., EvalSettings],
    run_of: Callable[[str], Path],
    counted: Counted,
    tmp_path: Path,
) -> None:
    """On disk: each evaluation has a store of its own, as the processes of a sweep have."""
    wanted = {name: evaluate(evaluation(name)) for name in ("zero-shot", run_of("text"), run_of("vision"))}
    counted.since()
    computed = {}
    for name in wanted:
        assert evaluate(evaluation(name), FeatureStore(tmp_path / "features")) == wanted[name]
        computed[name] = counted.since()
    assert computed == {"zero-shot": (2, 1), run_of("text"): (0, 0), run_of("vision"): (2, 0)}
    assert len(list((tmp_path / "features").iterdir())) == 2  # the frozen model's images and classes


def test_without_a_folder_they_are_shared_in_memory(
    evaluation: Callable[..., EvalSettings], counted: Counted
) -> None:
    store = FeatureStore()
    first = evaluate(evaluation("zero-shot"), store)
    assert counted.since() == (2, 1)
    assert evaluate(evaluation("zero-shot"), store) == first
    assert counted.since() == (0, 0)


@pytest.mark.parametrize(
    ("change", "computed"),
    [
        ({"precision": "bf16"}, (2, 1)),
        ({"max_pixels": 10_000}, (2, 0)),
        ({"templates": "a drawing of a {}."}, (0, 1)),
        ({"class_subset": "base"}, (0, 1)),
        ({"batch_size": 50, "threads": 1, "temperature": 2.0}, (0, 0)),
    ],
)
def test_other_settings_compute_what_depends_on_them(
    evaluation: Callable[..., EvalSettings],
    counted: Counted,
    tmp_path: Path,
    change: dict[str, Any],
    computed: tuple[int, int],
) -> None:
    store = FeatureStore(tmp_path / "features")
    evaluate(evaluation("zero-shot"), store)
    wanted = evaluate(evaluation("zero-shot", **change))
    counted.since()
    assert evaluate(evaluation("zero-shot", **change), store) == wanted
    assert counted.since() == computed


def test_other_pictures_are_computed(
    evaluation: Callable[..., EvalSettings], pictures: Path, counted: Counted, tmp_path: Path
) -> None:
    store = FeatureStore(tmp_path / "features")
    first = evaluate(evaluation("zero-shot"), store)
    shutil.copy(pictures / "fluent-flat.tar", tmp_path / "images.tar")
    counted.since()
    assert evaluate(evaluation("zero-shot"), store)["top1"] != first["top1"]
    assert counted.since() == (2, 0)


def test_a_picture_that_is_changed_in_place_is_computed(
    demo_cache_path: Path, counted: Counted, tmp_path: Path
) -> None:
    """An image folder of which neither names nor sizes change."""
    (tmp_path / "images" / "cat").mkdir(parents=True)
    one, other = (jpeg(number).ljust(20_000, b"\0") for number in (1, 2))
    picture = tmp_path / "images" / "cat" / "a.jpg"
    picture.write_bytes(one)
    settings = EvalSettings(
        student="zero-shot",
        cache=demo_cache_path,
        images=tmp_path / "images",
        classes=write_names(tmp_path / "names.txt"),
    )
    store = FeatureStore(tmp_path / "features")
    evaluate(settings, store)
    counted.since()
    picture.write_bytes(other)
    evaluate(settings, store)
    assert counted.since()[0] == 1


def test_unreadable_pictures_are_stored_with_the_features(
    evaluation: Callable[..., EvalSettings], tmp_path: Path
) -> None:
    settings = evaluation("zero-shot", max_pixels=128 * 128)
    wanted = evaluate(settings)
    store = FeatureStore(tmp_path / "features")
    assert [evaluate(settings, store) for _ in range(2)] == [wanted, wanted]
    assert evaluate(settings, FeatureStore(tmp_path / "features")) == wanted


def test_a_damaged_file_is_computed_again(
    evaluation: Callable[..., EvalSettings], counted: Counted, tmp_path: Path
) -> None:
    folder = tmp_path / "features"
    first = evaluate(evaluation("zero-shot"), FeatureStore(folder))
    for number, file in enumerate(sorted(folder.iterdir())):
        file.write_bytes(b"" if number else file.read_bytes()[:-100])
    counted.since()
    assert evaluate(evaluation("zero-shot"), FeatureStore(folder)) == first
    assert counted.since() == (2, 1)
    assert evaluate(evaluation("zero-shot"), FeatureStore(folder)) == first
    assert counted.since() == (0, 0)


def test_a_folder_that_cannot_be_written_keeps_nothing(
    evaluation: Callable[..., EvalSettings], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    assert evaluate(evaluation("zero-shot"), FeatureStore(tmp_path / "file")) == evaluate(
        evaluation("zero-shot")
    )


@pytest.mark.parametrize("damage", ["a flipped bit", "of another program"])
def test_a_file_with_other_content_is_computed_again(
    evaluation: Callable[..., EvalSettings], counted: Counted, tmp_path: Path, damage: str
) -> None:
    folder = tmp_path / "features"
    first = evaluate(evaluation("zero-shot"), FeatureStore(folder))
    for file in folder.iterdir():
        content = bytearray(file.read_bytes())
        content[-1] ^= 0x40  # of the last float's exponent
        file.write_bytes(content)
        if damage == "of another program":
            save_file({"features": torch.zeros(2, 2)}, file)
    counted.since()
    assert evaluate(evaluation("zero-shot"), FeatureStore(folder)) == first
    assert counted.since() == (2, 1)


def test_on_a_full_disk_nothing_is_kept(evaluation: Callable[..., EvalSettings], tmp_path: Path) -> None:
    wanted = evaluate(evaluation("zero-shot"))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))  # safetensors fails as on a full disk
    try:
        assert evaluate(evaluation("zero-shot"), FeatureStore(tmp_path / "features")) == wanted
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert not list((tmp_path / "features").iterdir())


def test_an_image_that_can_be_read_again_is_not_left_out(
    run_of: Callable[[str], Path],
    evaluation: Callable[..., EvalSettings],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Stored features of one tower, and others of a tower that is computed now, have the same rows."""
    settings, store = evaluation(run_of("vision")), FeatureStore(tmp_path / "features")
    wanted = evaluate(settings)
    keep = FeatureStore.keep

    def as_if_unreadable(store: FeatureStore, key: dict[str, Any], found: StoredFeatures) -> None:
        if key["features"] == "images":
            found = StoredFeatures(found.features[1:], [{"row": 0, "key": "a", "reason": "busy"}])
        keep(store, key, found)

    with monkeypatch.context() as patched:
        patched.setattr(FeatureStore, "keep", as_if_unreadable)
        evaluate(evaluation("zero-shot"), store)
    assert evaluate(settings, store) == wanted
