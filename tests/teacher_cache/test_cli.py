"""The command `rpp-cache`: output, exit codes, and one line for every error of use."""

import json
import os
import re
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import pyarrow.parquet as pq
import pytest

from teacher_cache import open_cache
from teacher_cache.images.table import SampleTable
from teacher_cache.store.cache_store import CacheStore
from teacher_cache.store.parts import StoredParts
from tests.models import write_model
from tests.teacher_cache.conftest import Run
from tests.teacher_cache.inputs import (
    ANIMALS,
    assert_same_arrays,
    jpeg,
    webdataset_members,
    write_folder,
    write_names,
    write_shard,
)


def flat(options: dict[str, Any]) -> list[Any]:
    """Options as words of a command line."""
    return [item for pair in options.items() for item in pair]


def test_build_reports_computed_parts_and_none_when_called_again(
    run: Run, arguments: dict[str, Any], cache: Path
) -> None:
    code, out, err = run("build", *flat(arguments))
    assert code == 0
    assert "12 samples, 4 of 4 parts computed now, 0 unreadable images" in out
    assert "samples 12/12" in err
    assert_same_arrays(arguments["--out"], cache)
    code, out, _ = run("build", "--json", *flat(arguments))
    facts = json.loads(out)
    assert code == 0
    assert (facts["samples"], facts["parts_total"], facts["parts_computed"]) == (12, 4, 0)


def test_info_as_json(run: Run, cache: Path, teacher: Path) -> None:
    code, out, err = run("info", "--json", cache)
    facts = json.loads(out)
    assert (code, err) == (0, "")
    assert {name: facts[name] for name in ("samples", "valid", "skipped", "views")} == {
        "samples": 12,
        "valid": 12,
        "skipped": 0,
        "views": 1,
    }
    assert (facts["parts_total"], facts["parts_committed"], facts["complete"]) == (4, 4, True)
    assert (facts["encoding"], facts["encoding_options"]) == ("factored", {})
    assert facts["passes"] == [{"views": 1, "parts_committed": 4, "parts_total": 4}]
    assert facts["slowest_stage"] in ("read", "decode", "forward", "write")
    assert facts["bytes_per_view"] > 48 * 2
    assert facts["teacher"]["model"] == f"local-dir:{teacher}"
    assert facts["vocabularies"] == {"animals": {"classes": 5, "templates": ["a photo of a {}."]}}
    stages = {"wall", "read", "decode", "decode_elapsed", "wait", "forward", "device", "write"}
    assert set(facts["seconds"]) == stages
    (pace,) = facts["pace"]
    assert (pace["parts"], pace["images"], pace["views_per_image"], pace["device"]) == (4, 12, 1, "cpu")
    assert (pace["decoders"], pace["set_by"]) == (2, facts["slowest_stage"])
    assert set(pace["stage_images_per_second"]) == {"read", "decode", "forward", "write"}
    assert pace["images_per_second"] > 0


def test_info_as_text_has_the_same_fields(run: Run, cache: Path) -> None:
    code, out, _ = run("info", cache)
    assert code == 0
    assert "samples: 12" in out
    assert "complete: True" in out
    assert "animals" in out
    assert re.search(r"^pace: \n  [\d.,]+ images/s per worker \(4 parts\), set by \w+", out, re.MULTILINE)


@pytest.mark.parametrize(
    ("words", "port"),
    [
        (["--dashboard"], r"\d+"),
        (["--dashboard", "0"], r"\d+"),
        (["--dashboard=0"], r"\d+"),
        (["--dashboard", "--strict"], r"\d+"),
    ],
)
def test_the_port_of_the_dashboard_is_optional(
    words: list[str], port: str, run: Run, arguments: dict[str, Any]
) -> None:
    code, out, err = run("build", *words, *flat(arguments))
    assert code == 0, err
    assert re.search(
        rf"note: dashboard of the workers, while they compute: http://127.0.0.1:{port}/status", err
    )
    assert re.search(r"^pace: [\d.,]+ images/s per worker \(4 parts\), set by ", out, re.MULTILINE)
    code, _, err = run("extend", "--views", 2, "--device", "cpu", *words, arguments["--out"])
    assert code == 0, err  # what follows the option is the cache, not a port
    assert "note: dashboard of the workers" in err


def test_a_port_that_cannot_be_is_refused(run: Run, arguments: dict[str, Any]) -> None:
    for word in ("--dashboard=70000", "--dashboard=here"):
        code, _, err = run("build", word, *flat(arguments))
        assert code == 2
        assert "--dashboard" in err


def test_info_counts_labels_and_has_the_notes_of_indexing(
    run: Run, arguments: dict[str, Any], tmp_path: Path
) -> None:
    members = [
        ("._0.cls", b"\0\5\26\7\x8f"),
        ("0.jpg", jpeg(0)),
        ("0.cls", b"0"),
        ("0.json", b'{"label": 1}'),
    ]
    members += [
        ("1.jpg", jpeg(1)),
        ("2.jpg", jpeg(2)),
        ("2.cls", b"zebra"),
        ("3.jpg", jpeg(3)),
        ("3.cls", b"cat"),
    ]
    arguments["--images"] = write_shard(tmp_path / "s.tar", members)
    code, _, err = run("build", *flat(arguments))
    assert code == 2
    assert "the labels of 1 of 4 samples contradict one another (0: cls 0, json label 1)" in err
    code, _, err = run("build", *flat(arguments | {"--labels": "json"}))
    assert code == 0
    facts = json.loads(run("info", "--json", arguments["--out"])[1])
    assert facts["labels"] == {
        "choice": "json",
        "labelled": 2,
        "unlabelled": 2,
        "outside_vocabulary": 1,
        "contradictory": 1,
        "first_unlabelled": ["1", "2"],
        "first_contradictory": ["0"],
    }
    assert facts["notes"] == [
        "passed over 1 leftover of macOS, the first is ._0.cls",
        "the labels of 1 samples contradict one another (0: json label 1, cls 0); that in json counts",
        "1 samples of 1 classes outside the vocabulary (zebra) have no hard label",
        "1 of 4 samples have no label (1)",
        "3 of 5 classes have no sample",
    ]
    assert all(f"note: {note}" in err for note in facts["notes"])
    text = run("info", arguments["--out"])[1]
    assert "labelled 2, unlabelled 2 (first: 1, 2), outside vocabulary 1, contradictory 1 (first: 0)" in text
    assert run("build", *flat(arguments | {"--labels": "json"}))[0] == 0
    assert run("build", *flat(arguments | {"--labels": "cls"}))[0] == 2  # the cache has other labels


@pytest.mark.parametrize(
    ("names", "note"),
    [
        (
            ("caf\u00e9", "cafe\u0301", "owl"),
            "the names of 2 classes differ from another name only in case, spaces, underscores or Unicode "
            "form, such as 'caf\u00e9' and 'cafe\\u0301'; text towers may read them alike",
        ),
        (
            ("owl", "cat", "cat"),
            "2 classes share their name with another and cannot be told apart by it",
        ),
    ],
)
def test_info_shows_names_that_are_alike(
    run: Run, arguments: dict[str, Any], names: tuple[str, ...], note: str, tmp_path: Path
) -> None:
    (tmp_path / "v.txt").write_text("\n".join(names))
    arguments |= {"--images": str(tmp_path / "images"), "--classes": str(tmp_path / "v.txt")}
    write_folder(tmp_path / "images", names[:1])
    code, _, err = run("build", *flat(arguments))
    assert code == 0
    assert f"note: {note}" in err
    assert note in json.loads(run("info", "--json", arguments["--out"])[1])["notes"]


def test_info_of_an_earlier_versions_cache_counts_what_it_has(run: Run, cache: Path, tmp_path: Path) -> None:
    old = shutil.copytree(cache, tmp_path / "old")
    store = CacheStore.open(old, writable=True)
    bare = SampleTable(store.samples.table.replace_schema_metadata(None))
    with store.locked():
        store.locate_images(bare, store.header.images)
    facts = json.loads(run("info", "--json", old)[1])
    assert (facts["labels"]["labelled"], facts["labels"]["unlabelled"]) == (12, 0)
    assert (facts["labels"]["contradictory"], facts["notes"]) == (None, [])
    assert "contradictory not counted" in run("info", old)[1]


def test_unreadable_images_are_listed_with_their_reasons(
    run: Run, arguments: dict[str, Any], tmp_path: Path
) -> None:
    members = webdataset_members(0, 6)
    members[5] = (members[5][0], b"no image")
    arguments["--images"] = write_shard(tmp_path / "bad.tar", members)
    code, out, _ = run("build", *flat(arguments))
    assert code == 0
    assert "1 unreadable images" in out
    assert "rpp-cache info --skipped" in out
    facts = json.loads(run("info", "--skipped", "--json", arguments["--out"])[1])
    assert (facts["valid"], facts["skipped"]) == (5, 1)
    assert [(e["row"], e["key"]) for e in facts["skipped_samples"]] == [(2, "000002")]
    assert "not an image" in facts["skipped_samples"][0]["reason"]
    assert "row 2 000002: " in run("info", "--skipped", arguments["--out"])[1]


def test_verify_finds_damage_and_the_next_build_repairs_it(
    run: Run, arguments: dict[str, Any], cache: Path
) -> None:
    copy = arguments["--out"]
    shutil.copytree(cache, copy)
    sound = {"ok": True, "damaged_parts": [], "missing_parts": [], "damaged_tables": [], "damaged_pixels": []}
    code, out, _ = run("verify", "--json", copy)
    assert (code, json.loads(out)) == (0, sound)
    shard = copy / "image_features" / "c" / "2" / "0" / "0"
    content = bytearray(shard.read_bytes())
    content[10] ^= 1
    shard.write_bytes(content)
    code, out, _ = run("verify", "--json", copy)
    assert (code, json.loads(out)) == (1, sound | {"ok": False, "damaged_parts": [2]})
    code, out, _ = run("verify", "--json", copy)
    assert (code, json.loads(out)) == (1, sound | {"ok": False, "missing_parts": [2]})
    code, out, _ = run("verify", copy)
    assert code == 1
    assert "1 of 4 parts are missing; build computes them" in out
    assert "not ok" in out
    assert json.loads(run("build", "--json", *flat(arguments))[1])["parts_computed"] == 1
    assert run("verify", copy)[:2] == (0, "ok\n")
    assert_same_arrays(copy, cache)


def test_damaged_class_features_are_computed_again_by_the_next_build(
    run: Run, arguments: dict[str, Any], cache: Path
) -> None:
    copy = arguments["--out"]
    shutil.copytree(cache, copy)
    features = copy / "vocabularies" / "animals" / "class_features" / "c" / "0" / "0"
    features.write_bytes(features.read_bytes()[:-4] + b"abcd")
    code, out, _ = run("verify", copy)
    assert code == 1
    assert "vocabularies/animals is damaged; it belongs to no part: build writes it again" in out
    assert json.loads(run("build", "--json", *flat(arguments))[1])["parts_computed"] == 0
    assert run("verify", copy)[:2] == (0, "ok\n")
    assert_same_arrays(copy, cache)


def _other_labels(tmp_path: Path, arguments: dict[str, Any]) -> None:
    members = webdataset_members(0, 4, labels={0: 0, 1: 4, 2: 5, 3: 1})
    arguments["--images"] = write_shard(tmp_path / "six" / "classes.tar", members)


def _empty(tmp_path: Path, arguments: dict[str, Any]) -> None:
    (tmp_path / "empty").mkdir()
    arguments["--images"] = tmp_path / "empty"


def _tar_without_images(tmp_path: Path, arguments: dict[str, Any]) -> None:
    arguments["--images"] = write_shard(tmp_path / "none.tar", [("readme.txt", b"nothing")])


def _created_with_another_teacher(tmp_path: Path, arguments: dict[str, Any], cache: Path) -> None:
    shutil.copytree(cache, arguments["--out"])
    arguments["--teacher"] = write_model(tmp_path / "other", "gelu", seed=1)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"--teacher": "ViT-B-61"}, r"open_clip has no model 'ViT-B-61'; near names: .*ViT-B-16"),
        ({"--teacher": "ViT-B-16"}, r"'ViT-B-16' needs --pretrained: .*openai"),
        ({"--teacher": "ViT-B-16", "--pretrained": "opnai"}, r"neither a file nor .*openai"),
        ({"--classes": "imagenet-2k"}, r"no such file, and no known name \(imagenet-21k"),
        ({"--images": "/no/such/folder"}, r"/no/such/folder"),
        ({"--images": "/no/{00..03}.tar"}, r"/no/00\.tar"),
        ({"--device": "cuda:77"}, r"device 'cuda:77' is not available; available: cpu"),
        ({"--out": "/proc/none/zarr"}, r"cannot write /proc/none/zarr: "),
        ({"--part-size": 0}, r"--part-size.*0.*greater than or equal to 1"),
        ({"--templates": "a photo"}, r"templates 'a photo'"),
        ({"--scheduler": "tcp://127.0.0.1:1"}, r"no Dask scheduler answers at tcp://127\.0\.0\.1:1"),
        ({"--scheduler": "tcp://127.0.0.1:1", "--workers": 2}, r"--workers starts workers on this machine"),
        ({"--topk": 5}, r"--topk belongs to --encoding topk, not to factored"),
        (_other_labels, r"5 classes"),
        (_empty, r"no image"),
        (_tar_without_images, r"no image"),
        (_created_with_another_teacher, r"teacher\.weights_digest: stored \S+, requested \S+"),
    ],
)
def test_wrong_use_is_one_line_and_exit_code_2(
    change: Any, reason: str, run: Run, arguments: dict[str, Any], cache: Path, tmp_path: Path
) -> None:
    if isinstance(change, dict):
        arguments |= change
    elif change is _created_with_another_teacher:
        change(tmp_path, arguments, cache)
    else:
        change(tmp_path, arguments)
    with dask.config.set({"distributed.comm.timeouts.connect": "1s"}):
        code, out, err = run("build", *flat(arguments))
    lines = [line for line in err.splitlines() if line and not line.startswith("note: ")]
    assert (code, out) == (2, "")
    assert len(lines) == 1
    assert re.search(reason, lines[0])


@pytest.mark.parametrize("command", ["info", "verify"])
def test_a_missing_cache(command: str, run: Run, tmp_path: Path) -> None:
    code, out, err = run(command, tmp_path / "none")
    assert (code, out) == (2, "")
    assert err.strip() == f"error: no cache at {tmp_path / 'none'}"


@pytest.mark.parametrize(
    ("gone", "reason"),
    [
        ("samples.parquet", "samples.parquet is damaged; .* build writes it again"),
        ("vocabularies", "vocabularies/animals is damaged; .* build writes it again"),
    ],
)
def test_a_cache_with_missing_files_is_reported_in_one_line(
    gone: str, reason: str, run: Run, cache: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "zarr"
    shutil.copytree(cache, copy)
    if (copy / gone).is_dir():
        shutil.rmtree(copy / gone)
    else:
        (copy / gone).unlink()
    code, out, err = run("verify", copy)
    assert code == 1
    assert re.search(reason, out + err)
    assert "Traceback" not in out + err
    assert run("info", copy)[0] == (0 if gone == "samples.parquet" else 1)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """SIGINT raises KeyboardInterrupt, also where the tests run in a shell's background, which ignores it;
    SIGHUP is not ignored, also below `nohup`."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    before_hangup = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGINT, before)
    signal.signal(signal.SIGHUP, before_hangup)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_ctrl_c_and_other_signals_say_how_to_continue_and_the_next_build_does(
    sign: signal.Signals, run: Run, arguments: dict[str, Any], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = StoredParts.commit

    def commit_and_interrupt(self: StoredParts, part: int, *rest: Any) -> Any:
        record = commit(self, part, *rest)
        if part == 1:
            os.kill(os.getpid(), sign)
            time.sleep(2)  # the worker's thread is here; the interrupt is the main thread's
        return record

    monkeypatch.setattr(StoredParts, "commit", commit_and_interrupt)
    code, _, err = run("build", *flat(arguments))
    assert code == 1
    assert err.splitlines()[-1] == (
        "error: stopped; what is committed is safe: run the same command again to continue"
    )
    monkeypatch.undo()
    # part 2 may have been computed while part 1 was written
    assert CacheStore.open(arguments["--out"]).parts.committed() in ([0, 1], [0, 1, 2])
    assert run("build", *flat(arguments))[0] == 0
    assert_same_arrays(arguments["--out"], cache)


def test_a_built_cache_is_read_by_the_library(cache: Path) -> None:
    opened = open_cache(cache)
    assert len(opened) == 12
    assert opened.vocabulary.names == ANIMALS


def test_labels_by_name_need_no_index(run: Run, arguments: dict[str, Any], tmp_path: Path) -> None:
    members = [
        (name.replace(".cls", ".json"), json.dumps({"label": ANIMALS[int(content)]}).encode())
        if name.endswith(".cls")
        else (name, content)
        for name, content in webdataset_members(0, 5)
    ]
    arguments["--images"] = write_shard(tmp_path / "named.tar", members)
    arguments["--classes"] = write_names(tmp_path / "reversed.txt", ANIMALS[::-1])
    assert run("build", *flat(arguments))[0] == 0
    assert open_cache(arguments["--out"]).labels.tolist() == [4, 3, 2, 1, 0]


class TestStats:
    def test_as_json(self, run: Run, cache: Path) -> None:
        code, out, err = run("stats", "--temperature", "0.5,2", "--json", cache)
        facts = json.loads(out)
        assert code == 0
        assert "rows 12/12" in err
        assert (facts["rows"], facts["labelled"]) == (12, 12)
        assert [line["temperature"] for line in facts["temperatures"]] == [0.5, 2.0]
        assert facts["top1"] == 1 - sum(pair["count"] for pair in facts["confused"]) / 12

    def test_for_people(self, run: Run, cache: Path) -> None:
        code, out, err = run("stats", "--sample", "7", "--pairs", "1", cache)
        assert code == 0
        assert "rows 7/7" in err
        assert "7 rows, 7 of them with a hard label, view 0" in out
        assert "effective classes" in out
        assert out.count(" taken for ") == 1

    @pytest.mark.parametrize(
        ("temperature", "reason"),
        [("1,two", "--temperature '1,two': expected numbers such as"), ("0", "above zero, found 0")],
    )
    def test_wrong_temperatures(self, run: Run, cache: Path, temperature: str, reason: str) -> None:
        code, out, err = run("stats", "--temperature", temperature, cache)
        assert (code, out) == (2, "")
        assert reason in err.splitlines()[-1]


def test_export_writes_a_parquet_file(run: Run, cache: Path, tmp_path: Path) -> None:
    out_file = tmp_path / "soft.parquet"
    code, out, err = run("export", cache, "--out", out_file, "--top", 2, "--temperature", 4)
    assert code == 0
    assert out == f"{out_file}: 12 samples, the top 2 classes at temperature 4\n"
    assert "rows 12/12" in err
    assert pq.read_table(out_file).num_rows == 12
    code, _, err = run("export", cache, "--out", out_file, "--top", 2)
    assert (code, err.splitlines()[-1]) == (2, f"error: {out_file} exists; choose another --out")


@pytest.mark.parametrize("command", ["stats", "export"])
def test_an_unfinished_cache_is_refused(command: str, run: Run, cache: Path, tmp_path: Path) -> None:
    copy = tmp_path / "zarr"
    shutil.copytree(cache, copy)
    CacheStore.open(copy).parts.withdraw(3)
    options = ["--out", tmp_path / "soft.parquet"] if command == "export" else []
    code, out, err = run(command, copy, *options)
    assert (code, out) == (2, "")
    assert "is not complete: 1 of 4 parts are missing; run rpp-cache build again" in err


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"--encoding": "factored-int8"}, {"name": "factored-int8"}),
        ({"--encoding": "topk", "--topk": 2}, {"name": "topk", "k": 2}),
        ({"--encoding": "dense"}, {"name": "dense"}),
    ],
)
def test_an_encoding_is_recorded_and_another_refused(
    options: dict[str, Any], expected: dict[str, Any], run: Run, arguments: dict[str, Any]
) -> None:
    assert run("build", *flat(arguments | options))[0] == 0
    assert run("verify", arguments["--out"])[:2] == (0, "ok\n")
    opened = open_cache(arguments["--out"])
    assert opened.header.encoding == expected
    code, _, err = run("build", *flat(arguments | {"--encoding": "topk", "--topk": 3}))
    assert code == 2
    assert re.search(r"was created with different settings \(encoding\..*: stored .*, requested ", err)


def test_topk_of_too_many_classes_is_refused_before_any_work(run: Run, arguments: dict[str, Any]) -> None:
    code, _, err = run("build", *flat(arguments | {"--encoding": "topk", "--topk": 100}))
    assert code == 2
    assert "topk of 100 needs a vocabulary of more than its 5 classes" in err.splitlines()[-1]
    assert not arguments["--out"].exists()
