"""Which stage sets the pace: by the records of parts, and in builds in which one stage is slow."""

import re
import threading
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from teacher_cache.build import build_cache
from teacher_cache.errors import CacheDamagedError
from teacher_cache.pace import Pace, pace_text, paces
from teacher_cache.store.cache_store import CacheStore
from teacher_cache.store.header import CacheHeader
from teacher_cache.store.records import PartRecord, Resources
from tests.models import CONFIGS, write_model
from tests.teacher_cache.inputs import jpeg, settings, webdataset_members, write_shard, write_shards

# Of 1,000 images on 4 cores with 4 decoders, no stage of which is slow.
USUAL = {"wall": 10.0, "wait": 1.0, "forward": 8.9, "device": 8.0, "read": 2.0, "decode": 12.0}
USUAL |= {"decode_elapsed": 13.0, "write": 2.0}
GPU = Resources(device="cuda", decoders=4, cores=4, torch_threads=4)
CPU = replace(GPU, device="cpu")


def header(samples: int = 1000, passes: tuple[int, ...] = (1,)) -> CacheHeader:
    return CacheHeader(
        samples=samples,
        part_size=samples,
        embedding=4,
        classes=2,
        encoding={"name": "factored"},
        teacher={},
        view_policy={"views": passes[-1]},
        vocabulary="animals",
        vocabulary_digest="",
        sample_table_digest="",
        images="",
        software="",
        passes=list(passes),
    )


def record(seconds: dict[str, float], resources: Resources | None, part: int = 0) -> PartRecord:
    return PartRecord(part, (0, 1000), {}, seconds, [], resources)


def pace(resources: Resources | None, **changed: float) -> Pace:
    (found,) = paces(header(), [record(USUAL | changed, resources)])
    return found


@pytest.mark.parametrize(
    ("resources", "changed", "set_by", "share"),
    [
        (GPU, {}, "forward", 0.8),
        (GPU, {"decode_elapsed": 36.0}, "decode", 0.95),
        # Threads that wait for Python's lock use no processor: the GPU is idle nevertheless.
        (GPU, {"decode": 8.0, "decode_elapsed": 38.0, "device": 3.0, "wait": 7.0}, "decode", 1.0),
        # The teacher's own thread waits little, because it only launches work; its device is idle.
        (GPU, {"read": 30.0, "decode_elapsed": 8.0, "device": 2.0, "wait": 1.0}, "read", 0.95),
        (GPU, {"write": 14.0}, "write", 1.0),
        (CPU, {}, "forward", 0.9),
        # On shared cores decoding takes long beside a large teacher, and yet the teacher never waits for it.
        (CPU, {"decode_elapsed": 38.0, "wait": 0.2, "device": 9.8}, "forward", 0.98),
        (CPU, {"wait": 9.0, "device": 0.9, "decode": 30.0, "decode_elapsed": 36.0}, "decode", 0.9),
        (CPU, {"wait": 9.0, "device": 0.9, "read": 30.0}, "read", 0.9),
        (CPU, {"write": 14.0}, "write", 1.0),
        (None, {}, "forward", 0.9),
        (None, {"wait": 6.0}, "decode", 0.6),
        (None, {"wait": 6.0, "read": 30.0}, "read", 0.6),
        (None, {"write": 14.0}, "write", 1.0),
    ],
)
def test_the_stage_that_is_in_use_most_of_the_time_sets_the_pace(
    resources: Resources | None, changed: dict[str, float], set_by: str, share: float
) -> None:
    if resources is None:  # an earlier version's record
        new = ("device", "decode_elapsed")
        earlier = {name: value for name, value in (USUAL | changed).items() if name not in new}
        (found,) = paces(header(), [record(earlier, None)])
    else:
        found = pace(resources, **changed)
    assert (found.set_by, found.busy_share) == (set_by, pytest.approx(share))


def test_rates_are_those_of_a_stage_with_all_its_decoders_and_cores() -> None:
    gpu = pace(GPU)
    assert gpu.images_per_second == 100
    assert gpu.stage_images_per_second == {
        "read": 2000.0,  # 4 decoders for 2 s
        "decode": pytest.approx(1000 / (13 / 4), abs=0.1),
        "forward": 125.0,
        "write": 500.0,
    }
    # more decoders than cores: a core decodes for one of them at a time
    many = pace(replace(GPU, decoders=16)).stage_images_per_second
    assert many["decode"] == pytest.approx(1000 / (12 / 4), abs=0.1)
    # beside a teacher on the same cores: processor time, since alone they would not wait for cores
    shared = pace(CPU, decode_elapsed=39.0).stage_images_per_second
    assert shared["decode"] == pytest.approx(1000 / (12 / 4), abs=0.1)
    # while one part is written the next is computed: two parts in 10 + 14 s
    assert pace(GPU, write=14.0).images_per_second == pytest.approx(1000 / 12, abs=0.1)


def test_the_remedy_depends_on_whether_a_core_is_left() -> None:
    slow = {"decode_elapsed": 38.0, "decode": 36.0}
    assert pace(replace(GPU, cores=16), **slow).remedy == "more --decode-processes"
    assert pace(GPU, **slow).remedy == "more cores: each has a decoder"
    waiting = pace(GPU, decode_elapsed=38.0, decode=8.0)
    assert waiting.decoders_waited_share == pytest.approx(1 - 8 / 38, abs=1e-3)
    assert "waited 79% of their time for a core or for Python's lock" in waiting.remedy
    assert "--decode-processes" in pace(GPU, read=38.0).remedy
    assert "--threads" in pace(CPU, wait=30.0, read=38.0).remedy
    assert "--device" in pace(GPU).remedy
    assert "--encoding" in pace(GPU, write=20.0).remedy


def test_parts_with_other_resources_or_views_are_counted_apart() -> None:
    """A resumed build may have other threads, and an extension other views."""
    found = paces(
        header(passes=(1, 3)),
        [
            record(USUAL, GPU),
            record(USUAL, replace(GPU, decoders=8), part=1),
            record(USUAL, GPU),
            record({}, None),  # no times: not counted
            record(USUAL, GPU, part=2),  # forged: the cache has two parts
        ],
    )
    assert [(one.parts, one.decoders, one.views_per_image) for one in found] == [(2, 4, 1), (1, 8, 2)]
    assert found[0].images_per_second == 100
    assert "images/s of 2 views per worker (1 part)" in pace_text(found[1])


def test_the_text_has_the_rates_and_what_to_do() -> None:
    assert pace_text(pace(GPU, decode_elapsed=36.0)) == (
        "100.0 images/s per worker (1 part), set by decoding, in use 95% of the time\n"
        "  images/s of each stage alone: reading 2,000, decoding 111, the teacher 125, writing 500; "
        "4 decoders on 4 cores\n"
        "  faster with more cores or --workers: the decoders waited 67% of their time for a core or for "
        "Python's lock"
    )
    shared = pace_text(pace(CPU))
    assert "reading at least 2,000, decoding 333," in shared
    assert "decoding and the teacher share 4 cores" in shared
    old = pace_text(pace(None))
    assert "the rates of the stages were not recorded" in old
    assert "alone" not in old


def test_a_record_of_an_earlier_version_has_no_resources() -> None:
    new = record(USUAL, GPU)
    assert PartRecord.from_bytes(new.to_bytes(), "it") == new
    old = record(USUAL, None)
    assert PartRecord.from_bytes(old.to_bytes(), "it") == old
    forged = PartRecord(0, (0, 1), {}, USUAL, [], Resources("cpu", 0, 1, 1))
    with pytest.raises(CacheDamagedError, match=r"resources\.decoders"):
        PartRecord.from_bytes(forged.to_bytes(), "it")


def stage_of(built: Any) -> str:
    (found,) = built.pace
    assert found["stage_images_per_second"]["forward"] > 0
    assert found["device"] == "cpu"
    return str(found["set_by"])


def test_a_large_teacher_sets_the_pace_of_tiny_images(
    names: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = {**CONFIGS["gelu"], "vision_cfg": {**CONFIGS["gelu"]["vision_cfg"], "patch_size": 2, "width": 192}}
    monkeypatch.setitem(CONFIGS, "slow", slow)
    source = write_shards(tmp_path / "shards", shards=1, samples=24, width=8, height=8)
    teacher = write_model(tmp_path / "teacher", "slow")
    built = build_cache(settings(source, names, tmp_path / "zarr", teacher, part_size=24, torch_threads=1))
    assert stage_of(built) == "forward"


def test_large_images_set_the_pace_of_a_small_teacher(teacher: Path, names: Path, tmp_path: Path) -> None:
    large = jpeg(0, 3000, 2000)
    members = [
        (name, large if name.endswith(".jpg") else content) for name, content in webdataset_members(0, 8)
    ]
    source = write_shard(tmp_path / "large.tar", members)
    built = build_cache(settings(source, names, tmp_path / "zarr", teacher, part_size=8))
    assert stage_of(built) == "decode"
    resources = CacheStore.open(tmp_path / "zarr").parts.record(0).resources
    assert resources is not None
    assert (resources.device, resources.decoders) == ("cpu", 2)
    again = build_cache(settings(source, names, tmp_path / "zarr", teacher, part_size=8))
    assert again.pace == []  # nothing was computed


class SlowRanges(BaseHTTPRequestHandler):
    """A web server of one file, which takes a tenth of a second for each answer."""

    content = b""

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(self.content)))
        self.end_headers()

    def do_GET(self) -> None:
        time.sleep(0.1)
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        first, last = (int(asked[1]), int(asked[2])) if asked else (0, len(self.content) - 1)
        part = self.content[first : last + 1]
        self.send_response(206 if asked else 200)
        self.send_header("Content-Range", f"bytes {first}-{first + len(part) - 1}/{len(self.content)}")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part)

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_a_slow_network_sets_the_pace(
    teacher: Path, names: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = write_shards(tmp_path / "shards", shards=1, samples=16) / "shard-000.tar"
    monkeypatch.setattr(SlowRanges, "content", shard.read_bytes())
    with ThreadingHTTPServer(("127.0.0.1", 0), SlowRanges) as http:
        threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True).start()
        url = f"http://127.0.0.1:{http.server_address[1]}/shard-000.tar"
        built = build_cache(settings(url, names, tmp_path / "zarr", teacher, part_size=16))
        http.shutdown()
    assert stage_of(built) == "read"
    assert built.pace[0]["stage_images_per_second"]["read"] < 2 / 0.1  # two decoders
