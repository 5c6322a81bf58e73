"""Pixels: the crops that the teacher saw, of the samples in the cache."""

import os
import signal
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from student_train.data.pixels import PixelWorkers, ViewRequests
from student_train.data.stored_views import RenderViews, ViewRequest, check_key
from student_train.training import inputs
from student_train.training.distributed import Processes
from student_train.training.loop import Run
from teacher_cache import TeacherCache, open_cache
from teacher_cache.classes.vocabulary import Vocabulary
from teacher_cache.command_settings import ViewPolicy
from teacher_cache.errors import RppError, UsageError
from teacher_cache.images.decode import decode_image
from teacher_cache.images.index import index_images
from teacher_cache.images.reader import ImageReader
from teacher_cache.images.table import SampleTable
from teacher_cache.teacher.openclip import load_model
from teacher_cache.teacher.teacher import Teacher
from teacher_cache.views import PillowRenderer, draw_crop
from tests.plain_scripts import run_script
from tests.processes import ForkServer
from tests.student_train.training.test_loop import settings
from tests.teacher_cache.inputs import jpeg, write_folder, write_shard


@pytest.fixture(scope="module")
def cache(cache_path: Path) -> TeacherCache:
    return open_cache(cache_path)


@pytest.fixture(scope="module")
def teacher(cache: TeacherCache) -> Teacher:
    return Teacher(load_model(cache.teacher["model"]), torch.device("cpu"))


def requests(cache: TeacherCache, rows: np.ndarray, view: int) -> ViewRequests:
    return ViewRequests(rows, np.full(len(rows), view), cache.crops(rows, view))


def test_replayed_crops_are_the_pixels_that_the_teacher_got(cache: TeacherCache, teacher: Teacher) -> None:
    """Stage one draws a crop and renders it; stage two renders from the stored crop. Same pixels, and the
    teacher says of them what the cache holds."""
    rows, reader = np.arange(0, 300, 7), ImageReader()
    policy = ViewPolicy(**cache.header.view_policy)
    workers = PixelWorkers(cache.samples, 100, teacher.renderer, workers=0)
    for view in range(cache.num_views):
        (replayed,) = workers.decode([requests(cache, rows, view)], len(rows))
        for row, pixels in zip(rows.tolist(), replayed, strict=True):
            image = decode_image(reader.read(cache.samples.locations(np.array([row]))[0]))
            crop = draw_crop(policy, row, view, image.shape[1], image.shape[0])
            assert np.array_equal(pixels.numpy(), teacher.renderer.render(image, view, crop))
        said = teacher.image_features(replayed)
        assert (said - cache.image_features(rows, view).float()).abs().max() < 1e-3


def test_workers_give_what_one_thread_gives(cache: TeacherCache, teacher: Teacher) -> None:
    """Batches of several sizes, in no order of the shard."""
    random = np.random.default_rng(0)
    batches = [requests(cache, random.permutation(300)[:n], view) for view, n in enumerate((40, 16, 1))]
    several, alone = (
        list(PixelWorkers(cache.samples, 100, teacher.renderer, workers).decode(batches, 40))
        for workers in (2, 0)
    )
    assert [len(pixels) for pixels in several] == [40, 16, 1]
    assert all(torch.equal(a, b) for a, b in zip(several, alone, strict=True))
    reader = ImageReader()
    for batch, pixels in zip(batches, alone, strict=True):
        for i, row in enumerate(batch.rows):
            image = decode_image(reader.read(cache.samples.locations(np.array([row]))[0]))
            expected = teacher.renderer.render(image, int(batch.views[i]), batch.crops[i])
            assert np.array_equal(pixels[i].numpy(), expected)


def children() -> set[int]:
    """Processes of this one, whichever thread started them."""
    tasks = Path(f"/proc/{os.getpid()}/task").glob("*/children")
    return {int(number) for task in tasks for number in task.read_text().split()}


def test_a_killed_worker_is_one_clear_line(cache: TeacherCache, teacher: Teacher) -> None:
    before = children()
    batches = (requests(cache, np.arange(300), 0) for _ in range(1000))
    decoded = PixelWorkers(cache.samples, 100, teacher.renderer, workers=1).decode(batches, 300)
    next(decoded)
    (worker,) = children() - before
    os.kill(worker, signal.SIGTERM)  # ignored: a signal to the group must not stop a step
    next(decoded)
    os.kill(worker, signal.SIGKILL)
    with pytest.raises(RppError, match=r"a process that decodes images ended .*fewer --workers"):
        list(decoded)


def test_an_error_ends_the_workers_though_its_traceback_is_kept(
    cache: TeacherCache, teacher: Teacher
) -> None:
    """The interpreter waits for its children at its end: one that is left behind would hang it."""
    table = cache.samples.table
    others = SampleTable(table.set_column(0, "key", table["key"].take(np.arange(len(table))[::-1])))
    before = children()
    batches = (requests(cache, np.arange(300), 0) for _ in range(1000))
    with pytest.raises(UsageError, match="but the cache has") as kept:
        list(PixelWorkers(others, 100, teacher.renderer, workers=2).decode(batches, 300))
    assert kept.tb is not None
    assert children() <= before


ABANDONED = """
import sys
import numpy as np
from student_train.data.pixels import PixelWorkers, ViewRequests
from teacher_cache import open_cache
from teacher_cache.teacher.openclip import load_model
from teacher_cache.views import ViewRenderer
cache = open_cache(sys.argv[1])
renderer = ViewRenderer(load_model(cache.teacher["model"]).preprocess)
rows = np.arange(300)
views = ViewRequests(rows, np.zeros(300, np.int64), cache.crops(rows))
decoded = PixelWorkers(cache.samples, 100, renderer, workers=2).decode((views for _ in range(1000)), 300)
next(decoded)
"""


@pytest.mark.parametrize("by", [0, signal.SIGTERM, signal.SIGKILL])
def test_workers_without_a_reader_end_with_their_parent(
    processes: ForkServer, cache_path: Path, by: int
) -> None:
    end = f"import os; os.kill(os.getpid(), {int(by)})" if by else ""
    process = processes.start("python", "-c", ABANDONED + end, cache_path, stdout=None, stderr=None)
    assert process.wait(timeout=120) == -by
    deadline = time.monotonic() + 20
    while has_processes(process.pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not has_processes(process.pid)


def has_processes(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


TRAIN = """
import multiprocessing

with open("runs.txt", "a") as file:
    file.write("run\\n")
multiprocessing.set_start_method("forkserver")
from student_train import PromptSettings, TrainSettings, train
train(
    TrainSettings(
        cache={cache!r}, out="run", prompts=PromptSettings(towers="both", prompt_length=2, prompt_depth=1),
        batch_size=30, max_steps=2, workers=2, log=("none",), device="cpu"
    )
)
"""


def test_workers_do_not_run_a_plain_script_again(cache_path: Path, tmp_path: Path) -> None:
    """With the default of Python 3.14, `forkserver`, in a script without `if __name__ == "__main__":`."""
    run_script(tmp_path, TRAIN.format(cache=str(cache_path)), "-m", "plain")
    assert (tmp_path / "run" / "student.safetensors").exists()


class TestKeys:
    """The sample that lies at a row's place must be the one that the table names."""

    NAMES = ("cat", "dog")

    def table(self, source: Path) -> list[ViewRequest]:
        samples, _ = index_images(str(source), Vocabulary(self.NAMES, self.NAMES, ("{}",)))
        every = slice(0, len(samples))
        crop = np.zeros(5, dtype=np.uint16)
        return [
            ViewRequest(key, location, 0, crop, check=True)
            for key, location in zip(samples.keys(every), samples.locations(every), strict=True)
        ]

    @pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
    def test_members_of_every_kind_of_tar_are_known_again(self, tmp_path: Path, kind: int) -> None:
        names = ["./cat/1.jpg", "/dog/2.x.jpg", f"dog/{'long' * 20}.jpg", "plain.jpg"]
        if kind != tarfile.USTAR_FORMAT:
            names += [f"cat/{'longer' * 30}.jpg", "dog/hündchen.jpg"]
        write_shard(tmp_path / "a.tar", [(name, jpeg(i)) for i, name in enumerate(names)], format=kind)
        table = self.table(tmp_path / "a.tar")
        assert len(table) == len(names)
        for sample in table:
            check_key(sample, ImageReader())

    def test_another_member_is_refused(self, tmp_path: Path) -> None:
        content = jpeg(1)
        write_shard(tmp_path / "a.tar", [("cat/1.jpg", content), ("dog/2.jpg", content)])
        table = self.table(tmp_path / "a.tar")
        write_shard(tmp_path / "a.tar", [("dog/2.jpg", content), ("cat/1.jpg", content)])
        with pytest.raises(
            UsageError, match=r"a.tar has dog/2.jpg \(\d+ bytes\) at byte 512, but the cache has cat/1"
        ):
            check_key(table[0], ImageReader())

    def test_another_size_or_no_member_is_refused(self, tmp_path: Path) -> None:
        write_shard(tmp_path / "a.tar", [("cat/1.jpg", jpeg(1)), ("dog/2.jpg", jpeg(2))])
        table = self.table(tmp_path / "a.tar")
        write_shard(tmp_path / "a.tar", [("cat/1.jpg", jpeg(1) + b"more"), ("dog/2.jpg", jpeg(2))])
        with pytest.raises(UsageError, match="but the cache has cat/1"):
            check_key(table[0], ImageReader())
        write_shard(tmp_path / "a.tar", [("cat/1.jpg", jpeg(1, width=200)), ("dog/2.jpg", jpeg(2))])
        with pytest.raises(UsageError, match=r"has no tar member at byte .* give the original ones"):
            check_key(table[1], ImageReader())

    def test_files_of_a_folder(self, tmp_path: Path) -> None:
        table = self.table(write_folder(tmp_path / "images", self.NAMES))
        for sample in table:
            check_key(sample, ImageReader())
        wrong = ViewRequest("cat/7.jpg", table[0].location, 0, table[0].crop, check=True)
        refused = RenderViews(PillowRenderer((32, 32), "shortest", "bicubic"), 10_000)(
            wrong, np.zeros((1, 32, 32, 3))
        )
        assert isinstance(refused, UsageError)
        assert "images/cat/0.jpg at byte 0, but the cache has cat/7.jpg" in str(refused)

    def test_the_first_batch_of_each_part_is_checked(
        self, cache: TeacherCache, teacher: Teacher, tmp_path: Path
    ) -> None:
        """Two pictures of equal size change places: noticed in the first batch of their part alone."""
        workers = PixelWorkers(cache.samples, 100, teacher.renderer, workers=0)
        batches = [requests(cache, np.array(rows), 0) for rows in ([5, 7, 120], [9, 130, 250], [1, 2, 299])]
        flags = [
            [request.check for _, request in sorted(batch.requests)] for batch in workers._requests(batches)
        ]
        assert flags == [[True, True, True], [False, False, True], [False, False, False]]


def test_workers_are_as_many_as_the_cores_that_may_be_used(
    cache_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    monkeypatch.setattr(inputs, "usable_cores", lambda: 6)
    for size, of_each in ((1, 6), (3, 2), (9, 1)):
        alone = Processes(local_size=size)
        run = Run(settings(cache_path, tmp_path / "run", towers="both"), alone, torch.device("cpu"))
        assert run.join._pixels is not None
        assert run.join._pixels._workers == of_each
