"""Image folders: one sub-folder a class, as torchvision's `ImageFolder`."""

import os
from pathlib import Path
from typing import Any

import pyarrow as pa

from teacher_cache.errors import UsageError
from teacher_cache.images.labels import SYNSET
from teacher_cache.images.sources import IMAGE_SUFFIXES
from teacher_cache.images.table import INDEX_SCHEMA


def index_folder(root: Path) -> pa.Table:
    columns: dict[str, list[Any]] = {name: [] for name in INDEX_SCHEMA.names}
    for folder, subfolders, files in os.walk(root, followlinks=True):
        subfolders.sort()
        for name in sorted(files):
            path = Path(folder, name)
            if path.suffix.lower() not in IMAGE_SUFFIXES:
                continue
            key = path.relative_to(root).as_posix()
            folder_name, _, rest = key.partition("/")
            synset = SYNSET.search(key)
            label_name = folder_name if rest else synset[0] if synset else None
            # a link to nothing keeps its row, as every image that cannot be read
            length = path.stat().st_size if path.exists() else 0
            row = (key, _utf8(str(path)), 0, length, None, label_name)
            for column, value in zip(columns.values(), row, strict=True):
                column.append(value)
    return pa.table(columns, schema=INDEX_SCHEMA)


def _utf8(path: str) -> str:
    try:
        path.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"the file name {path!r} is not UTF-8, as the sample table is; rename it") from error
    return path
