"""Complete builds from real tars with real teachers: stored arrays, resume, refusals, Dask."""

import io
import os
import resource
import shutil
import signal
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from distributed import LocalCluster
from PIL import Image

from teacher_cache import open_cache
from teacher_cache.build import BuildResult, build_cache
from teacher_cache.command_settings import ViewPolicy
from teacher_cache.compat import dynamo
from teacher_cache.errors import CacheBusyError, CacheDamagedError, CacheMismatchError, RppError, UsageError
from teacher_cache.images.decode import decode_image
from teacher_cache.store.cache_store import CacheStore
from teacher_cache.store.header import CHUNK_ROWS
from teacher_cache.store.samples import SAMPLES
from teacher_cache.store.verify import verify_store
from teacher_cache.teacher.openclip import load_model
from teacher_cache.teacher.teacher import Teacher
from teacher_cache.views import FULL, draw_crop
from tests.models import write_model
from tests.processes import ForkServer
from tests.teacher_cache.inputs import (
    ANIMALS,
    assert_same_arrays,
    decoded_arrays,
    encoded,
    jpeg,
    part_record,
    picture,
    settings,
    webdataset_members,
    write_folder,
    write_names,
    write_shard,
    write_shards,
)

LOGIT_ERROR_AT_100 = 0.02


def online_logits(
    teacher: Path, shards: list[Path], templates: tuple[str, ...]
) -> tuple[torch.Tensor, float]:
    """Logits [N, C] of all images in the tars, in order, and the logit scale: plain open_clip code."""
    name = f"local-dir:{teacher}"
    model, _, preprocess = open_clip.create_model_and_transforms(name)
    model.eval()
    images = []
    for shard in shards:
        with tarfile.open(shard) as tar:
            for member in tar:
                if member.name.endswith(".jpg"):
                    images.append(preprocess(Image.open(io.BytesIO(tar.extractfile(member).read()))))
    with torch.no_grad():
        features_BD = F.normalize(model.encode_image(torch.stack(images)), dim=-1)
        weights_DC = open_clip.build_zero_shot_classifier(
            model, open_clip.get_tokenizer(name), ANIMALS, [template.format for template in templates]
        )
        scale = model.logit_scale.exp()
        return scale * features_BD @ weights_DC, float(scale)


@pytest.mark.parametrize(
    "config", ["gelu", "quickgelu", "custom", "attn-pool", "siglip", "clipa", "mobileclip", "coca", "resnet"]
)
def test_cached_logits_equal_the_teacher_run_by_plain_open_clip_code(
    config: str, shards: Path, names: Path, tmp_path: Path
) -> None:
    folder = write_model(tmp_path / config, config)
    template = "a drawing of a {}."
    build_cache(settings(shards, names, tmp_path / "zarr", folder, templates=template))
    cache = open_cache(tmp_path / "zarr")
    expected, scale = online_logits(folder, sorted(shards.glob("*.tar")), (template,))
    bound = LOGIT_ERROR_AT_100 * scale / 100
    assert expected.std() > 10 * bound
    assert cache.logit_scale == pytest.approx(scale, rel=1e-6)
    torch.testing.assert_close(cache.logits(slice(None)), expected, atol=bound, rtol=0)
    rows = [11, 0, 7]
    torch.testing.assert_close(cache.logits(rows), expected[rows], atol=bound, rtol=0)


@pytest.mark.parametrize("temperature", [0.25, 1.0, 4.0])
@pytest.mark.parametrize("classes", [None, [4, 1], [2, 0, 3]])
def test_soft_labels_equal_the_online_teachers_at_any_temperature_and_subset_of_classes(
    temperature: float, classes: list[int] | None, cache: Path, teacher: Path, shards: Path
) -> None:
    logits, scale = online_logits(teacher, sorted(shards.glob("*.tar")), ("a photo of a {}.",))
    wanted = slice(None) if classes is None else classes
    expected = torch.log_softmax(logits[:, wanted] / temperature, dim=-1)
    subset = None if classes is None else torch.tensor(classes)
    found = open_cache(cache).soft_labels(slice(None), temperature, classes=subset)
    bound = 2 * LOGIT_ERROR_AT_100 * scale / 100 / temperature
    torch.testing.assert_close(found.log(), expected, atol=bound, rtol=0)
    torch.testing.assert_close(found.sum(dim=1), torch.ones(len(found)))


def test_templates_are_averaged_as_open_clip_does(
    teacher: Path, shards: Path, names: Path, tmp_path: Path
) -> None:
    templates = ("a photo of a {}.", "{} on the moon", "art of the {}")
    (tmp_path / "templates.txt").write_text("\n".join(templates))
    asked = settings(shards, names, tmp_path / "zarr", teacher, templates=str(tmp_path / "templates.txt"))
    build_cache(asked)
    expected, scale = online_logits(teacher, sorted(shards.glob("*.tar")), templates)
    found = open_cache(tmp_path / "zarr").logits(slice(None))
    torch.testing.assert_close(found, expected, atol=LOGIT_ERROR_AT_100 * scale / 100, rtol=0)


def test_a_second_call_computes_nothing_and_changes_no_file(
    cache: Path, teacher: Path, shards: Path, names: Path
) -> None:
    before = _files(cache)
    result = build_cache(settings(shards, names, cache, teacher))
    assert (result.parts_total, result.parts_computed) == (4, 0)
    assert _files(cache) == before


KILLED_BUILD = """
import os, signal, sys, time
from teacher_cache.store import parts as store
moment, part = sys.argv.pop(1), int(sys.argv.pop(1))
commit, write_record = store.StoredParts.commit, store.StoredParts.write_record

def kill(cache):
    while cache.committed()[:part] != list(range(part)):  # they are written beside one another
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)

def kill_before_commit(self, number, *arguments):
    if number == part:
        kill(self)
    return commit(self, number, *arguments)

def kill_at_record(self, record):
    if record.part == part and moment == "between a part's arrays and its record":
        kill(self)
    write_record(self, record)
    if record.part == part:
        kill(self)

if moment == "between two parts":
    store.StoredParts.commit = kill_before_commit
else:
    store.StoredParts.write_record = kill_at_record
from teacher_cache.cli import main
main()
"""


@pytest.mark.parametrize(
    ("moment", "whole"),
    [
        ("between two parts", [0, 1]),
        ("between a part's arrays and its record", [0, 1]),
        ("behind a part's record", [0, 1, 2]),
    ],
)
def test_a_build_killed_and_called_again_equals_an_undisturbed_one(
    moment: str,
    whole: list[int],
    processes: ForkServer,
    cache: Path,
    teacher: Path,
    shards: Path,
    names: Path,
    tmp_path: Path,
) -> None:
    out = tmp_path / "zarr"
    asked = settings(shards, names, out, teacher)
    options = ("images", "classes", "out", "teacher", "part_size", "batch_size", "threads", "device")
    arguments = [f"--{name.replace('_', '-')}={getattr(asked, name)}" for name in options]
    killed = processes.call("python", "-c", KILLED_BUILD, moment, "2", "build", *arguments)
    assert killed.code == -signal.SIGKILL, killed.err
    store = CacheStore.open(out)
    assert store.parts.committed() == whole
    assert all(store.parts.is_intact(part) for part in whole)
    with pytest.raises(UsageError, match=rf"not complete: {4 - len(whole)} of 4 parts"):
        open_cache(out)
    records = {part: part_record(out, part) for part in whole}
    result = build_cache(asked)
    assert result.parts_computed == 4 - len(whole)
    assert {part: part_record(out, part) for part in whole} == records
    assert_same_arrays(out, cache)


@pytest.mark.parametrize(
    ("part", "damage"),
    [
        (1, lambda content: bytes([content[0] ^ 1]) + content[1:]),  # one bit
        (1, lambda content: content[: len(content) // 2]),
        (3, lambda content: b""),
    ],
)
def test_a_damaged_part_is_withdrawn_and_only_it_is_computed_again(
    part: int, damage: Any, cache: Path, teacher: Path, shards: Path, names: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "zarr"
    shutil.copytree(cache, copy)
    shard = copy / "image_features" / "c" / str(part) / "0" / "0"
    shard.write_bytes(damage(shard.read_bytes()))
    store = CacheStore.open(copy)
    assert [p for p in store.parts.committed() if not store.parts.is_intact(p)] == [part]
    store.parts.withdraw(part)
    assert build_cache(settings(shards, names, copy, teacher)).parts_computed == 1
    assert_same_arrays(copy, cache)


def test_a_truncated_shard_with_several_parts_is_computed_again(
    teacher: Path, names: Path, tmp_path: Path
) -> None:
    """Zarr reads a shard before it writes some rows of it, which a cut shard does not survive."""
    source = write_shards(tmp_path / "shards", shards=1, samples=5)
    asked = settings(source, names, tmp_path / "zarr", teacher)
    build_cache(asked)
    build_cache(asked.model_copy(update={"out": str(tmp_path / "whole")}))
    for name in ("image_features/c/1/0/0", "crops/c/1/0/0", "valid/c/1", "labels/c/1"):
        shard = tmp_path / "zarr" / name
        shard.write_bytes(shard.read_bytes()[:-3])
    store = CacheStore.open(tmp_path / "zarr")
    assert not store.parts.is_intact(1)
    store.parts.withdraw(1)
    assert build_cache(asked).parts_computed == 1
    assert_same_arrays(tmp_path / "zarr", tmp_path / "whole")


def test_part_sizes_are_rounded_up_to_multiples_of_a_chunk(
    teacher: Path, names: Path, tmp_path: Path
) -> None:
    """1,100 rows as one part, and as two parts of what 1,030 is rounded up to."""
    samples = CHUNK_ROWS + 76
    source = write_shards(tmp_path / "shards", shards=1, samples=samples, width=8, height=8)
    for name, part_size in (("default", 8192), ("asked", 1000), ("rounded", CHUNK_ROWS + 6)):
        out = tmp_path / name
        result = build_cache(settings(source, names, out, teacher, part_size=part_size, batch_size=256))
        assert result.parts_total == {"default": 1, "asked": 2, "rounded": 1}[name]
        assert open_cache(out).valid.all()
    whole = decoded_arrays(tmp_path / "default")
    for name, values in decoded_arrays(tmp_path / "asked").items():
        # other part bounds cut other batches, whose matrix products may round differently
        np.testing.assert_allclose(values, whole[name], atol=1e-3, err_msg=name)
    cache, rows = open_cache(tmp_path / "default"), [samples - 1, 0, CHUNK_ROWS, CHUNK_ROWS - 1]
    np.testing.assert_array_equal(cache.image_features(rows), whole["image_features"][rows, 0])


def test_an_unreadable_image_keeps_its_row_and_its_reason_is_recorded(
    cache: Path, teacher: Path, names: Path, tmp_path: Path
) -> None:
    members = webdataset_members(0, 12)
    bad = {1: b"", 4: b"this is no image", 9: jpeg(9)[:-300]}
    for row, content in bad.items():
        members[2 * row + 1] = (members[2 * row + 1][0], content)
    source = write_shard(tmp_path / "bad.tar", members)
    result = build_cache(settings(source, names, tmp_path / "zarr", teacher))
    assert (result.samples, result.skipped) == (12, 3)
    found = open_cache(tmp_path / "zarr")
    good = np.array([row not in bad for row in range(12)])
    np.testing.assert_array_equal(found.valid, good)
    clean = open_cache(cache)
    np.testing.assert_array_equal(found.labels, clean.labels)
    np.testing.assert_allclose(
        found.image_features(slice(None))[good], clean.image_features(slice(None))[good], atol=1e-3
    )
    assert not found.image_features(list(bad)).any()
    skipped = [entry for part in range(4) for entry in part_record(tmp_path / "zarr", part)["skipped"]]
    assert [(entry["row"], entry["key"]) for entry in skipped] == [(row, f"{row:06d}") for row in bad]
    for entry, reason in zip(skipped, ("empty file", "not an image", "truncated"), strict=True):
        assert reason in entry["reason"]


@pytest.mark.parametrize("encoding", [{}, {"encoding": "topk", "topk": 1}])
def test_parts_of_nothing_but_the_fill_value_are_read(
    encoding: dict[str, Any], teacher: Path, names: Path, tmp_path: Path
) -> None:
    """Zarr writes no file for them: the last part's only image cannot be read; the largest logit is 0."""
    members = webdataset_members(0, 7)
    members[-1] = (members[-1][0], b"this is no image")
    source = write_shard(tmp_path / "bad.tar", members)
    build_cache(settings(source, names, tmp_path / "zarr", teacher, **encoding))
    found = open_cache(tmp_path / "zarr")
    assert found.valid.tolist() == [True] * 6 + [False]
    assert not verify_store(found.store)
    (tmp_path / "zarr" / "crops" / "c" / "0" / "0" / "0").unlink()
    with pytest.raises(CacheDamagedError, match=r"1 stored files .* are missing, the first is crops/c/0/0/0"):
        open_cache(tmp_path / "zarr")


def test_the_default_of_topk_fits_a_small_vocabulary(
    teacher: Path, shards: Path, names: Path, tmp_path: Path
) -> None:
    """With five classes it is four; the same command again continues. An explicit value is refused."""
    notes = build_cache(settings(shards, names, tmp_path / "zarr", teacher, encoding="topk")).notes
    assert "--topk is 4, not 100: the vocabulary has 5 classes" in notes
    again = build_cache(settings(shards, names, tmp_path / "zarr", teacher, encoding="topk"))
    assert again.parts_computed == 0
    assert open_cache(tmp_path / "zarr").stored(0)["topk_logits"].shape == (1, 4)
    with pytest.raises(UsageError, match="topk of 100 needs a vocabulary of more than its 5 classes"):
        build_cache(settings(shards, names, tmp_path / "b", teacher, encoding="topk", topk=100))


def test_strict_stops_at_an_unreadable_image_and_names_it(teacher: Path, names: Path, tmp_path: Path) -> None:
    members = webdataset_members(0, 6)
    members[9] = (members[9][0], b"no image")
    source = write_shard(tmp_path / "bad.tar", members)
    with pytest.raises(RppError, match=r"000004 .*bad\.tar.*not an image"):
        build_cache(settings(source, names, tmp_path / "zarr", teacher, strict=True))
    # the part before may have been on its way still
    assert set(CacheStore.open(tmp_path / "zarr").parts.committed()) <= {0}


def test_a_part_without_any_readable_image_is_not_committed(
    teacher: Path, names: Path, tmp_path: Path
) -> None:
    """An unmounted disk must not turn into a cache full of invalid rows."""
    source = write_folder(tmp_path / "images", images=1)
    asked = settings(source, names, tmp_path / "zarr", teacher, part_size=5)
    for image in source.rglob("*.jpg"):
        image.write_bytes(b"x" * image.stat().st_size)
    with pytest.raises(RppError, match="none of the 5 images of part 0 could be read"):
        build_cache(asked)
    assert CacheStore.open(tmp_path / "zarr").parts.committed() == []


def test_a_second_build_at_the_same_time_is_refused(
    cache: Path, teacher: Path, shards: Path, names: Path
) -> None:
    asked = settings(shards, names, cache, teacher)
    other = CacheStore.open(cache, writable=True)
    with other.locked(), pytest.raises(CacheBusyError, match="another build is writing"):
        build_cache(asked)
    assert build_cache(asked).parts_computed == 0


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ("teacher", r"teacher\.weights_digest: stored blake2b:\w+, requested blake2b:\w+"),
        ("vocabulary", r"vocabulary_digest: stored blake2b:\w+, requested blake2b:\w+"),
        ("templates", r"vocabulary_digest: stored blake2b:\w+, requested blake2b:\w+"),
        ("views", r"view_policy\.views: stored 1, requested 2"),
        ("view seed", r"view_policy\.view_seed: stored 0, requested 3"),
        ("sample table", r"samples: stored 12, requested 13.*sample_table_digest: stored blake2b:\w+"),
        ("precision", r"teacher\.precision: stored fp32, requested bf16"),
        ("part size", r"part_size: stored 3, requested 4"),
    ],
)
def test_different_settings_are_refused_naming_both_and_the_cache_is_unchanged(
    other: str, named: str, cache: Path, teacher: Path, shards: Path, names: Path, tmp_path: Path
) -> None:
    changed: dict[str, Any] = {
        "teacher": lambda: {"teacher": str(write_model(tmp_path / "other", "gelu", seed=1))},
        "vocabulary": lambda: {"classes": str(write_names(tmp_path / names.name, ANIMALS[::-1]))},
        "templates": lambda: {"templates": "a {}"},
        "views": lambda: {"view_policy": ViewPolicy(views=2)},
        "view seed": lambda: {"view_policy": ViewPolicy(view_seed=3)},
        "sample table": lambda: {"images": str(_one_more(shards, tmp_path))},
        "precision": lambda: {"precision": "bf16"},
        "part size": lambda: {"part_size": 4},
    }[other]()
    before = _files(cache)
    with pytest.raises(CacheMismatchError, match=named):
        build_cache(settings(shards, names, cache, teacher).model_copy(update=changed))
    assert _files(cache) == before


def _one_more(shards: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "more"
    shutil.copytree(shards, folder)
    write_shard(folder / "shard-002.tar", webdataset_members(12, 1))
    return folder


def test_moved_images_and_a_moved_teacher_are_the_same_build(
    cache: Path, teacher: Path, shards: Path, names: Path, tmp_path: Path
) -> None:
    shutil.copytree(teacher, tmp_path / "teacher")
    shutil.copytree(shards, tmp_path / "shards")
    shutil.copytree(cache, tmp_path / "zarr")
    result = build_cache(settings(tmp_path / "shards", names, tmp_path / "zarr", tmp_path / "teacher"))
    assert result.parts_computed == 0


def test_an_unfinished_cache_reads_images_from_their_new_place(
    cache: Path, teacher: Path, shards: Path, names: Path, tmp_path: Path
) -> None:
    copy, moved = tmp_path / "zarr", tmp_path / "moved"
    shutil.copytree(cache, copy)
    shutil.copytree(shards, tmp_path / "first")
    CacheStore.open(copy, writable=True).parts.withdraw(2)
    build_cache(settings(tmp_path / "first", names, copy, teacher))
    (tmp_path / "first").rename(moved)
    CacheStore.open(copy, writable=True).parts.withdraw(2)
    assert build_cache(settings(moved, names, copy, teacher)).parts_computed == 1
    assert_same_arrays(copy, cache)
    found = open_cache(copy)
    assert found.samples.locations(slice(0, 1))[0][0] == str(moved / "shard-000.tar")
    assert found.header.images == str(moved)


@pytest.mark.parametrize("damage", ["gone", "cut"])
def test_a_damaged_sample_table_is_written_again(
    damage: str, cache: Path, teacher: Path, shards: Path, names: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "zarr"
    shutil.copytree(cache, copy)
    table = copy / SAMPLES
    content = table.read_bytes()
    table.unlink()
    if damage == "cut":
        table.write_bytes(content[: len(content) // 2])
    CacheStore.open(copy, writable=True).parts.withdraw(1)
    assert build_cache(settings(shards, names, copy, teacher)).parts_computed == 1
    assert not verify_store(CacheStore.open(copy))
    assert_same_arrays(copy, cache)


def test_other_folders_are_never_overwritten(
    teacher: Path, shards: Path, names: Path, tmp_path: Path
) -> None:
    (tmp_path / "thesis.txt").write_text("all my work")
    with pytest.raises(UsageError, match="exists and is not a cache"):
        build_cache(settings(shards, names, tmp_path, teacher))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_running_scheduler_builds_the_same_cache(
    cache: Path, teacher: Path, shards: Path, names: Path, tmp_path: Path
) -> None:
    with LocalCluster(
        n_workers=2, threads_per_worker=1, processes=False, dashboard_address="127.0.0.1:0"
    ) as cluster:
        asked = settings(shards, names, tmp_path / "zarr", teacher, scheduler=cluster.scheduler_address)
        assert build_cache(asked).parts_computed == 4
        assert len(cluster.scheduler_info["workers"]) == 2
    assert_same_arrays(tmp_path / "zarr", cache)


def test_worker_processes_build_the_same_cache(
    cache: Path, teacher: Path, shards: Path, names: Path, tmp_path: Path
) -> None:
    asked = settings(shards, names, tmp_path / "zarr", teacher, workers=2)
    assert build_cache(asked).parts_computed == 4
    assert_same_arrays(tmp_path / "zarr", cache)


def test_further_views_are_the_teachers_features_of_the_stored_crops(
    cache: Path, teacher: Path, shards: Path, names: Path, tmp_path: Path
) -> None:
    policy = ViewPolicy(views=3, view_seed=5)
    build_cache(settings(shards, names, tmp_path / "zarr", teacher, view_policy=policy))
    found = open_cache(tmp_path / "zarr")
    assert found.num_views == 3
    plain = Teacher(load_model(str(teacher)), torch.device("cpu"))
    for row in range(12):
        image = decode_image(jpeg(row))
        for view in (1, 2):
            crop = found.crops(row, view)[0]
            np.testing.assert_array_equal(crop, draw_crop(policy, row, view, 64, 48))
            pixels = torch.from_numpy(plain.renderer.render(image, view, crop))[None]
            expected = plain.image_features(pixels)
            torch.testing.assert_close(found.image_features(row, view).float(), expected, atol=1e-3, rtol=0)
    torch.testing.assert_close(
        found.image_features(slice(None)), open_cache(cache).image_features(slice(None)), atol=1e-3, rtol=0
    )
    assert (found.image_features(slice(None), 1) != found.image_features(slice(None), 2)).any()
    np.testing.assert_array_equal(found.crops(0)[0], [FULL // 8 + 1, 0, FULL * 3 // 4, FULL, 0])


def test_hard_labels_are_stored_in_row_order(teacher: Path, names: Path, tmp_path: Path) -> None:
    source = write_folder(tmp_path / "images", classes=[*ANIMALS, "unheard of"], images=2)
    notes: list[str] = []
    build_cache(settings(source, names, tmp_path / "zarr", teacher), notes.append)
    found = open_cache(tmp_path / "zarr")
    keys = found.samples.keys(slice(None))
    expected = [
        ANIMALS.index(folder) if folder in ANIMALS else -1 for folder in (k.split("/")[0] for k in keys)
    ]
    assert found.labels.tolist() == found.samples.labels.tolist() == expected
    assert keys == sorted(keys)
    assert any("2 samples of 1 classes outside the vocabulary (unheard of)" in note for note in notes)


def test_a_full_disk_stops_cleanly_and_the_next_build_continues(
    teacher: Path, names: Path, tmp_path: Path
) -> None:
    source = write_shards(tmp_path / "shards", shards=1, samples=300, width=8, height=8)
    asked = settings(source, names, tmp_path / "zarr", teacher, part_size=150, batch_size=64)
    with (
        _largest_file(150 * 48 * 2),
        pytest.raises(RppError, match=r"no space to write .* run the same command"),
    ):
        build_cache(asked)
    assert CacheStore.open(tmp_path / "zarr").parts.committed() == []
    assert build_cache(asked).parts_computed == 2
    assert open_cache(tmp_path / "zarr").valid.all()


@contextmanager
def _largest_file(size: int) -> Iterator[None]:
    """The kernel refuses to write files beyond `size` bytes (EFBIG), as a full disk would (ENOSPC)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_pictures_of_every_mode_are_read_as_rgb(teacher: Path, names: Path, tmp_path: Path) -> None:
    """Grey, palette, transparent and CMYK images in one shard are all readable."""
    image = picture(0)
    pictures = {
        "grey.png": encoded(image.convert("L"), "PNG"),
        "palette.gif": encoded(image.convert("P"), "GIF"),
        "alpha.webp": encoded(image.convert("RGBA"), "WEBP"),
        "cmyk.jpg": encoded(image.convert("CMYK"), "JPEG"),
        "deep.tif": encoded(Image.fromarray(np.arange(64 * 48, dtype=np.uint16).reshape(48, 64)), "TIFF"),
    }
    source = write_shard(tmp_path / "modes.tar", pictures.items())
    result: BuildResult = build_cache(settings(source, names, tmp_path / "zarr", teacher))
    assert (result.samples, result.skipped) == (5, 0)
    assert open_cache(tmp_path / "zarr").valid.all()


def _files(cache: Path) -> dict[str, tuple[int, int]]:
    """Size and time of change of every file, the lock aside."""
    stats = {Path(top, name): os.stat(Path(top, name)) for top, _, files in os.walk(cache) for name in files}
    return {str(p): (s.st_size, s.st_mtime_ns) for p, s in stats.items() if p.name != "build.lock"}


def test_a_compiled_build_has_the_same_features_to_rounding(
    teacher: Path,
    shards: Path,
    names: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Full batches run compiled, the last one of the part does not. The cache does not record the option."""
    monkeypatch.setattr(dynamo, "BACKEND", "eager")
    found = []
    for name, compiles in (("plain", False), ("compiled", True)):
        build_cache(settings(shards, names, tmp_path / name, teacher, compile=compiles, part_size=10))
        found.append(decoded_arrays(tmp_path / name))
        assert ("compiled the teacher's image encoder in" in capsys.readouterr().err) == compiles
    plain, compiled = found
    for name in plain:
        np.testing.assert_allclose(compiled[name].astype(float), plain[name].astype(float), atol=1e-3)
    assert (
        build_cache(settings(shards, names, tmp_path / "compiled", teacher, part_size=10)).parts_computed == 0
    )
