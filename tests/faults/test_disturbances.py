"""Faults other than kills: full disks, failing reads, jumping clocks, concurrent calls, missing permissions,
missing and truncated files."""

import os
import random
import shutil
import threading
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import numpy as np
import pytest
import zarr
from safetensors.torch import load_file

from teacher_cache.store.cache_store import CacheStore
from teacher_cache.store.verify import verify_store
from tests.faults.attempts import Attempts, Ended
from tests.faults.conftest import KILLS, SAMPLES, SEED, Inputs, Record
from tests.faults.test_kills import figures
from tests.teacher_cache.inputs import assert_same_arrays, decoded_arrays

pytestmark = pytest.mark.faults
TRIES = max(2, KILLS // 5)  # of what is not a kill
SHORT = KILLS < 20  # as in `make test`
ONE_SENTENCE = "one sentence, second call, same result"


@pytest.fixture(scope="module")
def trained(attempts: Attempts, inputs: Inputs, undisturbed: Path) -> Path:
    """An undisturbed run."""
    out = inputs.folder / "trained"
    ended = attempts.call(*inputs.train(undisturbed, out, "--towers=both", "--epochs=3"))
    assert ended.code == 0, ended.stderr
    return out


@pytest.fixture
def build(attempts: Attempts, inputs: Inputs) -> Callable[..., Ended]:
    """Return a call of the build with another `--out`, disturbed."""

    def call(out: Path | str, *others: str, **disturbed: object) -> Ended:
        return attempts.call(*inputs.build, f"--out={out}", *others, **disturbed)

    return call


@pytest.fixture
def train(attempts: Attempts, inputs: Inputs) -> Callable[..., Ended]:
    """Return a call of the training of `trained`, disturbed."""

    def call(cache: Path, out: Path, *others: str, **disturbed: object) -> Ended:
        return attempts.call(*inputs.train(cache, out, "--towers=both", "--epochs=3", *others), **disturbed)

    return call


Call = Callable[..., Ended]


def assert_same_run(one: Path, other: Path) -> None:
    ours, theirs = load_file(one / "student.safetensors"), load_file(other / "student.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(ours[name].equal(theirs[name]) for name in ours)
    assert figures(one) == figures(other)


def resume_run(train: Call, cache: Path, run: Path, trained: Path) -> None:
    """Assert that the run, once the fault is gone, ends like an undisturbed one."""
    ended = train(cache, run, *(["--resume"] if (run / "settings.json").exists() else []))
    assert ended.code == 0, ended.stderr
    assert_same_run(run, trained)


def test_a_full_disk(build: Call, train: Call, undisturbed: Path, trained: Path, tmp_path: Path) -> None:
    """Files have a size limit."""
    record = Record(
        "no room: no file takes more than N bytes (RLIMIT_FSIZE)", "one sentence; a second call ends"
    )
    chance = random.Random(SEED)
    largest = max(path.stat().st_size for path in undisturbed.rglob("*") if path.is_file())
    for number in range(TRIES):
        out = tmp_path / f"{number}.zarr"
        ended = build(out, largest_file=int(largest * chance.random() ** 3))
        if ended.code != 0:
            assert ended.is_one_line_error, ended.stderr
            assert build(out).code == 0
        assert_same_arrays(out, undisturbed)
        record("build: " + ("it fitted" if ended.code == 0 else ONE_SENTENCE))
        run = tmp_path / f"run-{number}"
        most = (trained / "checkpoint.safetensors").stat().st_size
        ended = train(undisturbed, run, largest_file=int(most * chance.random()))
        assert ended.is_one_line_error, ended.stderr
        resume_run(train, undisturbed, run, trained)
        record(f"run: {ONE_SENTENCE}")


def test_a_read_that_fails(
    build: Call, train: Call, undisturbed: Path, trained: Path, tmp_path: Path
) -> None:
    """A failing read in the middle of a shard is not a damaged image: no image is left out."""
    record = Record("a read of a shard fails (EIO)", "one sentence that names the shard; a second call ends")
    chance = random.Random(SEED)
    for number in range(TRIES):
        out, run = tmp_path / f"{number}.zarr", tmp_path / f"run-{number}"
        ended = build(out, failing_read=chance.randint(1, SAMPLES))
        assert ended.is_one_line_error, ended.stderr
        assert "cannot read image shard" in ended.last_line
        assert "Input/output error" in ended.last_line
        assert build(out).code == 0
        assert_same_arrays(out, undisturbed)
        record(f"build: {ONE_SENTENCE}")
        ended = train(undisturbed, run, "--workers=0", failing_read=chance.randint(1, SAMPLES))
        assert ended.is_one_line_error, ended.stderr
        assert "Input/output error" in ended.last_line
        resume_run(train, undisturbed, run, trained)
        record(f"run: {ONE_SENTENCE}")


def test_a_clock_that_jumps(train: Call, undisturbed: Path, trained: Path, tmp_path: Path) -> None:
    """Of a run. A build whose clock is set back waits until Dask's next send is due."""
    record = Record("the clock jumps by up to a day, forward or back", "a run does not depend on it")
    for number in range(TRIES):
        ended = train(undisturbed, tmp_path / f"run-{number}", clock=1000 * SEED + number)
        assert ended.code == 0, ended.stderr
        assert_same_run(tmp_path / f"run-{number}", trained)
        record("run: same tensors and figures")


def test_two_calls_at_the_same_time(
    attempts: Attempts, inputs: Inputs, undisturbed: Path, trained: Path, tmp_path: Path
) -> None:
    """Both start at the same moment, or one a little later."""
    record = Record(
        "two processes on one cache, or one run's folder", "one works, the other says so or finds all done"
    )
    chance = random.Random(SEED)
    for number in range(TRIES):
        out, run = tmp_path / f"{number}.zarr", tmp_path / f"run-{number}"
        building = [*inputs.build, f"--out={out}"]
        running = inputs.train(undisturbed, run, "--towers=both", "--epochs=3")
        for command in (building, running):
            ends = at_once(command, attempts, chance.uniform(0, 0.5))
            assert 0 in [ended.code for ended in ends], [ended.stderr for ended in ends]
            assert all(ended.code == 0 or ended.is_one_line_error for ended in ends), ends
            done = [ended.code for ended in ends].count(0)
            record("one worked, the other was refused" if done == 1 else "the second found all done")
        assert_same_arrays(out, undisturbed)
        assert_same_run(run, trained)


def at_once(command: list[str], attempts: Attempts, later: float) -> list[Ended]:
    """The same call twice."""
    ends: list[Ended] = []
    second = threading.Timer(later, lambda: ends.append(attempts.call(*command)))
    second.start()
    ends.append(attempts.call(*command))
    second.join()
    return ends


def test_missing_permission_to_write(
    build: Call, train: Call, undisturbed: Path, trained: Path, tmp_path: Path
) -> None:
    """A complete read-only cache can be used; an incomplete one is not changed."""
    record = Record("a store without the right to write", "a finished cache serves; else one sentence")
    whole, unfinished = tmp_path / "whole.zarr", tmp_path / "unfinished.zarr"
    for path in (tmp_path, *tmp_path.parents[:2]):
        path.chmod(0o755)
    shutil.copytree(undisturbed, whole)
    shutil.copytree(undisturbed, unfinished)
    (unfinished / "parts" / "000003.json").unlink()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    for path in tmp_path.rglob("*"):
        path.chmod(0o555 if path.is_dir() else 0o444)
    free = tmp_path.parent / f"{tmp_path.name}-free"
    free.mkdir()
    free.chmod(0o777)
    try:
        assert build(whole, no_rights=True).code == 0
        record("build of a finished cache: all there")
        ended = build(unfinished, no_rights=True)
        assert ended.is_one_line_error, ended.stderr
        record("build of an unfinished one: one sentence")
        ended = train(whole, free / "run", no_rights=True)
        assert ended.code == 0, ended.stderr
        assert_same_run(free / "run", trained)
        record("run from it: same result")
        ended = train(whole, unfinished / "run", no_rights=True)
        assert ended.is_one_line_error, ended.stderr
        record("run into it: one sentence")
        assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    finally:
        for path in (tmp_path, *tmp_path.rglob("*")):
            path.chmod(0o755)


def test_a_deleted_part(
    attempts: Attempts, build: Call, train: Call, undisturbed: Path, trained: Path, tmp_path: Path
) -> None:
    """Without its record the cache is incomplete; without one of its arrays no run trains on the gap."""
    record = Record(
        "a part deleted by hand", "never a gap: one sentence; `verify` names it, a build mends it"
    )
    chance = random.Random(SEED)
    stored = {
        name: [str(path.relative_to(undisturbed)) for path in sorted((undisturbed / name / "c").rglob("*"))]
        for name in ("image_features", "crops", "valid", "labels")
    }
    for number in range(TRIES):
        cache, run = tmp_path / f"{number}.zarr", tmp_path / f"run-{number}"
        array = [*stored][-1 - number] if number < len(stored) else chance.choice([*stored])
        shards = [shard for shard in stored[array] if (undisturbed / shard).is_file()]
        assert len(shards) >= 24
        for gone in (f"parts/{chance.randrange(24):06d}.json", chance.choice(shards)):
            shutil.copytree(undisturbed, cache)
            (cache / gone).unlink()
            ended = train(cache, run)
            assert ended.is_one_line_error, ended.stderr
            verified = attempts.call("rpp-cache", "verify", cache)
            assert verified.code == 1
            assert build(cache).code == 0
            assert attempts.call("rpp-cache", "verify", cache).code == 0
            assert_same_arrays(cache, undisturbed)
            resume_run(train, cache, run, trained)
            record(f"its {'record' if 'parts' in gone else array}: {ONE_SENTENCE}")
            shutil.rmtree(cache)
            shutil.rmtree(run)


def test_an_incomplete_copy_of_a_cache(
    attempts: Attempts, build: Call, train: Call, undisturbed: Path, trained: Path, tmp_path: Path
) -> None:
    """Files are missing, and one is truncated."""
    record = Record(
        "a cache copied half-way", "one sentence or the right result, never another; a build mends it"
    )
    chance = random.Random(SEED)
    for number in range(2 * TRIES):
        cache, run = tmp_path / f"{number}.zarr", tmp_path / f"run-{number}"
        shutil.copytree(undisturbed, cache)
        files = sorted(path for path in cache.rglob("*") if path.is_file())
        chance.shuffle(files)
        missing = chance.choice((0, 1, len(files) // 2, len(files) - 1))
        for path in files[:missing]:
            path.unlink()
        cut = files[missing] if missing < len(files) else None
        if cut is not None:
            os.truncate(cut, int(cut.stat().st_size * chance.random()))
        ended = train(cache, run)
        if ended.code == 0:
            assert_same_run(run, trained)
            record("a run: right, what was cut it does not read")
        else:
            assert ended.is_one_line_error, ended.stderr
            record("a run: one sentence")
        attempts.call("rpp-cache", "verify", cache)
        ended = build(cache)
        if ended.code != 0:
            assert ended.is_one_line_error, ended.stderr
            headers = [path for path in (cache / "zarr.json", cache / "header.json") if path.exists()]
            assert headers in ([], [cut]), (cut, ended.stderr)
            record("a build: one sentence, no cache is recognised there")
        else:
            assert not verify_store(CacheStore.open(cache))
            assert_same_arrays(cache, undisturbed)
            record("a build: repaired, same arrays")


class Flaky(ThreadingHTTPServer):
    """A proxy of an object store that answers some requests with status 500, and others late."""

    def __init__(self, store: str, share: float, seed: int) -> None:
        super().__init__(("127.0.0.1", 0), FlakyHandler)
        self.store, self.share, self.chance = store.removeprefix("http://"), share, random.Random(seed)
        self.failed = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class FlakyHandler(BaseHTTPRequestHandler):
    """Forward a request, or fail."""

    protocol_version = "HTTP/1.1"
    server: Flaky

    def pass_on(self) -> None:
        body = self.body()
        fate = self.server.chance.random()
        if fate < self.server.share:
            self.server.failed += 1
            self.answer(500, {}, b"")
            return
        if fate > 0.95:
            threading.Event().wait(0.3)
        kept = {name: value for name, value in self.headers.items() if name != "Transfer-Encoding"}
        store = HTTPConnection(self.server.store, timeout=60)
        store.request(self.command, self.path, body, kept | {"Content-Length": str(len(body))})
        with store.getresponse() as answer:
            self.answer(answer.status, dict(answer.headers), answer.read())
        store.close()

    def body(self) -> bytes:
        if "Transfer-Encoding" not in self.headers:
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while length := int(self.rfile.readline(), 16):
            body += self.rfile.read(length)
            self.rfile.readline()
        self.rfile.readline()
        return body

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = pass_on

    def answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        length = headers.get("Content-Length", str(len(body))) if self.command == "HEAD" else str(len(body))
        kept = {"etag", "last-modified", "content-type", "content-range", "accept-ranges"}
        for name, value in headers.items():
            if name.lower() in kept or name.lower().startswith("x-amz"):
                self.send_header(name, value)
        self.send_header("Content-Length", length)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *words: object) -> None:
        pass


@pytest.fixture
def flaky(s3_server: str) -> Iterator[Callable[[float, int], Flaky]]:
    """A flaky proxy of the tests' object store."""
    servers: list[Flaky] = []

    def begin(share: float, seed: int) -> Flaky:
        servers.append(Flaky(s3_server, share, seed))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return servers[-1]

    yield begin
    for server in servers:
        server.shutdown()
        server.server_close()


def test_an_object_store_that_fails_and_is_slow(
    build: Call, bucket: str, flaky: Callable[[float, int], Flaky], undisturbed: Path
) -> None:
    record = Record(
        "S3 answers 500, and late", "its library tries again; else one sentence and a second call ends"
    )
    store = fsspec.filesystem("s3", use_listings_cache=False)
    for number in range(max(1, TRIES // 2)):
        # its library waits a second for each failure, and tries for a minute before it gives up
        few, impatient = (0.1, {"AWS_MAX_ATTEMPTS": "2"}) if SHORT else (0.2, {})
        for share, given in ((few, {}), (0.5, impatient)):
            url = f"{bucket}-{number}-{share}"
            server = flaky(share, 1000 * SEED + number)
            disturbed = {**aws(), "AWS_ENDPOINT_URL": server.url, **given}
            ended = build(url, "--part-size=240", "--views=1", environment=disturbed)
            assert server.failed
            if ended.code != 0:
                assert ended.is_one_line_error, ended.stderr
                again = build(url, "--part-size=240", "--views=1", environment=aws())
                assert again.code == 0, again.stderr
            group = zarr.open_group(url, mode="r")
            for name, values in decoded_arrays(undisturbed).items():
                values = values[:, :1] if name in ("image_features", "crops") else values
                np.testing.assert_array_equal(np.asarray(group[name][:]), values, err_msg=name)
            how = "went on" if ended.code == 0 else ONE_SENTENCE
            record(f"{share:.0%} of all requests fail: {how}")
            store.rm(url, recursive=True)


def aws() -> dict[str, str]:
    """Return the environment variables of the store."""
    return {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
