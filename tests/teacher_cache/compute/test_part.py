"""One part: its batches, a later pass, unreadable images, and what does not change the arrays."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from teacher_cache.classes.vocabulary import Vocabulary
from teacher_cache.command_settings import ComputeSettings
from teacher_cache.compute.decoding import MOST_DECODING_PROCESSES, decoding_processes, part_decoders
from teacher_cache.compute.part import (
    VIEWS_AT_A_TIME,
    PartResult,
    PartTask,
    cut_batches,
    part_arrays,
)
from teacher_cache.encodings import ClassHead
from teacher_cache.errors import RppError, UsageError
from teacher_cache.images.index import index_images
from teacher_cache.images.table import SampleTable
from teacher_cache.pixels import drawn_views
from teacher_cache.pixels.decoders import BATCHES_AHEAD
from teacher_cache.store.header import CacheHeader
from teacher_cache.teacher.teacher import Teacher
from tests.models import loaded
from tests.teacher_cache.inputs import (
    ANIMALS,
    encoded,
    jpeg,
    webdataset_members,
    write_folder,
    write_parquet,
    write_shard,
)

HEAD = ClassHead(torch.zeros(len(ANIMALS), 48), 1.0)


class CountingTeacher(Teacher):
    """A teacher that records the size of each batch and calls `on_batch` before it."""

    def __init__(self, on_batch: Callable[[], None] = lambda: None) -> None:
        super().__init__(loaded("gelu"), torch.device("cpu"))
        self.sizes: list[int] = []
        self._on_batch = on_batch

    def image_features(self, pixels_BCHW: torch.Tensor) -> torch.Tensor:
        self.sizes.append(len(pixels_BCHW))
        self._on_batch()
        return super().image_features(pixels_BCHW)


def indexed(source: Path) -> SampleTable:
    return index_images(str(source), Vocabulary(ANIMALS, ANIMALS))[0]


def header_of(samples: SampleTable, passes: tuple[int, ...] = (1,)) -> CacheHeader:
    """One part per pass."""
    return CacheHeader(
        samples=len(samples),
        part_size=len(samples),
        embedding=48,
        classes=len(ANIMALS),
        encoding={"name": "factored"},
        teacher={},
        view_policy={"views": passes[-1], "view_seed": 4},
        vocabulary="animals",
        vocabulary_digest="",
        sample_table_digest=samples.digest,
        images="",
        software="",
        passes=list(passes),
    )


def computed(
    samples: SampleTable, passes: tuple[int, ...] = (1,), part: int = 0, **options: Any
) -> PartResult:
    task = PartTask(header_of(samples, passes), part, samples, readable=options.pop("readable", None))
    chosen = {"batch_size": 4, "teacher": CountingTeacher(), "head": HEAD} | options
    how = ComputeSettings(
        device="cpu",
        batch_size=chosen["batch_size"],
        threads=chosen.pop("threads", None),
        decode_processes=chosen.pop("processes", 0),
    )
    with part_decoders(how, task.header, samples, chosen["teacher"]) as decoders:
        return part_arrays(task, decoders=decoders, **chosen)


@pytest.fixture(scope="module")
def ten(tmp_path_factory: pytest.TempPathFactory) -> SampleTable:
    """Ten JPEGs, two per class."""
    return indexed(write_folder(tmp_path_factory.mktemp("ten") / "images"))


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40))
def test_batches_contain_every_view_of_every_sample_once(samples: int, views: int, batch_size: int) -> None:
    batches = cut_batches(samples, views, batch_size)
    pairs = [(sample, view) for batch in batches for sample in batch.samples for view in batch.views]
    assert sorted(pairs) == [(sample, view) for sample in range(samples) for view in range(views)]
    for batch in batches:
        assert len(batch.views) <= VIEWS_AT_A_TIME
        assert len(batch.samples) == min(batch_size, samples - batch.samples.start)
        assert batch.samples.start % batch_size == 0


def test_the_teacher_sees_one_view_of_a_batch_at_a_time(ten: SampleTable) -> None:
    teacher = CountingTeacher()
    computed(ten, (VIEWS_AT_A_TIME + 3,), batch_size=4, teacher=teacher)
    views = VIEWS_AT_A_TIME + 3
    assert teacher.sizes == [4] * views + [4] * views + [2] * views


def test_what_decodes_does_not_change_a_byte(ten: SampleTable) -> None:
    """Threads or processes, in any number."""
    ways = ({"threads": 1}, {"threads": 8}, {"processes": 1}, {"processes": 3})
    one, *others = (computed(ten, (VIEWS_AT_A_TIME + 3,), **way).arrays for way in ways)
    assert set(one) == {"image_features", "crops", "valid", "labels"}
    for many in others:
        for name, values in one.items():
            np.testing.assert_array_equal(values, many[name])


@pytest.mark.parametrize("views", [1, VIEWS_AT_A_TIME + 1])
def test_images_are_decoded_ahead_of_the_teacher_but_not_far(
    views: int, ten: SampleTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded, seen = [], []
    decode = drawn_views.decode_picture
    monkeypatch.setattr(
        drawn_views, "decode_picture", lambda *given, **more: [decoded.append(1), decode(*given, **more)][1]
    )
    teacher = CountingTeacher(lambda: seen.append(len(decoded)))
    computed(ten, (views,), batch_size=2, threads=1, teacher=teacher)
    assert len(seen) == 5 * views
    # images of the batches that the teacher began; more views than are rendered at once make two batches
    taken = np.array(
        [2, 4, 6, 8, 10] if views == 1 else [n for k in range(5) for n in [4 * k + 2] * 8 + [4 * k + 4]]
    )
    assert (np.array(seen) >= taken).all()
    assert (np.array(seen) <= taken + 2 * BATCHES_AHEAD).all()


@pytest.mark.parametrize("views", [1, VIEWS_AT_A_TIME + 1])
def test_progress_counts_samples_whose_views_are_all_done(views: int, ten: SampleTable) -> None:
    counts: list[int] = []
    computed(ten, (views,), batch_size=4, on_batch=counts.append)
    assert counts == [4, 8, 10]


def _damaged(name: str) -> bytes:
    if name == "long":  # a small file, but 32 x 2.9 million pixels once its short side is 32
        return encoded(Image.new("RGB", (90_000, 1)), "PNG")
    if name == "bomb":
        return encoded(Image.new("1", (10_000, 10_000)), "PNG")
    return {"empty": b"", "cut": jpeg(3)[:-300], "text": b"no image"}[name]


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ("empty", "empty file"),
        ("cut", "truncated"),
        ("text", "not an image"),
        ("bomb", "more than 89,478,485 pixels"),
        ("long", "90000 x 1 pixels are too long and narrow"),
    ],
)
@pytest.mark.parametrize("processes", [0, 2])
def test_an_unreadable_image_affects_only_its_row(
    processes: int, damage: str, reason: str, ten: SampleTable, tmp_path: Path
) -> None:
    source = write_folder(tmp_path / "images")
    (source / "axolotl" / "1.jpg").write_bytes(_damaged(damage))
    found = computed(indexed(source), (2,), processes=processes)
    assert [(entry["row"], entry["key"]) for entry in found.skipped] == [(1, "axolotl/1.jpg")]
    assert reason in found.skipped[0]["reason"]
    clean, good = computed(ten, (2,)).arrays, np.arange(10) != 1
    np.testing.assert_array_equal(found.arrays["valid"], good)
    for name in ("image_features", "crops"):
        np.testing.assert_array_equal(found.arrays[name][good], clean[name][good])
        assert not found.arrays[name][1].any()


def test_a_later_pass_computes_its_own_views_of_the_rows_that_are_valid(ten: SampleTable) -> None:
    at_once = computed(ten, (5,)).arrays
    readable = np.arange(10) != 4
    added = computed(ten, (2, 5), part=1, readable=readable)
    assert set(added.arrays) == {"image_features", "crops"}
    for name, values in added.arrays.items():
        np.testing.assert_array_equal(values[readable], at_once[name][readable, 2:])
        assert not values[4].any()
    assert added.skipped == []


def test_an_image_that_became_unreadable_stops_a_later_pass(ten: SampleTable, tmp_path: Path) -> None:
    source = write_folder(tmp_path / "images")
    (source / "dog" / "0.jpg").write_bytes(b"")
    readable = np.ones(10, dtype=np.bool_)
    with pytest.raises(RppError, match=r"dog/0\.jpg \(.*\): empty file; the cache has views of this image"):
        computed(indexed(source), (2, 5), part=1, readable=readable)
    readable[4] = False
    assert computed(indexed(source), (2, 5), part=1, readable=readable).skipped == []


@pytest.mark.parametrize("processes", [0, 2])
def test_a_missing_shard_ends_the_part(processes: int, tmp_path: Path) -> None:
    samples = indexed(write_shard(tmp_path / "a.tar", webdataset_members(0, 6)))
    (tmp_path / "a.tar").unlink()
    with pytest.raises(RppError, match=r"cannot read image shard .*a\.tar: No such file"):
        computed(samples, processes=processes)


def test_decoding_is_in_processes_by_default_where_a_gpu_waits(ten: SampleTable, tmp_path: Path) -> None:
    """Unless threads are asked for, or share the row groups of Parquet files."""
    write_parquet(tmp_path / "a.parquet", [{"bytes": jpeg(1), "path": None}])
    in_parquet = indexed(tmp_path / "a.parquet")
    processes = {
        (samples is ten, *given.items()): decoding_processes(ComputeSettings(**given), samples, 6, on_cuda)
        for samples in (ten, in_parquet)
        for on_cuda, given in ((True, {}), (False, {"device": "cpu"}), (True, {"threads": 3}))
    }
    assert list(processes.values()) == [6, 0, 0, 0, 0, 0]
    for asked in (0, 5):
        assert decoding_processes(ComputeSettings(decode_processes=asked), in_parquet, 6, False) == asked
    assert decoding_processes(ComputeSettings(), ten, 200, True) == MOST_DECODING_PROCESSES
    with pytest.raises(UsageError, match="--decode-processes decode in place of --threads"):
        ComputeSettings(threads=2, decode_processes=2)


@pytest.mark.parametrize("processes", [0, 2])
def test_seconds_are_reported_by_stage(processes: int, ten: SampleTable) -> None:
    seconds = computed(ten, processes=processes).seconds
    assert set(seconds) == {"wall", "read", "decode", "decode_elapsed", "wait", "forward", "device"}
    assert all(value > 0 for value in seconds.values())
    assert seconds["wait"] + seconds["forward"] <= seconds["wall"]
    assert seconds["device"] <= seconds["forward"]
    assert seconds["decode"] <= seconds["decode_elapsed"] * 1.05 + 1e-3  # two clocks, about 3 ms
