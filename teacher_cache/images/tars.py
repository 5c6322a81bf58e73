"""Tar shards: WebDataset's, or one tar a synset."""

import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from teacher_cache.errors import UsageError
from teacher_cache.images.labels import SYNSET, read_label
from teacher_cache.images.sources import IMAGE_SUFFIXES
from teacher_cache.images.table import INDEX_SCHEMA


def index_tar(path: Path) -> tuple[pa.Table, list[str]]:
    columns: dict[str, list[Any]] = {name: [] for name in INDEX_SCHEMA.names}
    notes: list[str] = []
    for sample in _tar_samples(path):
        if isinstance(sample, str):
            notes.append(sample)
            continue
        for column, value in zip(columns.values(), sample, strict=True):
            column.append(value)
    return pa.table(columns, schema=INDEX_SCHEMA), notes


def _tar_samples(path: Path) -> Iterator[tuple[Any, ...] | str]:
    """Rows of `INDEX_SCHEMA`, members that share a stem (WebDataset) being one sample; notes at last."""
    size = path.stat().st_size
    try:
        tar = tarfile.open(path, "r:")  # noqa: SIM115 - closed below; r: refuses compressed tars
    except tarfile.ReadError as error:
        raise UsageError(f"{path} is no uncompressed tar shard ({error}); unpack compressed ones") from error
    with tar:
        stem, image, index, name = "", None, None, None
        members = iter(tar)
        note, more_images = None, 0
        while True:
            try:
                member = next(members, None)
            except tarfile.ReadError as error:
                member, note = (
                    None,
                    f"{path}: damaged behind byte {tar.offset} ({error}); its tail is left out",
                )
            if member is not None and (not member.isreg() or member.offset_data + member.size > size):
                if member.isreg():
                    note = f"{path}: ends within {member.name}; its tail is left out"
                continue
            head, _, file = member.name.rpartition("/") if member else ("", "", "")
            base, _, extension = file.partition(".")
            if member is None or f"{head}/{base}" != stem:
                if image is not None:
                    synset = SYNSET.search(image.name) or SYNSET.search(path.stem)
                    if index is None and name is None and synset:
                        name = synset[0]
                    key = stem.lstrip("/").encode(errors="backslashreplace").decode()
                    yield (key, str(path), image.offset_data, image.size, index, name)
                if member is None:
                    break
                stem, image, index, name = f"{head}/{base}", None, None, None
            suffix = "." + extension.rsplit(".", 1)[-1].lower()
            if suffix in IMAGE_SUFFIXES:
                more_images += image is not None
                image = image or member
            elif suffix in (".cls", ".json") and index is None and name is None:
                content = tar.extractfile(member)
                index, name = read_label(content.read() if content else b"", suffix, f"{path}:{member.name}")
    if note:
        yield note
    if more_images:
        yield f"{path}: {more_images} images share a sample's name; the first of each name is taken"
