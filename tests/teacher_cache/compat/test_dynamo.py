"""What is used of torch.compile's private side works in this torch, and its absence is harmless."""

import sys
from collections.abc import Iterator
from typing import NoReturn

import pytest
import torch

from teacher_cache.compat import dynamo
from teacher_cache.errors import UsageError

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def traced(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(dynamo, "BACKEND", "eager")
    dynamo.require_compiler.cache_clear()
    dynamo.compiled.cache_clear()
    yield
    dynamo.require_compiler.cache_clear()
    dynamo.compiled.cache_clear()
    torch._dynamo.reset()


def test_a_function_may_be_compiled_more_often_than_torchs_limit() -> None:
    dynamo.require_compiler(CPU)

    def shifted(x: torch.Tensor, by: str) -> torch.Tensor:
        return x + len(by)

    ours = dynamo.compiled(shifted)
    assert ours is dynamo.compiled(shifted)
    for number in range(20):  # torch's own limit is 8
        assert ours(torch.zeros(2), "x" * number).tolist() == [number, number]


def test_the_reason_why_nothing_compiles_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def backend(module: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> NoReturn:
        raise RuntimeError("No working C++ compiler found")

    monkeypatch.setattr(dynamo, "BACKEND", backend)
    with pytest.raises(UsageError, match=r"this machine \(RuntimeError: No working C\+\+ compiler found\)"):
        dynamo.require_compiler(CPU)


def test_the_clock_measures_compiling_only() -> None:
    clock = dynamo.CompileClock()
    ours = dynamo.compiled(lambda x: x.sin() + 1)
    assert clock.seconds == 0
    ours(torch.zeros(3))
    first = clock.seconds
    assert first > 0
    ours(torch.zeros(3))
    assert clock.seconds == first


def test_without_torchs_callbacks_nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch._dynamo.callback", None)
    clock = dynamo.CompileClock()
    dynamo.compiled(lambda x: x.cos() + 1)(torch.zeros(3))
    assert clock.seconds == 0


def test_errors_of_compiling_are_told_from_others() -> None:
    def waits(x: torch.Tensor) -> torch.Tensor:
        torch._dynamo.graph_break()
        return x + 1

    with pytest.raises(RuntimeError) as found:
        dynamo.compiled(waits)(torch.zeros(2))
    assert dynamo.is_compile_error(found.value)
    assert not dynamo.is_compile_error(RuntimeError("out of paper"))
