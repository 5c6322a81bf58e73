"""Read files of `torch.save` without running code from them.

torch's `weights_only` unpickler builds tensors, numbers, strings and containers only. It does not bound the
memory that a file may ask for; `docs/reliability.md` says what follows from that.
"""

import re
import zipfile
from pathlib import Path
from typing import Any

import torch

from teacher_cache.errors import RppError

ZIP = b"PK\3\4"


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
    is_archive = _check_archive(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap and is_archive)
    except OSError:
        raise
    except Exception as error:  # the opcodes of a damaged pickle decide which one
        if isinstance(error, MemoryError) or "allocate memory" in str(error):  # torch's allocator
            raise RppError(f"{path} needs more memory than is available: {_reason(error)}") from error
        raise ValueError(_reason(error)) from error


def _check_archive(path: Path) -> bool:
    """Return whether the file is a zip archive; refuse one that unpacks to more bytes than it has.

    `torch.save` stores entries without compression, so the file's own size bounds what is read from it.
    """
    with open(path, "rb") as file:
        if file.read(len(ZIP)) != ZIP:  # torch's test
            return False
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    # NotImplementedError: zipfile's, for a version of the format that the file claims
    except (zipfile.BadZipFile, NotImplementedError, UnicodeDecodeError) as error:
        raise ValueError(f"it is a damaged zip archive ({error})") from error
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise ValueError("its entries are compressed; torch.save writes them uncompressed")
    if sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise ValueError("its entries have more bytes than the file")
    return True


def _reason(error: Exception) -> str:
    """Return one line without torch's advice to load the file unsafely."""
    if code := re.search(r"GLOBAL (\S+)", str(error)):
        name = re.sub(r"^(builtins|__builtin__)\.", "", code[1])
        return f"its pickle names GLOBAL {name} which is neither a tensor nor a container"
    message = str(error).partition("WeightsUnpickler error: ")[2] or str(error)
    return message.strip().partition("\n")[0] or type(error).__name__
