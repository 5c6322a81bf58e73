"""Soft labels of the requested rows, in the requested order."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from teacher_cache import TeacherCache, open_cache
from teacher_cache.build import build_cache
from teacher_cache.command_settings import ExtendSettings, ViewPolicy
from teacher_cache.errors import CacheDamagedError, UsageError
from teacher_cache.extend import extend_cache
from teacher_cache.indices import Indices, as_indices
from teacher_cache.info import describe
from teacher_cache.softlabels import Rows
from teacher_cache.stats import teacher_statistics
from teacher_cache.store.cache_store import CacheStore
from tests.teacher_cache.inputs import settings, webdataset_members, write_shard


@pytest.fixture(scope="module")
def opened(cache: Path) -> TeacherCache:
    """A finished cache of twelve rows."""
    return open_cache(cache)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (slice(None), range(12)),
        (slice(2, 9, 3), [2, 5, 8]),
        (slice(-2, None), [10, 11]),
        (4, [4]),
        ([11, 0, 4, 0], [11, 0, 4, 0]),
        (np.array([7, 3], dtype=np.uint16), [7, 3]),
        (torch.tensor([7, 3]), [7, 3]),
        ([], []),
        (np.arange(12) % 5 == 3, [3, 8]),
    ],
)
def test_rows_have_the_requested_order(rows: Rows, expected: list[int], opened: TeacherCache) -> None:
    stored = np.asarray(opened.store.parts.array("image_features")[:])[:, 0]
    found = opened.image_features(rows)
    assert found.dtype == torch.float16
    np.testing.assert_array_equal(found.numpy(), stored[list(expected)])
    crops = np.asarray(opened.store.parts.array("crops")[:])[:, 0]
    np.testing.assert_array_equal(opened.crops(rows), crops[list(expected)])
    assert opened.logits(rows).shape == (len(expected), 5)


@pytest.mark.parametrize("rows", [[12], [-1], [0, 99], torch.tensor([12])])
def test_rows_beyond_the_cache_are_refused(rows: Rows, opened: TeacherCache) -> None:
    with pytest.raises(UsageError, match="requested from a cache of 12 samples"):
        opened.image_features(rows)


@pytest.mark.parametrize("rows", [[1.7], np.array([True, False]), ["a"]])
def test_rows_that_are_not_integers_are_refused(rows: Rows, opened: TeacherCache) -> None:
    with pytest.raises(UsageError, match="expected integers, a slice or a mask of all 12 samples"):
        opened.logits(rows)


@pytest.mark.parametrize("view", [-1, 1])
def test_views_beyond_the_cache_are_refused(view: int, opened: TeacherCache) -> None:
    with pytest.raises(UsageError, match=rf"view {view} is not in the cache, which has views 0 to 0"):
        opened.logits([0], view)


@pytest.mark.parametrize("classes", [[], [5], [0, -1]])
def test_classes_beyond_the_vocabulary_are_refused(classes: list[int], opened: TeacherCache) -> None:
    with pytest.raises(UsageError, match=r"classes \[.*\] requested from a vocabulary of 5 classes"):
        opened.soft_labels([0], classes=torch.tensor(classes, dtype=torch.int64))


@pytest.mark.parametrize(
    "classes",
    [
        [3, 1],
        (3, 1),
        range(3, 0, -2),
        slice(1, 4),
        np.array([3, 1], dtype=np.uint8),
        torch.tensor([3, 1], dtype=torch.int32),
        np.arange(5) % 2 == 1,
        2,
    ],
)
def test_classes_are_taken_in_any_form(classes: Indices, opened: TeacherCache) -> None:
    expected = opened.logits([4, 2])[:, as_indices(classes, 5)]
    torch.testing.assert_close(opened.logits([4, 2], classes=classes), expected)
    torch.testing.assert_close(opened.soft_labels([4, 2], classes=classes), expected.softmax(-1))


@pytest.mark.parametrize(
    ("wanted", "reason"),
    [
        ({"classes": "37"}, "invalid classes, str: expected integers, a slice or a mask of all 5 classes"),
        ({"classes": [1.0]}, r"invalid classes \[1.0\]"),
        ({"classes": [3, 3]}, r"classes \[3\] requested more than once"),
        ({"view": 0.0}, "view 0.0 is not in the cache"),
        ({"temperature": "2"}, "the temperature must be one number, not '2'"),
        ({"temperature": np.array([1.0, 2.0])}, "the temperature must be one number"),
    ],
)
def test_wrong_arguments_are_refused(wanted: dict[str, Any], reason: str, opened: TeacherCache) -> None:
    with pytest.raises(UsageError, match=reason):
        opened.soft_labels([0], **wanted)


def test_numbers_of_numpy_and_torch_are_numbers(opened: TeacherCache) -> None:
    expected = opened.soft_labels([3], 2.0)
    for two in (np.float32(2), torch.tensor(2.0), np.array(2)):
        torch.testing.assert_close(opened.soft_labels(torch.tensor(3), two, np.int64(0)), expected)


def test_samples_are_taken_in_any_form(opened: TeacherCache) -> None:
    keys = opened.samples.keys(slice(None))
    for rows in ([3, 1], (3, 1), np.array([3, 1], dtype=np.uint8), torch.tensor([3, 1]), slice(3, 0, -2)):
        assert opened.samples.keys(rows) == [keys[3], keys[1]]
    with pytest.raises(UsageError, match=r"rows \[-1\] requested from a cache of 12 samples"):
        opened.samples.locations([-1])


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_a_temperature_that_is_not_above_zero_is_refused(temperature: float, opened: TeacherCache) -> None:
    with pytest.raises(UsageError, match="the temperature must be above zero, not"):
        opened.soft_labels([0], temperature)


def test_logits_are_the_scaled_product_of_the_factors(opened: TeacherCache) -> None:
    features = opened.image_features(slice(None)).double()
    classes = opened.class_features.double()
    expected = opened.logit_scale * features @ classes.T
    torch.testing.assert_close(opened.logits(slice(None)).double(), expected, atol=1e-4, rtol=0)
    subset = torch.tensor([3, 0])
    torch.testing.assert_close(
        opened.logits([5, 2], classes=subset).double(), expected[[5, 2]][:, [3, 0]], atol=1e-4, rtol=0
    )


def test_autocast_does_not_round_the_teachers_logits(opened: TeacherCache) -> None:
    features = opened.image_features(slice(None))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = opened.head.logits(features)
    assert under_autocast.dtype == torch.float32
    torch.testing.assert_close(under_autocast, opened.head.logits(features), atol=0, rtol=0)


def test_a_temperature_softens(opened: TeacherCache) -> None:
    def entropy(temperature: float) -> torch.Tensor:
        labels = opened.soft_labels(slice(None), temperature)
        return -(labels * labels.clamp_min(1e-30).log()).sum(dim=1)

    assert (entropy(0.5) < entropy(1.0)).all()
    assert (entropy(1.0) < entropy(8.0)).all()
    flat = opened.soft_labels([0], 1e6)
    torch.testing.assert_close(flat, torch.full((1, 5), 0.2), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "gone",
    [
        "image_features/c/2/0/0",
        "crops/c",
        "image_features/c",
        "labels/c/2",
        "labels/c",
        "valid/c/2",
        "valid/c",
    ],
)
def test_missing_files_are_not_read_as_zeros(gone: str, cache: Path, tmp_path: Path) -> None:
    shutil.copytree(cache, tmp_path / "zarr")
    path = tmp_path / "zarr" / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    store = CacheStore.open(tmp_path / "zarr")
    for read in (lambda: open_cache(tmp_path / "zarr"), lambda: describe(store)):
        with pytest.raises(
            CacheDamagedError,
            match=rf"{1 if '2' in gone else 4} stored files .* are missing, the first is {gone}",
        ):
            read()


def test_a_link_to_a_shard_is_read_and_a_broken_link_is_refused(cache: Path, tmp_path: Path) -> None:
    shutil.copytree(cache, tmp_path / "zarr")
    shard = tmp_path / "zarr/labels/c/2"
    shard.rename(tmp_path / "elsewhere")
    shard.symlink_to(tmp_path / "elsewhere")
    assert (open_cache(tmp_path / "zarr").labels == open_cache(cache).labels).all()
    (tmp_path / "elsewhere").unlink()
    with pytest.raises(CacheDamagedError, match=r"1 stored files .* are missing, the first is labels/c/2"):
        open_cache(tmp_path / "zarr")


def test_parts_without_a_label_have_no_file_of_labels(teacher: Path, names: Path, tmp_path: Path) -> None:
    """Zarr writes none for what is -1 alone."""
    source = write_shard(tmp_path / "unlabelled.tar", webdataset_members(0, 6)[1::2])
    build_cache(settings(source, names, tmp_path / "zarr", teacher))
    assert not (tmp_path / "zarr/labels/c").exists()
    assert open_cache(tmp_path / "zarr").labels.tolist() == [-1] * 6


def hollow(shard: Path) -> None:
    """Zeros up to the table of chunks at its end, as after a copy that was cut and filled up."""
    content = shard.read_bytes()
    shard.write_bytes(bytes(len(content) - 20) + content[-20:])


@pytest.mark.parametrize("name", ["labels", "valid"])
def test_a_hole_in_labels_or_valid_is_found(name: str, cache: Path, tmp_path: Path) -> None:
    shutil.copytree(cache, tmp_path / "zarr")
    hollow(tmp_path / "zarr" / name / "c/2")
    opened = open_cache(tmp_path / "zarr")
    for read in (lambda: opened.labels, lambda: opened.valid, lambda: teacher_statistics(opened, [1.0])):
        with pytest.raises(
            CacheDamagedError, match=rf"^'{name}' of part 2 \(rows 6 to 8\) in .* rpp-cache verify"
        ):
            read()
    settings = ExtendSettings(views=2, device="cpu", threads=1)
    with pytest.raises(CacheDamagedError, match=f"^'{name}' of part 2"):
        extend_cache(str(tmp_path / "zarr"), settings)


@pytest.mark.parametrize("encoding", ["factored", "factored-int8", "topk", "dense"])
def test_a_hole_in_features_crops_or_logits_is_found(
    encoding: str, teacher: Path, shards: Path, names: Path, tmp_path: Path
) -> None:
    """Rows of zeros whose image could be read; of the second pass, too."""
    topk = {"topk": 3} if encoding == "topk" else {}
    build_cache(settings(shards, names, tmp_path / "whole", teacher, encoding=encoding, **topk))
    extend_cache(str(tmp_path / "whole"), ExtendSettings(views=2, device="cpu", threads=1))
    whole = open_cache(tmp_path / "whole")
    for name in whole.header.per_view:
        shutil.copytree(tmp_path / "whole", tmp_path / "zarr")
        (shard,) = (path for path in (tmp_path / "zarr" / name / "c/2/1").rglob("*") if path.is_file())
        hollow(shard)
        opened = open_cache(tmp_path / "zarr")
        read = opened.crops if name == "crops" else opened.stored
        read(slice(None), 0)
        read(slice(0, 6), 1)
        with pytest.raises(
            CacheDamagedError, match=rf"^'{name}' of part 6 \(rows 6 to 8\) in .* rpp-cache verify"
        ):
            read(slice(0, 7), 1)
        shutil.rmtree(tmp_path / "zarr")


def test_written_zeros_are_not_a_hole(teacher: Path, names: Path, tmp_path: Path) -> None:
    """Of an image that could not be read, and the largest logit, below which the others stand."""
    members = webdataset_members(0, 6)
    members[7] = (members[7][0], b"this is no image")
    source = write_shard(tmp_path / "bad.tar", members)
    build_cache(settings(source, names, tmp_path / "zarr", teacher, encoding="topk", topk=1))
    opened = open_cache(tmp_path / "zarr")
    assert opened.stored(slice(None))["topk_logits"].tolist() == [[0.0]] * 6
    assert opened.crops(3).tolist() == [[0] * 5]


def test_missing_or_changed_class_features_are_refused(cache: Path, tmp_path: Path) -> None:
    shutil.copytree(cache, tmp_path / "zarr")
    (chunk,) = (tmp_path / "zarr").glob("vocabularies/*/class_features/c/0/0")
    content = bytearray(chunk.read_bytes())
    content[7] ^= 1
    chunk.write_bytes(content)
    for _ in range(2):
        with pytest.raises(CacheDamagedError, match="class_features is not what was written"):
            open_cache(tmp_path / "zarr").logits([0])
        chunk.unlink(missing_ok=True)


def test_a_truncated_shard_is_reported_in_one_line(cache: Path, tmp_path: Path) -> None:
    shutil.copytree(cache, tmp_path / "zarr")
    shard = tmp_path / "zarr" / "image_features/c/2/0/0"
    shard.write_bytes(shard.read_bytes()[:-3])
    opened = open_cache(tmp_path / "zarr")
    with pytest.raises(
        CacheDamagedError, match=r"'image_features' in .* is not readable .* rpp-cache verify"
    ):
        opened.logits([7])


def test_an_incomplete_cache_is_refused(cache: Path, tmp_path: Path) -> None:
    copy = tmp_path / "zarr"
    shutil.copytree(cache, copy)
    CacheStore.open(copy).parts.withdraw(3)
    with pytest.raises(UsageError, match=r"not complete: 1 of 4 parts are missing; run rpp-cache build"):
        open_cache(copy)


class TestEncodings:
    """The same images in caches of every encoding."""

    @pytest.fixture(scope="class", params=["factored-int8", "topk", "dense"])
    def pair(
        self,
        request: pytest.FixtureRequest,
        tmp_path_factory: pytest.TempPathFactory,
        teacher: Path,
        shards: Path,
        names: Path,
    ) -> tuple[TeacherCache, TeacherCache]:
        """Two views a sample, factored and otherwise; topk keeps 4 of 5 classes, so that it loses none."""
        folder, caches = tmp_path_factory.mktemp("encoded"), []
        for encoding in ("factored", request.param):
            topk = 4 if encoding == "topk" else None
            more = {"encoding": encoding, "topk": topk, "view_policy": ViewPolicy(views=2)}
            build_cache(settings(shards, names, folder / encoding, teacher, **more))
            caches.append(open_cache(folder / encoding))
        return caches[0], caches[1]

    def test_all_encodings_have_the_same_soft_labels(self, pair: tuple[TeacherCache, TeacherCache]) -> None:
        exact, other = pair
        for view in range(2):
            for temperature in (0.25, 0.7, 1.0, 4.0):
                torch.testing.assert_close(
                    other.soft_labels([7, 0, 11], temperature, view),
                    exact.soft_labels([7, 0, 11], temperature, view),
                    atol=0.01,
                    rtol=0,
                )
        subset = torch.tensor([3, 0])
        torch.testing.assert_close(
            other.logits([5, 2], 1, subset), exact.logits([5, 2], 1, subset), atol=0.02, rtol=0
        )

    def test_image_features_only_where_they_are_kept(self, pair: tuple[TeacherCache, TeacherCache]) -> None:
        exact, other = pair
        if other.keeps_image_features:
            found = other.image_features([3, 1], 1)
            torch.testing.assert_close(found, exact.image_features([3, 1], 1), atol=2e-3, rtol=0)
        else:
            with pytest.raises(UsageError, match=r"the encoding '\w+' of .* keeps no image features"):
                other.image_features([3])

    def test_only_topk_has_a_range_of_temperatures(self, pair: tuple[TeacherCache, TeacherCache]) -> None:
        _, other = pair
        if other.encoding.name == "topk":
            with pytest.raises(UsageError, match=r"for temperatures from 0\.125 to 16"):
                other.soft_labels([0], 40.0)
        else:
            assert other.soft_labels([0], 40.0).sum() == pytest.approx(1.0)
