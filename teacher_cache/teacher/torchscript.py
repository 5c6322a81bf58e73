"""Read the tensors of a TorchScript archive, the form of OpenAI's files, without running its code.

`torch.jit.load` compiles the archive's code, and runs the parts of it that restore objects. Only the pickle
with the modules' state is read here. Of what it names, only tensors are made; all else becomes a stand-in.
"""

import pickle
import sys
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

MARK = "/constants.pkl"  # an entry that `torch.save` does not write
DEEPEST, MOST_MODULES = 64, 100_000  # a module may be part of several others
REBUILD = {"torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor"}
DTYPES = {
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


def is_torchscript(names: list[str]) -> bool:
    """Return whether the entries of a zip archive are those of a TorchScript archive."""
    return any(name.endswith(MARK) for name in names)


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """Return all tensors of the archive's modules by their names in a state dict, on the CPU.

    Raises:
        ValueError: the archive is damaged.
        OSError: the file cannot be read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            root = next(name for name in archive.namelist() if name.endswith(MARK)).removesuffix(MARK)
            found = _Reader(archive, root).load()
    except OSError:
        raise
    # what a damaged pickle raises depends on its opcodes
    except Exception as error:
        raise ValueError(f"it is a damaged TorchScript archive ({error or type(error).__name__})") from error
    tensors: dict[str, Tensor] = {}
    waiting = [("", found, 0)]
    for _ in range(MOST_MODULES):
        if not waiting:
            return tensors
        prefix, module, depth = waiting.pop()
        if isinstance(module, _Object) and isinstance(module.state, dict) and depth < DEEPEST:
            for name, value in module.state.items():
                if isinstance(value, Tensor):
                    tensors[f"{prefix}{name}"] = value
                else:
                    waiting.append((f"{prefix}{name}.", value, depth + 1))
    raise ValueError(f"it has more than {MOST_MODULES:,} modules")


class _Object:
    """Stand-in for an object of the archive: keeps its state, and does nothing."""

    state: Any = None

    def __new__(cls, *arguments: object) -> "_Object":
        return super().__new__(cls)

    def __init__(self, *arguments: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        self.state = state


class _Reader(pickle.Unpickler):
    """Unpickler that calls nothing that the pickle names but `_tensor`, OrderedDict and `_Object`."""

    def __init__(self, archive: zipfile.ZipFile, root: str) -> None:
        super().__init__(archive.open(f"{root}/data.pkl"))
        self._archive, self._root = archive, root
        self._storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" in REBUILD:
            return _tensor
        if f"{module}.{name}" == "collections.OrderedDict":
            return dict
        if module == "torch" and name in DTYPES:
            return DTYPES[name]
        return _Object

    def persistent_load(self, pid: Any) -> Tensor:
        kind, dtype, key, _, numbers = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            raise ValueError(f"unknown storage {pid!r}")
        if key not in self._storages:
            content = bytearray(self._archive.read(f"{self._root}/data/{key}"))
            if len(content) != numbers * dtype.itemsize:
                raise ValueError(f"storage {key} has {len(content)} bytes")
            if sys.byteorder != "little":
                raise ValueError("this machine is not little-endian")
            empty = torch.empty(0, dtype=dtype)
            self._storages[key] = torch.frombuffer(content, dtype=dtype) if content else empty
        return self._storages[key]


def _tensor(storage: Tensor, offset: int, size: Any, stride: Any, *_: object) -> Tensor:
    return storage.as_strided(tuple(size), tuple(stride), offset)  # checks the bounds
