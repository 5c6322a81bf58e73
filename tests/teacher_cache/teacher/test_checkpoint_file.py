"""Files of torch.save: what is loaded, and that any damage is a ValueError."""

import io
from collections import Counter, OrderedDict
from pathlib import Path

import pytest
import torch

from teacher_cache.errors import RppError
from teacher_cache.teacher.checkpoint_file import load_plain


@pytest.mark.parametrize("zipped", [True, False])
def test_tensors_and_containers_are_loaded(zipped: bool, tmp_path: Path) -> None:
    whole = torch.arange(24.0).reshape(4, 6)
    tensors = [whole, whole.T, whole[1:, ::2], whole[0, 0], torch.ones(0, 3), torch.ones(2).expand(5, 2)]
    kinds = [torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.uint8, torch.bool]
    kinds += [torch.complex64, torch.complex128, torch.int32, torch.int16, torch.int8]
    if zipped:  # the older format cannot hold the newer types
        kinds += [torch.uint16, torch.float8_e4m3fn]
    tensors += [whole.to(kind) for kind in kinds]
    state = {
        "tensors": OrderedDict((str(n), tensor) for n, tensor in enumerate(tensors)),
        "parameter": torch.nn.Parameter(whole),
        "others": [None, True, 3, 2**80, -0.5, "a", b"\xff\0", (1, ()), [[]], {1: 2, 0.5: 1, None: 0}],
        "counted": Counter("abca"),
        "shape": whole.shape,
        "device": whole.device,
        "kind": torch.float32,
    }
    torch.save(state, tmp_path / "state.pt", _use_new_zipfile_serialization=zipped)
    loaded = load_plain(tmp_path / "state.pt")
    for found, tensor in zip(loaded.pop("tensors").values(), tensors, strict=True):
        assert (found.dtype, found.shape, found.stride()) == (tensor.dtype, tensor.shape, tensor.stride())
        assert torch.equal(found.to(torch.complex128), tensor.to(torch.complex128))
    assert torch.equal(loaded.pop("parameter"), whole)
    assert loaded == {name: state[name] for name in loaded}
    assert len(loaded) == 5


@pytest.mark.parametrize("zipped", [True, False])
def test_a_damaged_file_is_a_value_error(zipped: bool, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save({"a": torch.ones(3), "b": [1, "x"]}, buffer, _use_new_zipfile_serialization=zipped)
    content, path = buffer.getvalue(), tmp_path / "state.pt"
    for end in range(0, len(content), 7):
        path.write_bytes(content[:end])
        with pytest.raises(ValueError, match=r"^[^\n]+$"):
            load_plain(path)


def test_a_file_that_cannot_be_read_is_an_os_error(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(OSError, match="directory"):
            load_plain(path)


def test_an_archive_is_mapped_into_memory_if_asked(tmp_path: Path) -> None:
    for zipped in (True, False):  # the older format cannot be mapped, and is read
        torch.save({"a": torch.arange(5)}, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
        assert load_plain(tmp_path / "a.pt", mmap=True)["a"].tolist() == [0, 1, 2, 3, 4]


def test_a_file_that_needs_more_memory_is_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(torch.ones(4), tmp_path / "good.pt")

    def out_of_memory(*_: object, **__: object) -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(torch, "load", out_of_memory)
    with pytest.raises(RppError, match=r"good\.pt needs more memory than is available: "):
        load_plain(tmp_path / "good.pt")
