"""TensorBoard and Weights & Biases get the lines of `metrics.jsonl`, each step once."""

import json
import os
import resource
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import wandb
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb.proto.wandb_internal_pb2 import Record

from student_train.runs.folder import RunFolder
from student_train.runs.record import read_settings
from student_train.training.loop import train
from student_train.training.metric_logs import MetricLogs, TensorBoardLog, chosen_logs
from teacher_cache.errors import RppError, UsageError
from tests.student_train.training.test_loop import metrics, run_main, settings

ROOT = Path(__file__).parents[3]
FIGURES = [
    *("epoch", "loss", "hard_loss", "soft_loss", "accuracy", "lr"),
    *("gradient_norm", "clipped_steps", "samples_per_second", "wait_seconds"),
]


def event_figures(accumulator: EventAccumulator) -> dict[str, list[tuple[float, int, float]]]:
    """By tag, the time, step and value of every event."""
    accumulator.Reload()
    return {
        tag: [(event.wall_time, event.step, event.value) for event in accumulator.Scalars(tag)]
        for tag in accumulator.Tags()["scalars"]
    }


def read_events(out: Path) -> dict[str, list[tuple[float, int, float]]]:
    return event_figures(EventAccumulator(str(out / "tensorboard"), size_guidance={"scalars": 0}))


def as_events(lines: list[dict[str, Any]]) -> dict[str, list[tuple[float, int, float]]]:
    """The figures of exactly these lines in event files, which store float32."""
    return {
        name: [(line["time"], line["step"], torch.tensor(line[name]).item()) for line in lines]
        for name in FIGURES
    }


def wandb_records(file: Path) -> list[Record]:
    """Records of the file of a finished run. Its service writes the last ones after the run has ended."""
    until = time.monotonic() + 60
    while True:
        records = list(records_in(file))
        if any(record.HasField("exit") for record in records) or time.monotonic() > until:
            return records
        time.sleep(0.1)


def records_in(file: Path) -> Iterator[Record]:
    """Records of a .wandb file: LevelDB's log format behind seven bytes, blocks of 32 KiB."""
    data, at, record = file.read_bytes(), 7, b""
    assert data.startswith(b":W&B")
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        _, size, kind = struct.unpack_from("<IHB", data, at)
        if at + 7 + size > len(data):  # still being written
            return
        record += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last piece
            yield Record.FromString(record)
            record = b""


def wandb_files(out: Path) -> list[Path]:
    return sorted((out / "wandb").glob("offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime_ns)


def wandb_lines(file: Path) -> list[dict[str, Any]]:
    """The history in the file, as lines of metrics are."""
    lines = []
    for record in wandb_records(file):
        if record.HasField("history"):
            items = {item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
            line = {name: value for name, value in items.items() if not name.startswith("_")}
            lines.append({"step": items["_step"], "time": items["_timestamp"], **line})
    return lines


def interrupted(cache: Path, out: Path, monkeypatch: pytest.MonkeyPatch, **others: Any) -> None:
    """A run that fails after step 7, its last checkpoint behind step 4."""
    log = RunFolder.log

    def fail_at_eight(folder: RunFolder, line: dict[str, Any]) -> None:
        if line["step"] == 8:
            raise RppError("no more")
        log(folder, line)

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "log", fail_at_eight)
        with pytest.raises(RppError, match="no more"):
            train(settings(cache, out, checkpoint_every=4, **others))


class TestTensorBoard:
    def test_every_figure_is_logged_at_its_step(self, cache_path: Path, tmp_path: Path) -> None:
        train(settings(cache_path, tmp_path / "run"))
        lines = metrics(tmp_path / "run")
        assert [line["step"] for line in lines] == list(range(1, 11))
        assert set(lines[0]) == {"step", "time", *FIGURES}
        assert read_events(tmp_path / "run") == as_events(lines)

    def test_a_line_without_accuracy_logs_none(self, tmp_path: Path) -> None:
        with MetricLogs(["tensorboard"]) as logs:
            logs.open(tmp_path, {}, resumed=False)
            logs.log({"step": 1, "time": 5.0, "loss": 0.5, "accuracy": None})
            logs.log({"step": 2, "time": 6.0, "loss": float("inf"), "accuracy": 0.25})
        assert read_events(tmp_path) == {
            "loss": [(5.0, 1, 0.5), (6.0, 2, float("inf"))],
            "accuracy": [(6.0, 2, 0.25)],
        }

    def test_a_resumed_run_has_each_step_once(
        self, cache_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Also to a TensorBoard that was open all the time."""
        out = tmp_path / "run"
        interrupted(cache_path, out, monkeypatch)
        watching = EventAccumulator(str(out / "tensorboard"), size_guidance={"scalars": 0})
        assert event_figures(watching) == as_events(metrics(out))
        assert metrics(out)[-1]["step"] == 7
        train(settings(cache_path, out, resume=True))
        assert [line["step"] for line in metrics(out)] == list(range(1, 11))
        assert read_events(out) == as_events(metrics(out))
        assert event_figures(watching) == as_events(metrics(out))

    def test_a_log_added_on_resume_has_all_steps(
        self, cache_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        out = tmp_path / "run"
        interrupted(cache_path, out, monkeypatch, log=("none",))
        assert not (out / "tensorboard").exists()
        train(settings(cache_path, out, resume=True, log=("tensorboard",)))
        assert read_events(out) == as_events(metrics(out))

    def test_files_of_others_stay(self, cache_path: Path, tmp_path: Path) -> None:
        others = tmp_path / "run" / "tensorboard" / "events.out.tfevents.0.theirs"
        others.parent.mkdir(parents=True)
        others.write_bytes(b"mine")
        train(settings(cache_path, tmp_path / "run", max_steps=1))
        train(settings(cache_path, tmp_path / "run", max_steps=1, resume=True))
        assert others.read_bytes() == b"mine"
        assert len(list(others.parent.glob("*.rpp"))) == 2

    def test_it_is_closed_after_an_error(
        self, cache_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        close, closed = TensorBoardLog.close, []

        def note(log: TensorBoardLog, failed: bool) -> None:
            close(log, failed)
            closed.append(failed)

        monkeypatch.setattr(TensorBoardLog, "close", note)
        interrupted(cache_path, tmp_path / "run", monkeypatch)
        assert closed == [True]

    def test_a_full_disk_is_noted_once_and_stops_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """No file may become larger than 4 KiB; the thread that writes the events ends with a traceback."""
        monkeypatch.setattr(threading, "excepthook", lambda _: None)
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        with MetricLogs(["tensorboard"]) as logs:
            logs.open(tmp_path, {}, resumed=False)
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
            try:
                for step in range(100):
                    logs.log({"step": step, "time": 5.0, "loss": 0.5})
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, before)
        notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
        assert notes == [
            "note: --log tensorboard: [Errno 27] File too large; the run continues, its figures are in "
            "metrics.jsonl"
        ]

    def test_a_folder_that_cannot_be_created_is_noted_and_stops_nothing(
        self, cache_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "tensorboard").write_text("a file")
        assert train(settings(cache_path, tmp_path / "run", max_steps=2)).steps == 2
        assert "note: --log tensorboard: [Errno 17] File exists: " in capsys.readouterr().err
        assert len(metrics(tmp_path / "run")) == 2


class TestWandb:
    @pytest.fixture(autouse=True)
    def _offline(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("WANDB_MODE", "offline")

    def test_a_resumed_run_continues_the_same_run_and_is_complete(
        self, cache_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        out = tmp_path / "some-run"
        interrupted(cache_path, out, monkeypatch, log=("wandb",))
        (first,) = wandb_files(out)
        before = [{**line} for line in metrics(out)]
        assert before[-1]["step"] == 7
        assert wandb_lines(first) == before
        train(settings(cache_path, out, resume=True, log=("tensorboard", "wandb")))
        first_again, second = wandb_files(out)
        assert first_again == first
        assert wandb_lines(second) == metrics(out)
        assert read_events(out) == as_events(metrics(out))
        ids = {record.run.run_id for file in (first, second) for record in wandb_records(file)} - {""}
        assert ids == {(out / "wandb-id").read_text()}
        ends = [[r.exit.exit_code for r in wandb_records(f) if r.HasField("exit")] for f in (first, second)]
        assert ends == [[1], [0]]

    def test_it_is_named_after_the_folder_and_has_no_paths(self, cache_path: Path, tmp_path: Path) -> None:
        out = tmp_path / "named"
        train(settings(cache_path, out, max_steps=1, temperature=2.0, log=("wandb",)))
        (file,) = wandb_files(out)
        (run,) = [record.run for record in wandb_records(file) if record.HasField("run")]
        assert (run.display_name, run.project) == ("named", "rpp")
        config = {item.key: json.loads(item.value_json) for item in run.config.update}
        record = read_settings(out)
        assert config["settings"]["temperature"] == 2.0
        assert config["prompts"] == record["settings"]["prompts"]
        assert config["teacher"]["weights_digest"] == record["cache"]["teacher"]["weights_digest"]
        assert config["student"]["model"] == "local-dir:model-gelu-0"
        for place in (tmp_path, ROOT, cache_path.parent):
            assert str(place).encode() not in file.read_bytes()

    def test_without_a_login_it_is_refused_before_the_first_step(
        self, cache_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        wandb.teardown()  # it reads its environment once a process
        monkeypatch.setenv("WANDB_MODE", "online")
        monkeypatch.setenv("WANDB_API_KEY", "no key")
        monkeypatch.setenv("HOME", str(tmp_path))
        with pytest.raises(UsageError, match=r"--log wandb: .*`wandb login`, or set WANDB_MODE=offline"):
            train(settings(cache_path, tmp_path / "run", log=("wandb",)))
        assert not (tmp_path / "run" / "metrics.jsonl").exists()
        wandb.teardown()


class TestChoice:
    @pytest.mark.parametrize("name", ["tensorboard", "wandb"])
    def test_a_log_that_is_not_installed_is_refused_before_anything_else(
        self, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setitem(sys.modules, name, None)  # as import finds what is not there
        out = tmp_path / "run"
        assert run_main(monkeypatch, "--cache", "/no/such/cache", "--out", str(out), "--log", name) == 2
        expected = f"error: --log {name} needs the package {name}: pip install 'rpp-clip[{name}]'\n"
        assert capsys.readouterr().err == expected
        assert not out.exists()

    def test_auto_is_tensorboard_where_it_is_installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert chosen_logs(["auto"]) == ["tensorboard"]
        assert chosen_logs(["auto", "wandb", "tensorboard"]) == ["tensorboard", "wandb"]
        monkeypatch.setitem(sys.modules, "tensorboard", None)
        assert chosen_logs(["auto"]) == []
        assert chosen_logs(["auto", "wandb"]) == ["wandb"]

    def test_none_cannot_be_combined(self) -> None:
        assert chosen_logs(["none"]) == []
        with pytest.raises(UsageError, match="--log none cannot be combined with wandb"):
            chosen_logs(["none", "wandb"])

    def test_only_used_logs_are_imported(self, cache_path: Path, tmp_path: Path) -> None:
        """In a process of its own."""
        program = (
            "import sys; sys.modules['wandb'] = None  # timm imports it where it is there\n"
            "import pipeline.cli, student_train.cli, teacher_cache.cli\n"
            "from tests.student_train.training.test_loop import settings, train\n"
            "train(settings(sys.argv[1], 'none', max_steps=1, log=('none',)))\n"
            "assert 'tensorboard' not in sys.modules\n"
            "train(settings(sys.argv[1], 'auto', max_steps=1))\n"
            "assert 'tensorboard' in sys.modules\n"
        )
        command = [sys.executable, "-c", program, str(cache_path)]
        env = os.environ | {"PYTHONPATH": str(ROOT)}
        ended = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stderr
