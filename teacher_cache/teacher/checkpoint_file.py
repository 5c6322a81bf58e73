"""Files of `torch.save`, which are pickles: how they are opened here, ours and those of others.

Only here, and where open_clip loads a model's weights, is a pickle opened: by torch's `weights_only`
unpickler. That one calls nothing but torch's own functions, which still can be told to take any amount of
memory: `plain_pickle.py` looks first at what they would be told.
"""

import io
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch

from teacher_cache.teacher.plain_pickle import StorageBytes, look_through

ZIP = b"PK\3\4"
# Bytes of what describes the tensors: of whole models some hundred KB. An object may be a hundred times as
# large as the opcodes that make it.
LARGEST_PICKLE = 4 << 20
PICKLES_OF_OLD_FORMAT = 5  # a number, a version, the machine, the object, the names of its storages


def load_plain(path: Path, stand_ins: Collection[str] = ()) -> Any:
    """What `torch.save` wrote, on the CPU.

    Args:
        stand_ins: full names of what the caller has told `weights_only` to put something harmless for.

    Raises:
        Exception: it cannot be read, is no such file, is damaged, names code, or would take more memory than
            its bytes: in every way that torch has.
    """
    require_plain(path, stand_ins)
    return torch.load(path, map_location="cpu", weights_only=True)


def require_plain(path: Path, stand_ins: Collection[str] = ()) -> None:
    """Refuse what torch would make more of than tensors, numbers, texts and containers, or more bytes of than
    the file has.

    Args:
        stand_ins: as for `load_plain`.

    Raises:
        ValueError: entries of the archive that are compressed or overlap, a pickle that calls anything else
            or is too long, or tensors beyond their bytes.
        zipfile.BadZipFile: it begins as an archive and is none.
        OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        if file.read(len(ZIP)) == ZIP:  # as torch tells
            _look_through_archive(path, stand_ins)
            return
        file.seek(0)
        pickles = io.BytesIO(file.read(LARGEST_PICKLE))
        size = file.seek(0, io.SEEK_END)
    claimed: StorageBytes = {}
    for _ in range(PICKLES_OF_OLD_FORMAT):
        look_through(pickles, stand_ins, claimed)
    if sum(claimed.values()) > size:
        raise ValueError(f"its tensors claim {sum(claimed.values()):,} bytes, the file has {size:,}")


def _look_through_archive(path: Path, stand_ins: Collection[str]) -> None:
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        # one reading alone: torch's reader takes one of two equal names, and counts from the file's begin
        begin = min((entry.header_offset for entry in entries.values()), default=0)
        if len(entries) != len(archive.infolist()) or begin or archive.comment:
            raise ValueError("its entries are not as torch.save writes them")
        for entry in entries.values():
            if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
                raise ValueError(f"its entry {entry.filename} is compressed, which torch.save does not do")
        if sum(entry.file_size for entry in entries.values()) > path.stat().st_size:
            raise ValueError("its entries overlap, which those of torch.save do not")
        folder = next(iter(entries), "").partition("/")[0]
        described = entries.get(f"{folder}/data.pkl")
        if described is None:
            return  # numpy's, or none that torch takes
        if described.file_size > LARGEST_PICKLE:
            raise ValueError(f"its entry {described.filename} has {described.file_size:,} bytes")
        claimed: StorageBytes = {}
        look_through(io.BytesIO(archive.read(described)), stand_ins, claimed)
    for key, claims in claimed.items():
        held = entries.get(f"{folder}/data/{key}")
        if held is None or held.file_size < claims:
            raise ValueError(f"its tensors claim {claims:,} bytes of data/{key[:40]}, which has fewer")
