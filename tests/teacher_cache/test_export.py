"""The Parquet file that other trainers read."""

import json
import os
import resource
import signal
from pathlib import Path

import numpy as np
import pandas
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from teacher_cache import TeacherCache, open_cache, teacher_statistics
from teacher_cache.build import build_cache
from teacher_cache.command_settings import ViewPolicy
from teacher_cache.errors import RppError, UsageError
from teacher_cache.export import METADATA, export_soft_labels
from tests.teacher_cache.conftest import Run
from tests.teacher_cache.inputs import ANIMALS, jpeg, settings, webdataset_members, write_shard


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory, teacher: Path, names: Path) -> TeacherCache:
    """Twenty samples of two views: one without a hard label, one unreadable."""
    folder = tmp_path_factory.mktemp("export")
    members = dict(webdataset_members(0, 20))
    del members["000004.cls"]
    members["000007.jpg"] = b"no image"
    images = write_shard(folder / "a.tar", members.items())
    build_cache(settings(images, names, folder / "zarr", teacher, view_policy=ViewPolicy(views=2)))
    return open_cache(folder / "zarr")


@pytest.mark.parametrize(("temperature", "view", "top"), [(1.0, 0, 3), (2.5, 1, 5)])
def test_it_holds_the_likeliest_classes(
    opened: TeacherCache,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    temperature: float,
    view: int,
    top: int,
) -> None:
    monkeypatch.setattr("teacher_cache.export.CHUNK_ROWS", 4)
    monkeypatch.setattr("teacher_cache.export.ROWS_A_GROUP", 8)
    out, done = tmp_path / "new" / "soft.parquet", []
    assert export_soft_labels(opened, out, top, temperature, view, on_rows=done.append) == 19
    assert sum(done) == 20
    assert os.listdir(out.parent) == ["soft.parquet"]
    assert pq.ParquetFile(out).num_row_groups == 3
    table = pq.read_table(out)
    assert [(f.name, str(f.type)) for f in table.schema] == [
        ("key", "string"),
        ("label", "int32"),
        ("label_id", "string"),
        ("classes", "list<element: int32>"),
        ("probabilities", "list<element: float>"),
        ("row", "int64"),
        ("path", "string"),
        ("offset", "int64"),
        ("view", "int32"),
    ]
    assert table["row"].to_pylist() == np.flatnonzero(opened.valid).tolist()
    assert set(table["view"].to_pylist()) == {view}
    rows = np.flatnonzero(opened.valid)
    soft = opened.soft_labels(rows, temperature, view)
    for at, line in enumerate(table.to_pylist()):
        row = int(rows[at])
        assert line["key"] == f"{row:06d}"
        assert line["label"] == (-1 if row == 4 else row % 5)
        assert line["label_id"] == (None if row == 4 else ANIMALS[row % 5])
        expected = soft[at].topk(top)
        assert line["classes"] == expected.indices.tolist()
        assert line["probabilities"] == pytest.approx(expected.values.tolist(), abs=1e-6)


@pytest.fixture(scope="module")
def repeated(tmp_path_factory: pytest.TempPathFactory, teacher: Path, names: Path) -> TeacherCache:
    """Two shards whose keys begin at 000000, with an unreadable image in the first."""
    folder = tmp_path_factory.mktemp("repeated")
    for shard in range(2):
        members = {f"{i:06d}.jpg": b"junk" if (shard, i) == (0, 2) else jpeg(4 * shard + i) for i in range(4)}
        write_shard(folder / f"s-{shard}.tar", members.items())
    images = folder / "s-{0..1}.tar"
    build_cache(settings(images, names, folder / "zarr", teacher, view_policy=ViewPolicy(views=2)))
    return open_cache(folder / "zarr")


def test_a_cache_may_be_given_by_its_path(opened: TeacherCache, tmp_path: Path) -> None:
    assert export_soft_labels(opened.path, tmp_path / "a.parquet") == 19
    export_soft_labels(opened, tmp_path / "b.parquet")
    assert pq.read_table(tmp_path / "a.parquet").equals(pq.read_table(tmp_path / "b.parquet"))
    assert teacher_statistics(opened.path, [1.0]) == teacher_statistics(opened, [1.0])


@pytest.mark.parametrize("view", [0, 1])
def test_rows_with_repeated_keys_are_joined_back(repeated: TeacherCache, tmp_path: Path, view: int) -> None:
    """With the cache, with its table of samples, and with the bytes of the images."""
    out = tmp_path / "soft.parquet"
    assert export_soft_labels(repeated, str(out), 3, view=view) == 7
    exported = pandas.read_parquet(out)
    assert exported["key"].duplicated().any()
    assert exported["row"].tolist() == [0, 1, 3, 4, 5, 6, 7]
    samples = pandas.read_parquet(Path(repeated.path) / "samples.parquet")
    joined = exported.merge(samples, on=["path", "offset", "key"], validate="one_to_one")
    assert len(joined) == 7
    by_row = exported.join(samples, on="row", rsuffix="_stored")
    for line in by_row.itertuples():
        assert (line.key, line.path, line.offset) == (line.key_stored, line.path_stored, line.offset_stored)
        soft = torch.softmax(repeated.logits(line.row, view), dim=1)[0]
        assert list(line.probabilities) == pytest.approx(soft[torch.tensor(line.classes)].tolist(), abs=1e-6)
        with open(line.path, "rb") as shard:
            shard.seek(line.offset)
            number = 4 * int(line.path.endswith("1.tar")) + int(line.key)
            assert shard.read(line.length) == jpeg(number)


@pytest.mark.parametrize("kind", ["folder", "parquet"])
def test_rows_of_folders_and_parquet_have_their_place(
    kind: str, tmp_path: Path, teacher: Path, names: Path
) -> None:
    if kind == "folder":
        for name in ("cat", "dog"):
            (tmp_path / "images" / name).mkdir(parents=True)
            (tmp_path / "images" / name / "1.jpg").write_bytes(jpeg(len(name)))
    else:
        (tmp_path / "images").mkdir()
        for name in ("a", "b"):
            rows = {"image": [{"bytes": jpeg(i), "path": f"{i}.jpg"} for i in (1, 2)], "label": [0, 1]}
            pq.write_table(pa.table(rows), tmp_path / "images" / f"{name}.parquet")
    build_cache(settings(tmp_path / "images", names, tmp_path / "zarr", teacher))
    opened = open_cache(tmp_path / "zarr")
    export_soft_labels(opened, tmp_path / "soft.parquet", 2)
    columns = ["key", "path", "offset"]
    exported = pq.read_table(tmp_path / "soft.parquet").select(columns)
    stored = pq.read_table(tmp_path / "zarr" / "samples.parquet").select(columns)
    assert exported.to_pylist() == stored.to_pylist()
    assert len({tuple(row.values()) for row in exported.to_pylist()}) == len(opened)


def test_the_default_number_of_classes_fits_the_vocabulary(
    opened: TeacherCache, tmp_path: Path, run: Run
) -> None:
    out = tmp_path / "soft.parquet"
    code, said, _ = run("export", opened.path, "--out", out)
    assert (code, said) == (0, f"{out}: 19 samples, the top 5 classes at temperature 1\n")
    code, _, err = run("export", opened.path, "--out", tmp_path / "other", "--top", 20)
    assert code == 2
    assert "the top 20 classes requested from a vocabulary of 5" in err


@pytest.mark.parametrize(("top", "kept"), [(None, 5), (np.int64(2), 2), (torch.tensor(3), 3)])
def test_from_python_the_number_of_classes_has_any_form(
    opened: TeacherCache, tmp_path: Path, top: int | None, kept: int
) -> None:
    export_soft_labels(opened, tmp_path / "soft.parquet", top)
    table = pq.read_table(tmp_path / "soft.parquet")
    assert {len(classes) for classes in table["classes"].to_pylist()} == {kept}
    assert json.loads(table.schema.metadata[METADATA])["top"] == kept


def test_it_opens_in_pandas_and_has_metadata(opened: TeacherCache, tmp_path: Path) -> None:
    out = tmp_path / "soft.parquet"
    export_soft_labels(opened, out, 2, 0.5)
    said = json.loads(pq.read_schema(out).metadata[METADATA])
    assert {name: said[name] for name in ("temperature", "top", "view", "vocabulary")} == {
        "temperature": 0.5,
        "top": 2,
        "view": 0,
        "vocabulary": "animals",
    }
    assert said["teacher"] == opened.teacher
    assert said["encoding"] == {"name": "factored"}
    assert said["vocabulary_digest"] == opened.header.vocabulary_digest
    assert said["names"] == said["ids"] == list(ANIMALS)
    frame = pandas.read_parquet(out)
    assert len(frame) == 19
    assert [len(classes) for classes in frame["classes"]] == [2] * 19


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"top": 6}, "the top 6 classes requested from a vocabulary of 5: expected 1 to 5"),
        ({"top": "2"}, "the number of classes to keep must be an integer, not '2'"),
        ({"temperature": 0.0}, "the temperature must be above zero"),
        ({"view": 2}, "view 2 is not in the cache, which has views 0 to 1"),
        ({"out": Path("/proc/none/soft.parquet")}, "cannot write /proc/none/soft.parquet"),
    ],
)
def test_wrong_use(opened: TeacherCache, tmp_path: Path, change: dict[str, object], reason: str) -> None:
    arguments: dict[str, object] = {"out": tmp_path / "soft.parquet", "top": 2} | change
    with pytest.raises(UsageError, match=reason):
        export_soft_labels(opened, **arguments)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_an_existing_file_is_not_overwritten(opened: TeacherCache, tmp_path: Path) -> None:
    out = tmp_path / "soft.parquet"
    out.write_text("mine")
    with pytest.raises(UsageError, match="exists; choose another --out"):
        export_soft_labels(opened, out, 2)
    assert out.read_text() == "mine"


def test_a_full_disk_leaves_no_file(opened: TeacherCache, tmp_path: Path) -> None:
    """A limit on file sizes stands for the full disk: the system answers both with an error of writing."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, before[1]))
    try:
        with pytest.raises(RppError, match=r"cannot write .*soft\.parquet: File too large") as raised:
            export_soft_labels(opened, tmp_path / "soft.parquet", 5)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert raised.value.exit_code == 1
    assert not list(tmp_path.iterdir())
