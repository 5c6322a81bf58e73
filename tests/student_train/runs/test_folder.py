"""A run's folder: refusals before it is created, its lock, damaged files, runs that are replaced."""

import errno
import fcntl
import json
import os
import shutil
import socket
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli import main as rpp
from student_train.runs.folder import RunFolder
from student_train.training.checkpoint import Checkpoint
from student_train.training.loop import train
from teacher_cache.errors import RppError, UsageError
from teacher_cache.files import owner_record
from tests.processes import ForkServer
from tests.student_train.conftest import PICTURES, build
from tests.student_train.training.test_loop import assert_same_result, metrics, run_main, settings

TEXT = ["--towers", "text", "--batch-size", "30", "--device", "cpu", "--max-steps", "2", "--log-every", "1"]


@pytest.fixture(scope="module")
def finished(cache_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two steps; tests work on copies."""
    out = tmp_path_factory.mktemp("finished") / "run"
    train(settings(cache_path, out, max_steps=2))
    return out


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture
def fails(cache_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """`rpp-train` with a user's mistake: exit code 2 and one line, which is returned."""

    def call(*arguments: str, cache: Path = cache_path) -> str:
        capsys.readouterr()
        assert run_main(monkeypatch, "--cache", str(cache), *TEXT, *arguments) == 2
        return one_line(capsys.readouterr().err)

    return call


def one_line(error: str) -> str:
    assert "Traceback" not in error
    (line,) = [line for line in error.splitlines() if line.startswith("error:")]
    return line


class TestBegin:
    @pytest.mark.parametrize(
        ("arguments", "expected"),
        [
            (["--classes-per-step", "29"], "--classes-per-step 29: fewer than the 30 classes that one batch"),
            (["--temperature", "inf"], "--temperature inf: Input should be a finite number"),
            (["--soft-weight", "nan"], "--soft-weight nan: Input should be"),
            *[
                ([f"--{name}", value], f"--{name} {value}: Input should be less than or equal to")
                for name in ("lr", "weight-decay", "temperature", "soft-weight", "clip-norm")
                for value in ("1e+39", "1e+300")
            ],
            (["--workers", "100000"], "--workers 100000: Input should be less than or equal to 1024"),
            (["--seed", str(2**63)], f"--seed {2**63}: Input should be less than"),
            (["--towers", "both", "--images", "/no/such/folder"], "/no/such/folder does not exist"),
            (["--shots", "1", "--class-subset", "new", "--prompt-length", "99"], "leaves no room for a name"),
        ],
    )
    def test_a_mistake_leaves_no_folder(
        self, fails: Any, tmp_path: Path, arguments: list[str], expected: str
    ) -> None:
        assert expected in fails("--out", str(tmp_path / "run"), *arguments)
        assert not (tmp_path / "run").exists()

    @pytest.mark.parametrize(
        "how", [["--temperature", "1e18"], ["--lr", "1e18", "--weight-decay", "1e18", "--optimizer", "adamw"]]
    )
    def test_the_largest_numbers_end_in_steps_or_an_error_in_one_line(
        self, cache_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: list[str]
    ) -> None:
        assert run_main(
            monkeypatch, "--cache", str(cache_path), *TEXT, "--out", str(tmp_path / "run"), *how
        ) in (0, 1)

    @pytest.mark.parametrize("place", ["file", "file/below", "/proc/x"])
    def test_a_place_that_cannot_be_a_folder(self, fails: Any, tmp_path: Path, place: str) -> None:
        (tmp_path / "file").write_text("kept")
        assert "cannot be" in (line := fails("--out", str(tmp_path / place)))
        assert place in line
        assert (tmp_path / "file").read_text() == "kept"

    def test_a_date_is_a_valid_seed(self, cache_path: Path, tmp_path: Path) -> None:
        for seed in (20240101123000, 2**63 - 1):
            run = settings(cache_path, tmp_path / str(seed), max_steps=2, seed=seed, classes_per_step=40)
            assert train(run).steps == 2

    @pytest.mark.parametrize("resume", [False, True])
    def test_a_run_without_steps_is_replaced_by_the_corrected_command(
        self, tmp_path: Path, resume: bool
    ) -> None:
        """The images are missing at the first step; then they are restored, and the rate is changed."""
        images = Path(shutil.copy(PICTURES / "noto.tar", tmp_path / "noto.tar"))
        cache = build(tmp_path, "gelu", images=str(images))
        common: dict[str, Any] = {"towers": "both", "max_steps": 1, "workers": 0}
        images.rename(tmp_path / "away.tar")
        with pytest.raises(RppError, match="cannot be read now"):
            train(settings(cache, tmp_path / "run", **common))
        assert (tmp_path / "run" / "settings.json").is_file()
        images = Path(shutil.copy(tmp_path / "away.tar", images))
        train(settings(cache, tmp_path / "run", lr=0.5, resume=resume, **common))
        assert json.loads((tmp_path / "run" / "settings.json").read_text())["settings"]["lr"] == 0.5
        with pytest.raises(UsageError, match="already has a run"):
            train(settings(cache, tmp_path / "run", **common))


def test_one_process_trains_in_a_folder(
    processes: ForkServer, cache_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second process starts during the first run, which it does not disturb."""
    out, save, second = tmp_path / "run", Checkpoint.save, []

    def start_second(run: Checkpoint, step: int) -> None:
        save(run, step)
        if step == 5:
            again = ["--cache", cache_path, "--out", out, "--resume"]
            second.append(processes.call("rpp-train", *TEXT, *again, *SAME))

    SAME = ["--epochs", "1", "--max-steps", "8", "--lr", "0.02", "--prompt-length", "3"]
    monkeypatch.setattr(Checkpoint, "save", start_second)
    train(settings(cache_path, out, max_steps=8, checkpoint_every=5))
    assert [line["step"] for line in metrics(out)] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert second[0].code == 2
    assert f"another process is training in {out}" in one_line(second[0].err)


class TestResume:
    ASKED = ("--resume", "--epochs", "1", "--lr", "0.02", "--prompt-length", "3")

    @pytest.mark.parametrize("content", ["{}", "[]", '{"settings', '{"settings": {}, "cache": 3}', "\udcff"])
    def test_damaged_settings(
        self,
        fails: Any,
        run: Path,
        content: str,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        (run / "settings.json").write_text(content, errors="surrogateescape")
        assert "settings.json is damaged" in fails("--out", str(run), *self.ASKED)
        images = ["--images", str(PICTURES / "noto.tar"), "--classes", str(PICTURES / "classes.txt")]
        monkeypatch.setattr(sys, "argv", ["rpp", "eval", "--student", str(run), *images])
        with pytest.raises(SystemExit) as ended:
            rpp()
        assert ended.value.code == 2
        assert "settings.json is damaged" in one_line(capsys.readouterr().err)

    def test_a_run_that_cannot_be_written(self, fails: Any, run: Path) -> None:
        (run / "metrics.jsonl.tmp").mkdir()
        assert "cannot be written" in fails("--out", str(run), *self.ASKED)

    @pytest.mark.parametrize("there", ["link", "dangling link", "pipe", "folder"])
    def test_a_lock_that_is_not_a_regular_file_is_not_opened(
        self, fails: Any, run: Path, tmp_path: Path, there: str
    ) -> None:
        kept = tmp_path / "kept"
        kept.write_text("kept")
        (run / "run.lock").unlink()
        if there == "pipe":
            os.mkfifo(run / "run.lock")
        elif there == "folder":
            (run / "run.lock").mkdir()
        else:
            (run / "run.lock").symlink_to(kept if there == "link" else tmp_path / "made")
        error = fails("--out", str(run), *self.ASKED)
        assert "run.lock is a lock file and has to be a regular file; remove what is there" in error
        assert kept.read_text() == "kept"
        assert not (tmp_path / "made").exists()

    @pytest.mark.parametrize("locks", [(), ("flock",), ("flock", "lockf")], ids=["flock", "lockf", "record"])
    def test_a_killed_run_is_resumed_whichever_way_its_file_system_locks(
        self,
        cache_path: Path,
        run: Path,
        locks: tuple[str, ...],
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        def missing(descriptor: int, operation: int) -> None:
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

        for name in locks:
            monkeypatch.setattr(fcntl, name, missing)
        monkeypatch.setattr(owner_record, "SETTLE_SECONDS", 0.01)
        (run / "student.safetensors").unlink()
        left = {"owner": "a", "kind": "record", "host": socket.gethostname(), "pid": 2**22 + 1}
        (run / "run.lock.owner").write_text(json.dumps(left | {"time": time.time()}))
        again = settings(cache_path, run, max_steps=2, resume=True)
        assert train(again).steps == 2
        assert f"taking over the lock {run}/run.lock.owner of process {2**22 + 1}" in capsys.readouterr().err
        assert not (run / "run.lock.owner").exists()
        folder = RunFolder(run)
        folder.resume()
        with pytest.raises(UsageError, match=r"another process is training in .*run; wait for it, stop it"):
            train(again)
        assert train(again.model_copy(update={"lock": False})).steps == 2
        folder.close()

    def test_missing_metrics(self, cache_path: Path, run: Path) -> None:
        (run / "metrics.jsonl").unlink()
        assert train(settings(cache_path, run, max_steps=2, resume=True)).samples == 0

    def test_readable_lines_of_damaged_metrics_are_kept(
        self, cache_path: Path, run: Path, finished: Path
    ) -> None:
        first, second = (run / "metrics.jsonl").read_bytes().splitlines(keepends=True)
        garbage = b'\xff\x00 no line\n{}\n[1]\n{"step": "x", "loss": 1}\n'
        (run / "metrics.jsonl").write_bytes(first + garbage + second + b'{"step": 9')
        train(settings(cache_path, run, max_steps=2, resume=True))
        assert_same_result(run, finished)

    def test_a_moved_model_is_recognised_by_its_weights(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        cache, out = build(tmp_path, "gelu"), tmp_path / "run"
        train(settings(cache, out, max_steps=1))
        (tmp_path / "model-gelu-0").rename(tmp_path / "moved")
        again = settings(cache, out, max_steps=1, resume=True)
        with pytest.raises(UsageError, match=r"if it moved, name its new place with --student"):
            train(again)
        assert train(again.model_copy(update={"student": str(tmp_path / "moved")})).samples == 0
        config = tmp_path / "moved" / "open_clip_config.json"
        other = json.loads(config.read_text())
        other["model_cfg"]["quick_gelu"] = True
        config.write_text(json.dumps(other))
        caplog.clear()
        assert train(again.model_copy(update={"student": str(tmp_path / "moved")})).samples == 0
        assert "moved now has quick_gelu True, not False; what was recorded is used" in caplog.text
        build(tmp_path, "gelu", seed=4)
        with pytest.raises(UsageError, match=r"created with different settings \(student weights: "):
            train(again.model_copy(update={"student": str(tmp_path / "model-gelu-4")}))
