"""Another vocabulary on the same image features equals a build with that vocabulary."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from teacher_cache import open_cache
from teacher_cache.build import build_cache
from teacher_cache.command_settings import RelabelSettings
from teacher_cache.errors import UsageError
from teacher_cache.relabel import relabel_cache
from teacher_cache.store.cache_store import CacheStore
from teacher_cache.store.local_folder import LocalFolder
from teacher_cache.store.verify import verify_store
from tests.models import write_model
from tests.teacher_cache.conftest import Run
from tests.teacher_cache.inputs import ANIMALS, settings, write_names

GERMAN = {"cat": "Katze", "great horned owl": "Virginia-Uhu", "dog": "Hund", "sea urchin": "Seeigel"}


@pytest.fixture
def copy(cache: Path, tmp_path: Path) -> Path:
    """A cache that a test may change."""
    shutil.copytree(cache, tmp_path / "zarr")
    return tmp_path / "zarr"


@pytest.fixture
def german(tmp_path: Path) -> RelabelSettings:
    """Four of the five classes, in another order and language, with their ids."""
    lines = ["id,name", *(f"{identity},{name}" for identity, name in GERMAN.items())]
    (tmp_path / "german.csv").write_text("\n".join(lines))
    return RelabelSettings(
        name="german", classes=str(tmp_path / "german.csv"), templates="ein Foto von {}.", device="cpu"
    )


def test_logits_equal_those_of_a_build_with_that_vocabulary(
    copy: Path, german: RelabelSettings, teacher: Path, shards: Path, tmp_path: Path
) -> None:
    result = relabel_cache(str(copy), german)
    assert (result.classes, result.labelled_classes, result.written) == (4, 4, True)
    found = open_cache(copy, vocabulary="german")
    assert found.vocabulary.names == tuple(GERMAN.values())
    # five classes of the shards' labels: the build that is compared needs as many
    write_names(tmp_path / "five.txt", [*GERMAN.values(), "Axolotl"])
    asked = settings(shards, tmp_path / "five.txt", tmp_path / "built", teacher, templates="ein Foto von {}.")
    build_cache(asked)
    built = open_cache(tmp_path / "built").logits(slice(None))[:, :4]
    torch.testing.assert_close(found.logits(slice(None)), built, rtol=0, atol=1e-4)
    torch.testing.assert_close(
        found.soft_labels([3, 1], temperature=2.0), torch.softmax(built[[3, 1]] / 2, dim=1)
    )
    assert not verify_store(CacheStore.open(copy))


def test_labels_follow_the_ids_and_are_missing_for_unknown_ids(
    copy: Path, german: RelabelSettings, tmp_path: Path
) -> None:
    relabel_cache(str(copy), german)
    ids = list(GERMAN)
    expected = [ids.index(ANIMALS[c]) if ANIMALS[c] in ids else -1 for c in open_cache(copy).labels]
    assert -1 in expected
    assert open_cache(copy, "german").labels.tolist() == expected
    words = write_names(tmp_path / "words.txt", GERMAN.values())
    relabel_cache(str(copy), RelabelSettings(name="words", classes=str(words), device="cpu"))
    assert set(open_cache(copy, "words").labels.tolist()) == {-1}


def test_new_templates_and_those_of_the_cache(copy: Path, names: Path) -> None:
    asked = {"classes": str(names), "device": "cpu"}
    relabel_cache(str(copy), RelabelSettings(name="same", **asked))
    relabel_cache(str(copy), RelabelSettings(name="drawn", templates="a drawing of a {}.", **asked))
    default, same, drawn = (open_cache(copy, name) for name in (None, "same", "drawn"))
    assert same.vocabulary == default.vocabulary
    np.testing.assert_array_equal(same.class_features, default.class_features)
    np.testing.assert_array_equal(drawn.labels, default.labels)
    assert drawn.vocabulary.templates == ("a drawing of a {}.",)
    assert (drawn.class_features - default.class_features).abs().max() > 0.01


def test_a_taken_name_is_refused_unless_it_is_the_same(copy: Path, german: RelabelSettings) -> None:
    assert relabel_cache(str(copy), german).written
    assert not relabel_cache(str(copy), german).written
    for change in ({"templates": "{}"}, {"name": "animals"}):
        with pytest.raises(UsageError, match=r"has another vocabulary '(german|animals)'"):
            relabel_cache(str(copy), german.model_copy(update=change))
    with pytest.raises(UsageError, match="invalid vocabulary name 'a/b'"):
        relabel_cache(str(copy), german.model_copy(update={"name": "a/b"}))
    with pytest.raises(UsageError, match="has no vocabulary 'greek', only animals, german"):
        open_cache(copy, "greek")


def test_a_damaged_vocabulary_is_written_again(copy: Path, german: RelabelSettings) -> None:
    relabel_cache(str(copy), german)
    before = open_cache(copy, "german").class_features
    for key in ("zarr.json", "class_features/c/0/0"):
        path = copy / "vocabularies" / "german" / key
        path.write_bytes(path.read_bytes().replace(b"Katze", b"Tatze")[:-1] + b"}")
        assert verify_store(CacheStore.open(copy)).tables == ["vocabularies/german"]
        assert relabel_cache(str(copy), german).written
        assert not verify_store(CacheStore.open(copy))
        torch.testing.assert_close(open_cache(copy, "german").class_features, before, rtol=0, atol=0)


@pytest.mark.parametrize("written", range(3))
def test_a_vocabulary_that_was_not_completed_does_not_exist(
    written: int, copy: Path, german: RelabelSettings, monkeypatch: Any
) -> None:
    write, left = LocalFolder.write, [written]

    def stopping(self: LocalFolder, key: str, content: bytes) -> None:
        if not left[0]:
            raise RuntimeError("stopped")
        left[0] -= 1
        write(self, key, content)

    with monkeypatch.context() as patched:
        patched.setattr(LocalFolder, "write", stopping)
        with pytest.raises(RuntimeError, match="stopped"):
            relabel_cache(str(copy), german)
    with pytest.raises(UsageError, match="has no vocabulary 'german'"):
        open_cache(copy, "german")
    assert not verify_store(CacheStore.open(copy))
    assert relabel_cache(str(copy), german).written
    assert open_cache(copy, "german").vocabulary.names == tuple(GERMAN.values())


def test_another_teacher_is_refused_and_a_moved_one_accepted(
    copy: Path, german: RelabelSettings, teacher: Path, tmp_path: Path
) -> None:
    other = write_model(tmp_path / "other", "gelu", seed=1)
    with pytest.raises(UsageError, match=r"has weights .*, the cache was made with"):
        relabel_cache(str(copy), german.model_copy(update={"teacher": str(other)}))
    shutil.copytree(teacher, tmp_path / "moved")
    assert relabel_cache(str(copy), german.model_copy(update={"teacher": str(tmp_path / "moved")})).written


def test_statistics_and_export_read_the_named_vocabulary(
    copy: Path, german: RelabelSettings, run: Run, tmp_path: Path
) -> None:
    relabel_cache(str(copy), german)
    code, said, _ = run("stats", copy, "--vocabulary", "german", "--json")
    expected = open_cache(copy, "german")
    top1 = expected.logits(slice(None)).argmax(1).numpy()
    labelled = expected.labels >= 0
    assert code == 0
    assert json.loads(said)["top1"] == pytest.approx((top1 == expected.labels)[labelled].mean())
    assert run("export", copy, "--vocabulary", "german", "--top", 1, "--out", tmp_path / "x.parquet")[0] == 0
    exported = pq.read_table(tmp_path / "x.parquet")
    assert [classes[0] for classes in exported["classes"].to_pylist()] == top1.tolist()
    assert json.loads(exported.schema.metadata[b"rpp"])["vocabulary"] == "german"
    assert run("stats", copy, "--vocabulary", "dutch")[0] == 2
