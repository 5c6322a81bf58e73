"""The GPU benchmark runs on a CPU in a small form, notices wrong results, and survives failures."""

import importlib
import json
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import typer

from student_train.model import towers
from student_train.model.settings import PromptSettings
from student_train.model.student import PromptedCLIP
from tests.models import loaded

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
CPU = torch.device("cpu")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The benchmark, imported as running it as a script does."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("gpu")


@pytest.fixture
def measures(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("gpu_measures")


def test_every_section_runs_or_says_why_not(
    gpu: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "gpu.json"
    gpu.main(device="cpu", quick=True, minutes=4, only=None, out=out, as_markdown=False, as_json=True)
    record = json.loads(capsys.readouterr().out)
    assert next(iter(record)) == "failures"
    assert record == json.loads(out.read_text())
    assert record["failures"] == []
    found, skipped = record["sections"], record["skipped"]
    assert found.keys() | skipped.keys() == gpu.SECTIONS.keys()
    assert not found.keys() & skipped.keys()
    for name, reason in skipped.items():
        assert name.endswith(("compiled", "threads", "on_device"))
        assert "no setting" in reason or "on a GPU only" in reason
    assert found["results"]["checked"] > 40
    steps = [section for section in found.values() if "ms_per_step" in section]
    assert len(steps) == 5
    for section in steps:
        assert section["gpu_busy_share"] > 0
        assert 0 < section["share_of_floor"] < 1
        assert section["samples_per_s"] == pytest.approx(
            1e3 * section["batch_size"] / section["ms_per_step"], rel=1e-2
        )
    both = found["both_towers_memory"], found["both_towers_jpegs"]
    assert both[0]["tflop_per_step"] == pytest.approx(both[1]["tflop_per_step"], rel=0.01)
    for name in ("build_vit_b_16", "build_vit_l_14"):
        build = found[name]
        assert build["images"] == 24
        assert build["images_per_s"] == pytest.approx(build["images"] / build["build_seconds"], rel=1e-2)
        assert 0 < build["waiting_for_pixels_share"] < 1
    tables = gpu.markdown(record)
    assert "54 results checked, 0 wrong." in tables
    widths = {line.count("|") for line in tables.splitlines() if line.startswith("| build")}
    assert widths == {len(gpu.BUILD_COLUMNS) + 2}


def test_wrong_results_are_named_and_end_with_an_error(
    gpu: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recomputed = towers._recomputed
    monkeypatch.setattr(towers, "_recomputed", lambda *arguments: 1.01 * recomputed(*arguments))
    with pytest.raises(typer.Exit) as ended:
        gpu.main(device="cpu", quick=True, only=["results"], as_json=False, as_markdown=True, minutes=2)
    assert ended.value.exit_code == 1
    first = capsys.readouterr().out.splitlines()[0]
    assert first.startswith("**Failed: results: text tower, 80 names, recomputed: features in fp32: relative")


def test_failures_do_not_end_other_sections(gpu: Any, tmp_path: Path) -> None:
    def fails(bench: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    def hangs(bench: Any) -> Any:
        time.sleep(60)

    out = tmp_path / "gpu.json"
    sections = {
        "fails": gpu.Section(fails, 0),
        "unknown": gpu.Section(fails, 0, {"no_such_setting": True}),
        "later": gpu.Section(fails, 1000),
        "works": gpu.Section(gpu.describe, 0),
    }
    bench = gpu.Bench(gpu.QUICK, CPU, tmp_path)
    record = gpu.run_sections(bench, sections, time.monotonic() + 100, out)
    assert record == json.loads(out.read_text())
    assert record["failures"][0] == "fails: OutOfMemoryError: CUDA out of memory"
    assert record["skipped"]["unknown"] == "this version has no setting no_such_setting"
    assert record["skipped"]["later"].startswith("takes about 1000 s, and ")
    assert record["sections"]["works"]["torch"] == torch.__version__
    late = gpu.run_sections(bench, {"hangs": gpu.Section(hangs, 0)}, time.monotonic() + 1, None)
    assert late["failures"][0].startswith("hangs: OverTimeError: not finished after")


def test_a_check_without_enough_memory_is_skipped_and_one_with_an_error_fails(gpu: Any) -> None:
    def raises(error: Exception) -> Any:
        raise error

    one = torch.ones(3)
    assert gpu.check("x", "fp32", one, lambda: one)["holds"]
    assert not gpu.check("x", "fp32", one, lambda: 1.01 * one)["holds"]
    assert not gpu.check("x", "fp32", one, lambda: torch.full((3,), float("nan")))["holds"]
    assert "holds" not in gpu.check("x", "fp32", one, lambda: raises(torch.OutOfMemoryError("all is used")))
    failed = gpu.check("x", "fp32", one, lambda: raises(RuntimeError("no kernel")))
    assert gpu.wrong_results("results", {"checks": [failed]}) == ["results: x in fp32: no kernel"]


def test_a_variant_is_compared_with_the_plain_steps(gpu: Any, tmp_path: Path) -> None:
    """Another seed stands for a setting that must not change the loss, but does."""
    bench = gpu.Bench(gpu.QUICK, CPU, tmp_path)
    with pytest.raises(gpu.SkippedError, match="needs the section all_names_batch_256"):
        gpu.text_steps(bench, 0, seed=1)
    plain = bench.found["all_names_batch_256"] = gpu.text_steps(bench, 0)
    (same,) = gpu.text_steps(bench, 0, seed=0)["checks"]
    assert same["relative_error"] == 0
    other = gpu.text_steps(bench, 0, seed=1)
    assert other["tflop_per_step"] == plain["tflop_per_step"]
    assert other["checks"][0]["relative_error"] > 0


def test_covered_time_is_that_of_the_union(measures: Any) -> None:
    assert measures.covered([(5, 6), (0, 2), (1, 3), (1.5, 2.5)]) == 4
    assert measures.covered([]) == 0


def test_operations_are_those_of_products(measures: Any) -> None:
    a, b = torch.randn(4, 5, requires_grad=True), torch.randn(5, 6, requires_grad=True)
    assert measures.flops_of(lambda: (a @ b).sum().backward()) == 3 * 2 * 4 * 5 * 6


def test_operations_of_attention_on_a_cpu_are_counted(measures: Any) -> None:
    q, k = torch.randn(2, 3, 7, 16, requires_grad=True), torch.randn(2, 3, 9, 16)
    attend = torch.nn.functional.scaled_dot_product_attention
    forward = 4 * 2 * 3 * 7 * 9 * 16
    with torch.no_grad():
        assert measures.flops_of(lambda: attend(q, k, k, attn_mask=torch.zeros(7, 9))) == forward
    assert measures.flops_of(lambda: attend(q, k, k).sum().backward()) > 2 * forward


def test_kernels_of_a_call_are_counted_without_those_before(measures: Any) -> None:
    x = torch.zeros(3)
    once = measures.kernels_of(x.neg_, CPU)
    twice = measures.kernels_of(lambda: x.neg_().neg_(), CPU)
    assert twice.count - once.count == 1
    assert once.count < measures.FIRST
    assert 0 < once.seconds < 1


def test_waits_are_counted_by_lines_of_our_code(measures: Any) -> None:
    """A hook that warns as torch does stands for an operation that waits."""
    student = PromptedCLIP(loaded("gelu"), PromptSettings())
    hook = student.clip.ln_final.register_forward_hook(
        lambda *_: warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
    )
    tokens = student.tokenize_names(["cat", "dog"])
    with measures.waits_of(CPU) as places:
        student.encode_text(tokens)
        student.encode_text(tokens)
        warnings.warn("does not yet detect all synchronizing operations", stacklevel=1)
    hook.remove()
    ((place, count),) = places.items()
    assert count == 2
    path, line = place.split(":")
    assert path == "student_train/model/towers.py"
    source = (BENCHMARKS.parent / path).read_text().splitlines()
    assert "parts.ln_final" in source[int(line) - 1]


def test_samples_of_nvidia_smi_are_read(measures: Any) -> None:
    lines = "10, 1980, 650.5\n30, 1980, [N/A]\n20, 1755, 640.5\n90, 17"
    assert measures.medians(lines) == {
        "nvidia_smi_busy_percent": 20,
        "sm_clock_mhz": 1980,
        "power_watts": 645.5,
    }
    assert measures.medians("No devices were found\n") == {}
