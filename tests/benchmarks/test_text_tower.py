"""The text benchmarks run, agree with their yardstick, and notice what does not equal it."""

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import typer

from student_train.model import towers
from tests.models import write_model

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"local-dir:{write_model(tmp_path_factory.mktemp('model'), 'gelu')}"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """Imports a benchmark by name, as running it as a script does."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


def printed(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_text_tower(benchmark: Callable[[str], Any], model: str, capsys: pytest.CaptureFixture[str]) -> None:
    benchmark("text_tower").main(
        names=40, model=model, depth=2, rounds=2, chunk=16, device="cpu", as_json=True
    )
    found = printed(capsys)
    assert found["equal"]
    assert found["rows_plain"] == 40 * 77
    assert found["rows_shared"] < 40 * 8
    assert found["ratio"] == pytest.approx(found["seconds_plain"] / found["seconds_shared"], rel=0.1)


def test_text_tower_fails_where_the_yardstick_differs(
    benchmark: Callable[[str], Any],
    model: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    attend = towers._attend
    monkeypatch.setattr(towers, "_attend", lambda *arguments: 1.001 * attend(*arguments))
    with pytest.raises(typer.Exit):
        benchmark("text_tower").main(names=10, model=model, depth=2, rounds=1, device="cpu", as_json=True)
    assert not printed(capsys)["equal"]


@pytest.mark.parametrize("yardstick", ["recompute", "keep", "known"])
def test_full_softmax(
    benchmark: Callable[[str], Any], model: str, yardstick: str, capsys: pytest.CaptureFixture[str]
) -> None:
    benchmark("full_softmax").main(
        names=60,
        plain_names=10,
        model=model,
        depth=2,
        rounds=2,
        yardstick=yardstick,
        device="cpu",
        as_json=True,
    )
    found = printed(capsys)
    assert (found["names"], found["names_plain"], found["yardstick"]) == (60, 10, yardstick)
    assert found["ratio"] == pytest.approx(found["seconds_full"] / found["seconds_plain"], rel=0.1)
    assert found["peak_bytes_above_weights"] >= 0  # so little that memory freed before may do


def test_peak_memory_counts_what_was_freed_again(benchmark: Callable[[str], Any]) -> None:
    full_softmax, device = benchmark("full_softmax"), torch.device("cpu")
    before = full_softmax.begin_memory(device)
    torch.ones(50_000_000)  # 200 MB
    assert 190e6 <= full_softmax.peak_memory(device) - before <= 250e6
    before = full_softmax.begin_memory(device)
    torch.ones(1000)
    assert full_softmax.peak_memory(device) - before < 50e6


def test_recomputation_does_not_change_the_yardstick(benchmark: Callable[[str], Any], model: str) -> None:
    plain = benchmark("plain_text_tower")
    parts, prompts = plain.tower_with_prompts(model, 4, 2, torch.device("cpu"))
    tokens = plain.with_placeholders(plain.tokens_of_names(model, "imagenet-22k", 12), 4)
    gradients = []
    for recompute in (False, True):
        prompts.zero_grad(set_to_none=True)
        plain.encode_plainly(parts, prompts, tokens, recompute).square().sum().backward()
        gradients.append([p.grad.clone() for p in prompts.parameters()])
    for ours, theirs in zip(*gradients, strict=True):
        assert torch.equal(ours, theirs)


def test_precision(benchmark: Callable[[str], Any], capsys: pytest.CaptureFixture[str]) -> None:
    benchmark("precision").main(rounds=1, device="cpu", as_json=True)
    found = printed(capsys)
    assert found["fp32"]["gradient_relative_error"] == 0
    assert 0 < found["fp16"]["gradient_relative_error"] < found["bf16"]["gradient_relative_error"] < 0.1
    assert found["bf16"]["gradient_cosine"] > 0.99
