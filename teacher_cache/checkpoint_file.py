"""Files of `torch.save`, which are pickles: how they are opened here, ours and those of others.

Only here, and where open_clip loads a model's weights, is a pickle opened: by torch's `weights_only`
unpickler, which builds tensors, numbers, texts and containers, and calls nothing that the file names.
"""

import zipfile
from pathlib import Path
from typing import Any

import torch

ZIP = b"PK\3\4"
LARGEST_PICKLE = 64 << 20  # bytes of what describes the tensors; of whole models it is some hundred KB


def load_plain(path: Path) -> Any:
    """What `torch.save` wrote, on the CPU.

    Raises:
        Exception: it cannot be read, is no such file, is damaged, names code, or would take more memory than
            its bytes: in every way that torch has.
    """
    require_uncompressed(path)
    return torch.load(path, map_location="cpu", weights_only=True)


def require_uncompressed(path: Path) -> None:
    """Refuse what torch would unpack to any size; it writes no such files itself.

    Raises:
        ValueError: the entries of the archive are compressed.
        zipfile.BadZipFile: it begins as an archive and is none.
        OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        if file.read(len(ZIP)) != ZIP:  # as torch tells; its older format has no compression
            return
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
                raise ValueError(f"its entry {entry.filename} is compressed, which torch.save does not do")
            if entry.filename.endswith(".pkl") and entry.file_size > LARGEST_PICKLE:
                raise ValueError(f"its entry {entry.filename} has {entry.file_size:,} bytes")
