"""The loop: its results, that it resumes to the same result, and how it fails."""

import json
import os
import pty
import resource
import select
import shutil
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from student_train import PromptedCLIP, load_student
from student_train.cli import main
from student_train.model import towers
from student_train.model.settings import PromptSettings
from student_train.runs.folder import RunFolder
from student_train.training.checkpoint import Checkpoint
from student_train.training.distributed import Processes
from student_train.training.loop import Run, train
from student_train.training.settings import TrainSettings
from teacher_cache import open_cache
from teacher_cache.command_settings import RelabelSettings
from teacher_cache.errors import RppError, UsageError
from teacher_cache.relabel import relabel_cache
from teacher_cache.teacher.openclip import load_model
from tests.models import write_model
from tests.processes import ForkServer
from tests.student_train.conftest import PICTURES, build, store_anew


def settings(
    cache: Path,
    out: Path,
    *,
    towers: str = "text",
    carry: str = "replace",
    prompt_structure: str = "qkv",
    **others: Any,
) -> TrainSettings:
    """Ten steps an epoch, every step logged."""
    values = {"epochs": 1, "batch_size": 30, "lr": 0.02, "log_every": 1, "device": "cpu", **others}
    prompts = PromptSettings(towers=towers, carry=carry, prompt_structure=prompt_structure, prompt_length=3)
    return TrainSettings(cache=cache, out=out, prompts=prompts, **values)


def metrics(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def result(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "student.safetensors")


def assert_same_result(a: Path, b: Path) -> None:
    ours, theirs = result(a), result(b)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    exact = ("step", "loss", "hard_loss", "soft_loss", "accuracy", "lr", "gradient_norm")
    assert [[line[k] for k in exact] for line in metrics(a)] == [
        [line[k] for k in exact] for line in metrics(b)
    ]


def run_main(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """`rpp-train ARGUMENTS` in this process; its exit code."""
    monkeypatch.setattr(sys, "argv", ["rpp-train", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_only_the_cache_is_required(
    cache_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_main(monkeypatch, "--cache", str(cache_path), "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    out = Path(printed["out"])
    assert out.parent == Path("runs")
    assert printed["mode"] == "images"
    assert printed["steps"] == 5  # five epochs of one batch of 256
    student = load_student(out)
    assert set(student.prompts) == {"text", "vision"}
    assert student.settings == PromptSettings()
    record = json.loads((out / "settings.json").read_text())
    assert record["settings"]["temperature"] == 1.0
    assert "blocks 1 to 3" in record["never_read"][0]
    assert metrics(out)[-1]["step"] == 5


def test_a_batch_larger_than_the_data_is_the_data_with_a_note(
    cache_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--cache", str(cache_path), "--towers", "text", "--epochs", "1", "--device", "cpu"]
    for size, has_note in (("301", True), ("300", False)):
        assert run_main(monkeypatch, *options, "--batch-size", size, "--out", str(tmp_path / size)) == 0
        line = "note: the run has 300 samples, fewer than --batch-size; every step used all of them"
        assert (line in capsys.readouterr().out.replace("\n", " ")) == has_note
        assert metrics(tmp_path / size)[-1]["step"] == 1


@pytest.mark.parametrize(
    ("towers", "others"),
    [
        ("text", {"classes_per_step": 64, "temperature": 2.0}),
        ("text", {"optimizer": "adamw", "lr": 0.002, "shots": 1}),
        ("vision", {"soft_weight": 0.0}),
        ("both", {"class_subset": "base", "clip_norm": 0.0, "carry": "residual"}),
    ],
)
def test_prompts_learn(cache_path: Path, tmp_path: Path, towers: str, others: dict[str, Any]) -> None:
    values = {"epochs": 8, "warmup": 0.1, **others}
    if others.get("optimizer") != "adamw":
        values["lr"] = 0.02
    train(settings(cache_path, tmp_path / "run", towers=towers, **values))
    lines = metrics(tmp_path / "run")
    epoch = len(lines) // 8
    first = sum(line["loss"] for line in lines[:epoch]) / epoch
    last = sum(line["loss"] for line in lines[-epoch:]) / epoch
    assert last < first - 0.05
    kept = result(tmp_path / "run")
    assert all(tensor.isfinite().all() for tensor in kept.values())


def test_autocast_stays_near_float32(cache_path: Path, tmp_path: Path) -> None:
    for precision in ("fp32", "bf16"):
        train(settings(cache_path, tmp_path / precision, towers="both", precision=precision, max_steps=2))
    for a, b in zip(metrics(tmp_path / "fp32"), metrics(tmp_path / "bf16"), strict=True):
        assert a["loss"] != b["loss"]
        assert a["loss"] == pytest.approx(b["loss"], rel=0.02)


def test_only_the_base_classes_are_seen(cache_path: Path, tmp_path: Path) -> None:
    done = train(settings(cache_path, tmp_path / "run", class_subset="base"))
    assert done.steps == 5  # 150 of 300 samples
    assert metrics(tmp_path / "run")[0]["epoch"] == pytest.approx(0.2)


class TestModes:
    def test_text_prompts_read_no_image(self, tmp_path: Path) -> None:
        images = tmp_path / "noto.tar"
        images.write_bytes((PICTURES / "noto.tar").read_bytes())
        cache = build(tmp_path, "gelu", images=str(images))
        images.unlink()
        done = train(settings(cache, tmp_path / "text"))
        assert done.mode == "features"
        with pytest.raises(RppError, match=r"noto/.* cannot be read now.*give their new place with --images"):
            train(settings(cache, tmp_path / "both", towers="both"))
        done = train(
            settings(cache, tmp_path / "moved", towers="both", max_steps=1, images=str(PICTURES / "noto.tar"))
        )
        assert done.mode == "images"

    def test_features_serve_as_well_as_images(self, cache_path: Path, tmp_path: Path) -> None:
        """Another model's student: once from pixels, once from a cache of its own features."""
        own = build(tmp_path, "quickgelu", seed=3)
        model = str(tmp_path / "model-quickgelu-3")
        common = {"student": model, "temperature": 2.0}
        from_images = train(settings(cache_path, tmp_path / "images", **common))
        from_features = train(settings(cache_path, tmp_path / "features", student_features=own, **common))
        assert (from_images.mode, from_features.mode) == ("images", "features")
        for a, b in zip(metrics(tmp_path / "images"), metrics(tmp_path / "features"), strict=True):
            assert a["loss"] == pytest.approx(b["loss"], abs=0.01)
            assert a["soft_loss"] > 0.01
        hard = {"student_features": own, "soft_weight": 0.0, "student": model, "max_steps": 1}
        train(settings(cache_path, tmp_path / "hard", **hard))
        (line,) = metrics(tmp_path / "hard")
        assert line["loss"] == pytest.approx(metrics(tmp_path / "features")[0]["hard_loss"])

    def test_a_vision_depth_of_0_is_a_run_with_text_prompts(self, cache_path: Path, tmp_path: Path) -> None:
        """It reads features, no images, and learns the same; a text depth of 0 leaves the class features."""
        run = settings(cache_path, tmp_path / "text", max_steps=3)
        train(run)
        for name, change in {
            "vision": {"prompt_depth": 0, "vision_prompt_depth": 1, "towers": "both"},
            "both": {"vision_prompt_depth": 0, "towers": "both"},
        }.items():
            prompts = run.prompts.model_copy(update=change)
            done = train(run.model_copy(update={"out": tmp_path / name, "prompts": prompts}))
            assert done.mode == {"vision": "images", "both": "features"}[name]
        assert_same_result(tmp_path / "text", tmp_path / "both")
        assert {name.split(".")[0] for name in result(tmp_path / "vision")} == {"vision"}

    def test_features_of_another_model_are_refused(self, cache_path: Path, tmp_path: Path) -> None:
        own = build(tmp_path, "quickgelu", seed=3)
        with pytest.raises(UsageError, match=r"has features of .*quickgelu-3.*the student is .*gelu-0"):
            train(settings(cache_path, tmp_path / "run", student_features=own))
        with pytest.raises(UsageError, match="works with text prompts only"):
            train(settings(cache_path, tmp_path / "run", towers="both", student_features=cache_path))

    def test_a_sample_is_used_if_both_caches_could_read_it(self, cache_path: Path, tmp_path: Path) -> None:
        own = build(tmp_path, "gelu")
        store_anew(own, "valid", np.arange(300) >= 10)
        run = settings(cache_path, tmp_path / "run", student_features=own, batch_size=290)
        done = train(run)
        assert (done.steps, done.samples) == (1, 290)  # with the ten others a step would have 290 of 300
        prepared = Run(run.model_copy(update={"out": None}), Processes(), torch.device("cpu"))
        assert prepared.join.rows.tolist() == list(range(10, 300))

    def test_other_images_are_refused(self, cache_path: Path, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="does not have the samples of the cache"):
            train(settings(cache_path, tmp_path / "run", towers="both", images=str(PICTURES / "noto-v1.tar")))


def test_another_vocabulary_of_the_cache(cache_path: Path, tmp_path: Path) -> None:
    """With every second class: labels follow the ids; samples of other classes have none."""
    cache = tmp_path / "zarr"
    shutil.copytree(cache_path, cache)
    names = open_cache(cache).vocabulary.names[::2]
    (tmp_path / "names.txt").write_text("\n".join(names))
    relabel_cache(str(cache), RelabelSettings(name="half", classes=str(tmp_path / "names.txt"), device="cpu"))
    train(settings(cache, tmp_path / "run", vocabulary="half", class_subset="base", epochs=2, max_steps=4))
    assert metrics(tmp_path / "run")[1]["epoch"] == pytest.approx(2 / 2)  # 75 of 300 samples
    with pytest.raises(UsageError, match="no vocabulary 'third'"):
        train(settings(cache, tmp_path / "none", vocabulary="third"))


def test_a_student_that_is_the_teacher_has_no_soft_loss(cache_path: Path, tmp_path: Path) -> None:
    """J = L under carry residual with CLIP's own first words: the first step reads what the teacher read."""
    same = settings(cache_path, tmp_path / "same", carry="residual", max_steps=1)
    prompts = same.prompts.model_copy(update={"prompt_length": 4})
    train(same.model_copy(update={"prompts": prompts}))
    assert metrics(tmp_path / "same")[0]["soft_loss"] < 1e-4
    train(settings(cache_path, tmp_path / "other", max_steps=1))
    assert metrics(tmp_path / "other")[0]["soft_loss"] > 1e-3


# As `settings` has it, with six epochs.
TEXT_RUN = (
    *("--towers", "text", "--epochs", "6", "--batch-size", "30", "--lr", "0.02"),
    *("--log-every", "1", "--prompt-length", "3", "--device", "cpu"),
)


class TestResume:
    @pytest.mark.parametrize("towers", ["text", "both"])
    @pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
    def test_a_stopped_run_ends_as_an_uninterrupted_one(
        self, cache_path: Path, tmp_path: Path, towers: str, optimizer: str
    ) -> None:
        common = {"towers": towers, "optimizer": optimizer, "epochs": 2, "classes_per_step": 90}
        train(settings(cache_path, tmp_path / "whole", **common))
        run_settings = settings(cache_path, tmp_path / "stopped", **common)

        def stop_after_some_steps() -> None:
            while not (
                run_settings.out
                and (run_settings.out / "metrics.jsonl").exists()
                and len(metrics(run_settings.out)) > 6
            ):
                time.sleep(0.002)
            os.kill(os.getpid(), signal.SIGTERM)

        stopper = threading.Thread(target=stop_after_some_steps)
        stopper.start()
        with pytest.raises(
            RppError, match=r"stopped by SIGTERM after step \d+ of 20; resume with .*--resume"
        ):
            train(run_settings)
        stopper.join()
        assert 6 < len(metrics(tmp_path / "stopped")) < 20
        assert not (tmp_path / "stopped" / "student.safetensors").exists()
        train(run_settings.model_copy(update={"resume": True}))
        assert_same_result(tmp_path / "whole", tmp_path / "stopped")

    @pytest.mark.parametrize(
        ("towers", "others"),
        [
            ("text", {"reader": "memory", "classes_per_step": 64, "optimizer": "adamw"}),
            (
                "both",
                {"reader": "memory", "prompt_structure": "shared", "optimizer": "adamw"},
            ),  # one tensor of three names
            ("text", {"reader": "blocks", "shots": 1, "class_subset": "new", "batch_size": 11}),
            ("both", {"reader": "blocks", "classes_per_step": 64, "workers": 2}),
            ("both", {"reader": "memory", "carry": "residual", "workers": 0, "soft_weight": 0.0}),
        ],
    )
    def test_every_checkpoint_leads_to_the_same_result(
        self,
        cache_path: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        towers: str,
        others: dict[str, Any],
    ) -> None:
        """In every mode, from steps within epochs and between them, also with another reader."""
        common = {"towers": towers, "epochs": 2, "max_steps": 18, "checkpoint_every": 1, **others}
        save, kept = Checkpoint.save, tmp_path / "kept"
        kept.mkdir()

        def save_and_keep(run: Checkpoint, step: int) -> None:
            save(run, step)
            shutil.copy(tmp_path / "whole" / "checkpoint.safetensors", kept / f"{step}.safetensors")

        with monkeypatch.context() as patch:
            patch.setattr(Checkpoint, "save", save_and_keep)
            train(settings(cache_path, tmp_path / "whole", **common))
        for step in (1, 10, 17):
            late = tmp_path / f"from-{step}"
            late.mkdir()
            shutil.copy(tmp_path / "whole" / "settings.json", late)
            shutil.copy(tmp_path / "whole" / "metrics.jsonl", late)
            shutil.copy(kept / f"{step}.safetensors", late / "checkpoint.safetensors")
            other = {"memory": "blocks", "blocks": "memory"}[others["reader"]]
            done = train(settings(cache_path, late, resume=True, **{**common, "reader": other}))
            assert done.samples == (18 - step) * common.get("batch_size", 30)
            assert_same_result(tmp_path / "whole", late)

    def test_a_killed_run_resumes_from_its_checkpoint(
        self, processes: ForkServer, cache_path: Path, tmp_path: Path
    ) -> None:
        """SIGKILL in a separate process, some steps after the last checkpoint."""
        out = tmp_path / "killed"
        options = ["--cache", cache_path, "--out", out, "--checkpoint-every", "7"]
        process = processes.start("rpp-train", *TEXT_RUN, *options)
        while process.poll() is None and not (
            (out / "metrics.jsonl").exists() and len(metrics_so_far(out)) > 16
        ):
            time.sleep(0.005)
        process.kill()
        ended = process.ended()
        assert ended.code == -signal.SIGKILL, ended.err
        train(settings(cache_path, out, epochs=6, resume=True))
        train(settings(cache_path, tmp_path / "whole", epochs=6))
        assert_same_result(tmp_path / "whole", out)

    def test_a_closed_terminal_stops_a_run_with_a_checkpoint(
        self, processes: ForkServer, cache_path: Path, tmp_path: Path
    ) -> None:
        """The end of an ssh session: nothing can be printed, and terminal and shell send a SIGHUP each."""
        out = tmp_path / "stopped"
        ours, theirs = pty.openpty()
        process = processes.start(
            *("rpp-train", *TEXT_RUN, "--cache", cache_path, "--out", out, "--checkpoint-every", "1000"),
            environment={**os.environ, "TERM": "xterm"},
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
        )
        os.close(theirs)
        while not ((out / "metrics.jsonl").exists() and len(metrics_so_far(out)) > 2):
            assert process.poll() is None
            if select.select([ours], [], [], 0.005)[0]:
                os.read(ours, 65536)
        os.close(ours)
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGHUP)
        assert process.wait() == 1
        assert not (out / "student.safetensors").exists()
        assert (out / "checkpoint.safetensors").exists()
        train(settings(cache_path, out, epochs=6, resume=True))
        train(settings(cache_path, tmp_path / "whole", epochs=6))
        assert_same_result(tmp_path / "whole", out)

    def test_a_run_does_not_end_because_nobody_reads_its_progress(
        self, processes: ForkServer, cache_path: Path, tmp_path: Path
    ) -> None:
        """`rpp-train ... 2>&1 | head -1`."""
        ours, theirs = os.pipe()
        arguments = ("--cache", cache_path, "--out", tmp_path / "run", "--max-steps", "3")
        process = processes.start("rpp-train", *TEXT_RUN, *arguments, stderr=theirs)
        os.close(ours)
        os.close(theirs)
        assert process.wait() == 0
        assert (tmp_path / "run" / "student.safetensors").exists()

    def test_resuming_a_finished_run_changes_nothing(self, cache_path: Path, tmp_path: Path) -> None:
        run = settings(cache_path, tmp_path / "run", max_steps=3)
        train(run)
        before = result(tmp_path / "run"), metrics(tmp_path / "run")
        done = train(run.model_copy(update={"resume": True}))
        assert done.samples == 0
        assert metrics(tmp_path / "run") == before[1]
        assert all(torch.equal(before[0][name], tensor) for name, tensor in result(tmp_path / "run").items())

    def test_other_settings_are_refused(self, cache_path: Path, tmp_path: Path) -> None:
        train(settings(cache_path, tmp_path / "run", max_steps=1))
        with pytest.raises(
            UsageError, match=r"created with different settings \(temperature: stored 1.0, requested 3.0\)"
        ):
            train(settings(cache_path, tmp_path / "run", max_steps=1, resume=True, temperature=3.0))

    def test_a_run_of_another_version_is_not_continued(self, cache_path: Path, tmp_path: Path) -> None:
        """Of a newer format; or of this one, with a setting that is not known here."""
        train(settings(cache_path, tmp_path / "run", max_steps=1))
        file = tmp_path / "run" / "settings.json"
        record = json.loads(file.read_text())
        assert record["format_version"] == 2
        file.write_text(json.dumps({**record, "format_version": 3, "settings": None, "software": "rpp 9.1"}))
        newer = (
            r"run has run format 3, written by rpp 9\.1; rpp 0\.\S+ reads format 2: install a newer rpp-clip$"
        )
        with pytest.raises(UsageError, match=newer):
            train(settings(cache_path, tmp_path / "run", max_steps=1, resume=True))
        file.write_text(json.dumps({**record, "settings": {**record["settings"], "focal": 2.0}}))
        with pytest.raises(
            UsageError,
            match=r"created with different settings \(focal: stored 2\.0, not known to this version",
        ):
            train(settings(cache_path, tmp_path / "run", max_steps=1, resume=True))
        del record["format_version"]  # as runs were recorded at first
        file.write_text(json.dumps(record))
        assert train(settings(cache_path, tmp_path / "run", max_steps=1, resume=True)).samples == 0

    def test_there_must_be_a_run(self, cache_path: Path, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="no run at"):
            train(settings(cache_path, tmp_path / "run", resume=True))

    def test_a_run_is_not_overwritten(self, cache_path: Path, tmp_path: Path) -> None:
        train(settings(cache_path, tmp_path / "run", max_steps=1))
        with pytest.raises(UsageError, match="already has a run"):
            train(settings(cache_path, tmp_path / "run", max_steps=1))

    def test_a_damaged_checkpoint_is_named(self, cache_path: Path, tmp_path: Path) -> None:
        train(settings(cache_path, tmp_path / "run", max_steps=1))
        (tmp_path / "run" / "checkpoint.safetensors").write_bytes(b"not a checkpoint")
        with pytest.raises(UsageError, match=r"checkpoint.safetensors is damaged or of another run"):
            train(settings(cache_path, tmp_path / "run", max_steps=1, resume=True))


def test_a_checkpoint_that_cannot_be_written_keeps_the_previous_one(cache_path: Path, tmp_path: Path) -> None:
    """As on a full disk: no file may have half as many bytes."""
    run = settings(cache_path, tmp_path / "run", checkpoint_every=2, max_steps=4)
    train(run)
    checkpoint = tmp_path / "run" / "checkpoint.safetensors"
    with safe_open(checkpoint, framework="pt") as file:
        record = json.loads(file.metadata()["checkpoint"])
    save_file(load_file(checkpoint), checkpoint, {"checkpoint": json.dumps({**record, "step": 1})})
    before = checkpoint.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))
    try:
        with pytest.raises(RppError, match=r"of step 2 cannot be written .* free some space and resume with"):
            train(run.model_copy(update={"resume": True}))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert checkpoint.read_bytes() == before


@pytest.mark.parametrize("name", ["metrics.jsonl", "student.safetensors.tmp"])
def test_a_file_of_the_run_that_cannot_be_written_is_reported_in_one_line(
    cache_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    begin = RunFolder.create

    def begin_and_block(run: RunFolder, record: dict[str, Any]) -> None:
        begin(run, record)
        (run.out / name).mkdir()

    monkeypatch.setattr(RunFolder, "create", begin_and_block)
    with pytest.raises(RppError, match=r"cannot be written .*--resume") as failed:
        train(settings(cache_path, tmp_path / "run", max_steps=1))
    assert failed.value.exit_code == 1


def test_a_clipped_step_has_the_direction_of_the_gradient_and_the_requested_norm(
    cache_path: Path, tmp_path: Path
) -> None:
    """One step of plain SGD: what the prompts moved by is the rate times the gradient."""
    common = {"max_steps": 1, "lr": 0.5, "warmup": 0.0, "weight_decay": 0.0}
    moved = {}
    for clip in (0.0, 0.01):
        out = tmp_path / str(clip)
        train(settings(cache_path, out, clip_norm=clip, **common))
        base = load_model(open_cache(cache_path).teacher["model"])
        start = PromptedCLIP(base, load_student(out).settings, seed=0).prompts["text"].tensors()
        moved[clip] = torch.cat([(result(out)[f"text.{n}"] - x).flatten() for n, x in start.items()]) / 0.5
    norm = metrics(tmp_path / "0.0")[0]["gradient_norm"]
    assert norm > 0.02
    assert float(moved[0.0].norm()) == pytest.approx(norm, rel=1e-3)
    assert float(moved[0.01].norm()) == pytest.approx(0.01, rel=1e-3)
    assert float(torch.cosine_similarity(moved[0.0], moved[0.01], dim=0)) == pytest.approx(1, abs=1e-3)


def metrics_so_far(out: Path) -> list[str]:
    return (out / "metrics.jsonl").read_text().splitlines()


def test_a_loss_that_is_not_finite_stops_the_run(cache_path: Path, tmp_path: Path) -> None:
    """Detected at its step, reported at the next line of the log; no later checkpoint is written."""
    common = {"lr": 1e18, "clip_norm": 0.0, "epochs": 5}
    with pytest.raises(RppError, match=r"the loss is not finite at step (\d+) \(rows \d") as exact:
        train(settings(cache_path, tmp_path / "exact", **common))
    wild = settings(cache_path, tmp_path / "run", log_every=50, checkpoint_every=3, **common)
    with pytest.raises(RppError, match=r"the loss is not finite at step \d+ ") as late:
        train(wild)
    assert str(late.value).split("(rows")[0] == str(exact.value).split("(rows")[0]
    assert not (tmp_path / "run" / "student.safetensors").exists()


class TestWrongUse:
    """One clear line and exit code 2."""

    @pytest.fixture
    def error_line(
        self,
        cache_path: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> Any:
        def run(*arguments: str, cache: Path = cache_path) -> str:
            capsys.readouterr()
            out = ["--out", str(tmp_path / "run")]
            assert run_main(monkeypatch, "--cache", str(cache), *out, *arguments) == 2
            error = capsys.readouterr().err
            assert "Traceback" not in error
            lines = [line for line in error.splitlines() if line.startswith("error:")]
            assert len(lines) == 1
            return lines[0]

        return run

    def test_no_cache(self, error_line: Any, tmp_path: Path) -> None:
        assert "no cache at" in error_line(cache=tmp_path / "nothing.zarr")

    def test_no_such_model(self, error_line: Any) -> None:
        assert "near names: " in error_line("--student", "ViT-B-61", "--pretrained", "openai")

    def test_unsupported_tower(self, error_line: Any, tmp_path: Path) -> None:
        model = write_model(tmp_path / "resnet", "resnet")
        assert "ModifiedResNet cannot carry prompts: it is convolutional" in error_line(
            "--student", str(model)
        )

    def test_a_cache_of_another_teacher(self, error_line: Any, tmp_path: Path) -> None:
        cache = build(tmp_path, "gelu")
        write_model(tmp_path / "model-gelu-0", "gelu", seed=5)
        assert "the cache" in (line := error_line(cache=cache))
        assert "was built with" in line

    def test_too_few_classes(self, error_line: Any) -> None:
        assert "fewer than the" in error_line("--classes-per-step", "10", "--towers", "text")

    def test_no_prompts(self, error_line: Any) -> None:
        assert "nothing to train" in error_line("--prompt-depth", "0")

    def test_an_invalid_value(self, error_line: Any) -> None:
        assert "--temperature" in error_line("--temperature", "0")
        assert "--classes-per-step" in error_line("--classes-per-step", "many")

    def test_an_unfinished_cache(self, error_line: Any, tmp_path: Path) -> None:
        cache = build(tmp_path, "gelu")
        next((cache / "parts").glob("*.json")).unlink()
        assert "not complete: 1 of 3 parts are missing; run rpp-cache build again" in error_line(cache=cache)


@pytest.mark.parametrize("sampled", [False, True])
def test_texts_are_packed_by_the_thread_of_batches_and_once_if_they_never_change(
    cache_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sampled: bool
) -> None:
    threads, packed = [], PromptedCLIP.pack_texts

    def noted(student: PromptedCLIP, tokens: torch.Tensor, device: torch.device | None = None) -> Any:
        threads.append(threading.current_thread())
        return packed(student, tokens, device)

    monkeypatch.setattr(PromptedCLIP, "pack_texts", noted)
    chosen = {"classes_per_step": 30} if sampled else {}
    steps = train(settings(cache_path, tmp_path / "run", **chosen)).steps
    _plan, *others = threads
    assert len(others) == (steps if sampled else 0)
    assert threading.main_thread() not in others


def test_the_memory_of_the_text_tower_is_printed_recorded_and_kept(
    cache_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--cache", str(cache_path), "--towers", "text", "--max-steps", "2", "--log", "none")
    assert run_main(monkeypatch, *arguments, "--out", str(tmp_path / "run"), "--text-memory", "1 MB") == 0
    printed = capsys.readouterr().err
    assert "text tower: 1 chunk, 1 of 1 recomputed, 1 block at a time, " in printed
    assert "note: the text tower needs more than --text-memory 1 MB, although" in printed
    record = json.loads((tmp_path / "run" / "settings.json").read_text())
    assert record["text_memory"] == 10**6
    assert record["text_plan"]["recomputed"] == 1
    more = ("--out", str(tmp_path / "run"), "--resume")
    assert run_main(monkeypatch, *arguments, *more) == 0
    assert "text tower: 1 chunk, 1 of 1 recomputed, " in capsys.readouterr().err
    assert run_main(monkeypatch, *arguments, *more, "--text-memory", "1GB") == 0
    assert "text tower: 1 chunk, all activations kept, " in capsys.readouterr().err
    assert run_main(monkeypatch, *arguments, "--out", str(tmp_path / "b"), "--text-memory", "little") == 2
    assert "--text-memory 'little'" in capsys.readouterr().err


@pytest.mark.parametrize("enough", [True, False])
def test_too_little_memory_in_the_first_step_makes_a_smaller_plan(
    cache_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    enough: bool,
) -> None:
    """A GPU's allocator that fails above some bytes."""
    encode = towers.encode_text

    def limited(parts: Any, prompts: Any, texts: Any, plan: Any, **options: Any) -> torch.Tensor:
        if plan.peak_bytes >= first["peak_bytes"] or not enough:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore")
        return encode(parts, prompts, texts, plan, **options)

    expected = train(settings(cache_path, tmp_path / "expected", max_steps=3))
    first = json.loads((tmp_path / "expected" / "settings.json").read_text())["text_plan"]
    monkeypatch.setattr(towers, "encode_text", limited)
    requested = settings(cache_path, tmp_path / "run", max_steps=3)
    if not enough:
        with pytest.raises(
            RppError, match=r"not enough GPU memory at step 0 \(.* 2.00 GiB.\); use a smaller"
        ):
            train(requested)
        return
    assert train(requested).loss == pytest.approx(expected.loss, rel=1e-5)
    assert "with a smaller plan: 1 chunk, 1 of 1 recomputed" in caplog.text
