"""TorchScript archives: the tensors are those of `torch.jit.load`, and nothing of the file runs."""

import pickle
import zipfile
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from torch import nn

from teacher_cache.teacher.torchscript import read_torchscript
from tests.teacher_cache.teacher.archives import write_openai


def test_the_tensors_are_those_of_torch(tmp_path: Path) -> None:
    path = write_openai(tmp_path / "clip.pt")
    expected = torch.jit.load(path).state_dict()
    found = read_torchscript(path)
    assert found.keys() == expected.keys() >= {"input_resolution", "visual.conv1.weight", "logit_scale"}
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)
    assert found["visual.conv1.weight"].dtype == torch.float16


def test_views_lists_and_empty_tensors(tmp_path: Path) -> None:
    class Shared(nn.Module):
        sizes: list[int]

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("all", torch.arange(12.0).view(3, 4))
            self.register_buffer("part", self.all.T[1:3])
            self.register_buffer("none", torch.empty(0, 3))
            self.register_buffer("flags", torch.tensor([True, False]))
            self.sizes = [1, 2]

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.all.sum() + self.part.sum() + self.none.sum() + self.flags.sum()

    traced = torch.jit.trace(Shared(), torch.ones(1))
    torch.jit.save(traced, tmp_path / "shared.pt")
    found = read_torchscript(tmp_path / "shared.pt")
    assert {name: x.tolist() for name, x in found.items()} == {
        name: x.tolist() for name, x in traced.state_dict().items()
    }


class RunsCode:
    """Unpickling it makes a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (Path(self.path),)


def forge(path: Path, content: bytes, storage: bytes = b"\0" * 8) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/constants.pkl", b"")
        archive.writestr("x/data.pkl", content)
        archive.writestr("x/data/0", storage)
    return path


def test_nothing_that_an_archive_names_is_called(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    for protocol in (2, 4):
        content = pickle.dumps({"a": RunsCode(str(marker))}, protocol)
        with suppress(ValueError):
            assert read_torchscript(forge(tmp_path / "forged.pt", content)) == {}
    assert not marker.exists()
    pickle.loads(content)
    assert marker.exists()


TENSOR = (
    b"\x80\x02c__torch__\nM\n)\x81}X\x01\x00\x00\x00wctorch._utils\n_rebuild_tensor_v2\n("
    b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x02tQ"
    b"K\x00(K%dt(K\x01t\x89Nt%ssb."
)


def test_a_tensor_stays_within_its_storage(tmp_path: Path) -> None:
    def content(numbers: int) -> bytes:
        return TENSOR.replace(b"K%d", b"K" + bytes([numbers])).replace(b"%s", b"R")

    whole = forge(tmp_path / "whole.pt", content(2))
    assert read_torchscript(whole)["w"].tolist() == [0, 0]
    for path in (forge(tmp_path / "more.pt", content(3)), forge(tmp_path / "less.pt", content(2), b"\0")):
        with pytest.raises(ValueError, match="damaged TorchScript archive"):
            read_torchscript(path)


def test_a_damaged_archive_is_one_error(tmp_path: Path) -> None:
    for content in (b"", b"\x80", b"\x80\x02}.", b"\x80\x02cbuiltins\neval\nX\x01\x00\x00\x001\x85R."):
        path = forge(tmp_path / "damaged.pt", content)
        if content.endswith(b"."):
            assert read_torchscript(path) == {}
        else:
            with pytest.raises(ValueError, match="damaged TorchScript archive"):
                read_torchscript(path)
