"""Copies to the device: on a CPU nothing is copied; on CUDA they do not wait and are not overwritten."""

import pytest
import torch

from teacher_cache.device_copies import DeviceCopies, pinned

CPU = torch.device("cpu")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def test_on_a_cpu_the_tensors_are_returned_themselves() -> None:
    tensors = {"a": torch.arange(3), "b": torch.ones(2, 2)}
    copied = DeviceCopies(CPU)(tensors)
    assert list(copied) == ["a", "b"]
    assert all(copied[name] is tensors[name] for name in tensors)
    assert pinned(tensors["a"], CPU) is tensors["a"]


@needs_cuda
@pytest.mark.parametrize("pin", [True, False])
def test_copies_are_complete_when_the_callers_stream_uses_them(pin: bool) -> None:
    device = torch.device("cuda")
    copies = DeviceCopies(device)
    busy = torch.randn(4096, 4096, device=device)
    results = []
    for number in range(8):
        source = torch.full((1 << 20,), float(number))
        busy = busy @ busy / 4096
        copied = copies({"x": pinned(source, device) if pin else source})["x"]
        results.append(copied.sum() / copied.numel())
        del copied
    assert torch.stack(results).tolist() == list(range(8))


@needs_cuda
def test_a_step_copies_without_waiting() -> None:
    copies = DeviceCopies(torch.device("cuda"))
    torch.cuda.set_sync_debug_mode("error")
    try:
        copies({"x": torch.ones(1000)})
    finally:
        torch.cuda.set_sync_debug_mode("default")
