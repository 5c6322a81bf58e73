"""Read files of `torch.save` without running code from them.

torch's `weights_only` unpickler builds tensors, numbers, strings and containers only. It does not bound the
memory that a file may ask for; `docs/reliability.md` says what follows from that. Training checkpoints have
other objects beside the weights (numpy's numbers, schedulers, settings): stand-ins that do nothing replace
them.
"""

import re
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from teacher_cache.errors import RppError
from teacher_cache.teacher.torchscript import is_torchscript

ZIP = b"PK\3\4"
LFS = b"version https://git-lfs"
# Dassl's schedulers and optimizers, its figures (numpy's numbers), and the containers of optimizers' states.
SKIPPED = (
    *(f"torch.optim.lr_scheduler.{name}" for name in ("StepLR", "MultiStepLR", "CosineAnnealingLR")),
    *(f"torch.optim.{name}" for name in ("sgd.SGD", "adam.Adam", "adamw.AdamW", "rmsprop.RMSprop")),
    *(f"dassl.optim.radam.{name}" for name in ("RAdam", "PlainRAdam", "AdamW")),
    *(f"numpy.{name}" for name in ("dtype", "core.multiarray.scalar", "_core.multiarray.scalar")),
    "builtins.dict",
)
STATES = "collections.defaultdict"


def require_content(path: Path) -> None:
    """Refuse a file that has nothing in it, or only names one.

    Raises:
        ValueError: it is empty, or a pointer of Git LFS.
        OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        head = file.read(len(LFS))
    if not head:
        raise ValueError("it is empty")
    if head == LFS:
        raise ValueError(
            "it is a pointer of Git LFS, not the file itself; run git lfs pull in its repository"
        )


def load_plain(path: Path, mmap: bool = False) -> Any:
    """Load what `torch.save` wrote, on the CPU.

    Args:
        path: the file, in either of torch's formats.
        mmap: map the tensors of a zip archive into memory, so that they are read when they are used.

    Raises:
        ValueError: the file is not a checkpoint, is damaged or compressed, or names code (`GLOBAL NAME`)
            that is not in torch's `safe_globals`.
        OSError: the file cannot be read.
        RppError: there is not enough memory for what the file requests.
    """
    require_content(path)
    is_archive = bool(_check_archive(path))
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap and is_archive)
    except OSError:
        raise
    except Exception as error:  # the opcodes of a damaged pickle decide which one
        if isinstance(error, MemoryError) or "allocate memory" in str(error):  # torch's allocator
            raise RppError(f"{path} needs more memory than is available: {_reason(error)}") from error
        raise ValueError(_reason(error)) from error


class _Skipped:
    """Stand-in for an object of the file: accepts its arguments and state, and keeps nothing."""

    def __new__(cls, *arguments: object) -> "_Skipped":
        return super().__new__(cls)

    def __init__(self, *arguments: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


def _states(*arguments: object) -> dict[Any, Any]:
    return {}  # `weights_only` fills only plain dictionaries


@contextmanager
def skipping(more: Iterable[str] = ()) -> Iterator[None]:
    """Make `weights_only` replace classes by stand-ins, SKIPPED and `more`; it refuses other code."""
    stand_ins = [(_Skipped, name) for name in (*SKIPPED, *more)]
    with torch.serialization.safe_globals([*stand_ins, (_states, STATES)]):
        yield


def objects_of(path: Path) -> list[str]:
    """Return the classes and functions, beside those of tensors and containers, that a checkpoint names."""
    try:
        named = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # an older format, or damaged: loading it says so
        return []
    return [name for name in named if name != STATES]


def is_torchscript_file(path: Path) -> bool:
    """Return whether a file is a TorchScript archive (`torch.jit.save`).

    Raises:
        ValueError: a zip archive that is damaged, or unpacks to more bytes than it has.
        OSError: the file cannot be read.
    """
    return is_torchscript(_check_archive(path))


def _check_archive(path: Path) -> list[str]:
    """Return the entries of a zip archive, of other files none; refuse one that unpacks to more bytes.

    `torch.save` stores entries without compression, so the file's own size bounds what is read from it. Of a
    TorchScript archive, the code is compressed; it is not read.
    """
    with open(path, "rb") as file:
        if file.read(len(ZIP)) != ZIP:  # torch's test
            return []
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    # NotImplementedError: zipfile's, for a version of the format that the file claims
    except (zipfile.BadZipFile, NotImplementedError, UnicodeDecodeError) as error:
        raise ValueError(f"it is a damaged zip archive ({error})") from error
    names = [entry.filename for entry in entries]
    if is_torchscript(names):
        entries = [entry for entry in entries if "/code/" not in entry.filename]
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise ValueError("its entries are compressed; torch.save writes them uncompressed")
    if sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise ValueError("its entries have more bytes than the file")
    return names


def _reason(error: Exception) -> str:
    """Return one line without torch's advice to load the file unsafely."""
    if code := re.search(r"GLOBAL (\S+)", str(error)):
        name = re.sub(r"^(builtins|__builtin__)\.", "", code[1])
        return f"its pickle names GLOBAL {name} which is neither a tensor nor a container"
    message = str(error).partition("WeightsUnpickler error: ")[2] or str(error)
    return message.strip().partition("\n")[0] or type(error).__name__
