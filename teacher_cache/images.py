"""Image sources -> one table of samples; the bytes and the pixels of a sample by row.

A source is read once, headers only, into rows of (key, path, offset, length, label). After that every image
is read by offset, in whatever order. What part of an image a model sees is decided in `views.py`.
"""

import hashlib
import io
import itertools
import json
import os
import re
import tarfile
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from teacher_cache.errors import RppError, UsageError
from teacher_cache.vocabulary import Vocabulary

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm"}
LABEL_KEYS = ("label", "cls", "class_id", "class", "synset", "wnid", "class_name")
SYNSET = re.compile(r"(?<![a-z0-9])n\d{8}(?!\d)")
MAX_OPEN_FILES = 64

# `label` is what the source says: a class index (WebDataset's .cls) or a name or id (a folder, a synset).
_INDEX_SCHEMA = pa.schema(
    [
        ("key", pa.large_string()),
        ("path", pa.dictionary(pa.int32(), pa.string())),
        ("offset", pa.int64()),
        ("length", pa.int64()),
        ("label_index", pa.int32()),
        ("label_name", pa.string()),
    ]
)


class UnreadableImageError(Exception):
    """One image could not be read; the message is the reason that the cache records."""


@dataclass(frozen=True)
class SampleTable:
    """All samples in row order: columns key, path, offset, length, label (int32, -1 = no hard label)."""

    table: pa.Table

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @cached_property
    def labels(self) -> NDArray[np.int32]:
        """Hard labels, [N] int32."""
        return np.asarray(self.table["label"].to_numpy(), dtype=np.int32)

    @cached_property
    def digest(self) -> str:
        """Digest of keys, lengths and labels. Paths are left out: images may move."""
        digest = hashlib.blake2b(digest_size=16)
        keys = self.table["key"]
        digest.update(np.asarray(pc.binary_length(keys).to_numpy(), dtype=np.int64).tobytes())
        for chunk in keys.chunks:
            digest.update("".join(chunk.to_pylist()).encode())
        digest.update(np.asarray(self.table["length"].to_numpy(), dtype=np.int64).tobytes())
        digest.update(self.labels.tobytes())
        return f"blake2b:{digest.hexdigest()}"

    def keys(self, rows: slice | NDArray[np.int64]) -> list[str]:
        """Keys of the given rows."""
        return list(self._take(rows)["key"].to_pylist())

    def _take(self, rows: slice | NDArray[np.int64]) -> pa.Table:
        if isinstance(rows, slice):
            start, stop, _ = rows.indices(len(self))
            return self.table.slice(start, stop - start)
        return self.table.take(pa.array(rows))

    def locations(self, rows: slice | NDArray[np.int64]) -> list[tuple[str, int, int]]:
        """(path, byte offset, byte length) of the given rows."""
        part = self._take(rows)
        columns = (part[name].to_pylist() for name in ("path", "offset", "length"))
        return list(zip(*columns, strict=True))

    def write(self, path: Path) -> None:
        """Write as Parquet, complete or not at all."""
        temporary = path.with_suffix(".tmp")
        pq.write_table(self.table, temporary, row_group_size=1 << 17, compression="zstd")
        os.replace(temporary, path)

    @classmethod
    def read(cls, path: Path) -> "SampleTable":
        """Read what `write` wrote."""
        return cls(pq.read_table(path, read_dictionary=["path"]))

    @classmethod
    def read_rows(cls, path: Path, rows: slice) -> "SampleTable":
        """Read some rows of what `write` wrote: of the file only the row groups that hold them."""
        with pq.ParquetFile(path, read_dictionary=["path"]) as file:
            sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
            ends = np.cumsum([0, *sizes])
            first = int(np.searchsorted(ends, rows.start, side="right")) - 1
            last = int(np.searchsorted(ends, rows.stop, side="left"))
            table = file.read_row_groups(range(first, last))
        return cls(table.slice(rows.start - ends[first], rows.stop - rows.start))


def expand_source(source: str) -> list[Path]:
    """Files or the folder that a source names.

    Braces (`{000..127}`, `{a,b}`) and globs (`*`, `?`, `[...]`) are expanded, each in sorted order; a folder
    that holds tar files stands for them, any other folder is an image folder.

    Raises:
        UsageError: nothing there.
    """
    found: list[Path] = []
    for pattern in _expand_braces(str(Path(source).expanduser()) if source else ""):
        if any(sign in pattern for sign in "*?["):
            base = Path(pattern[: min(pattern.index(s) for s in "*?[" if s in pattern)]).parent
            matches = sorted(base.glob(str(Path(pattern).relative_to(base))))
        else:
            matches = [Path(pattern)]
            if not matches[0].exists():
                raise UsageError(f"image source '{source}': {pattern} does not exist")
        found.extend(matches)
    folders = [path for path in found if path.is_dir()]
    if len(found) == 1 and folders:
        return sorted(folders[0].glob("*.tar")) or folders
    if not found or folders:
        raise UsageError(f"image source '{source}' names no tar shards and no single image folder")
    return found


def _expand_braces(pattern: str) -> list[str]:
    match = re.search(r"\{([^{}]*)\}", pattern)
    if not match:
        return [pattern]
    numbers = re.fullmatch(r"(\d+)\.\.(\d+)", match[1])
    if numbers:
        first, last = numbers.groups()
        width = len(first) if first.startswith("0") or len(first) == len(last) else 0
        options = [str(number).zfill(width) for number in range(int(first), int(last) + 1)]
    else:
        options = match[1].split(",")
    expanded = (_expand_braces(pattern[: match.start()] + o + pattern[match.end() :]) for o in options)
    return list(itertools.chain.from_iterable(expanded))


def index_images(source: str, vocabulary: Vocabulary) -> tuple[SampleTable, list[str]]:
    """Read a source's headers into a sample table, in the source's order.

    Returns:
        The table, and notes for the user (a truncated shard, labels outside the vocabulary, ...).

    Raises:
        UsageError: no image found, a shard that is no tar, or labels that do not fit the vocabulary.
    """
    paths = expand_source(source)
    notes: list[str] = []
    if paths[0].is_dir():
        raw = _index_folder(paths[0].resolve())
    else:
        # tarfile holds the GIL for little of its time: it waits for the disk.
        with ThreadPoolExecutor(max_workers=min(8, len(paths))) as pool:
            indexed = list(pool.map(_index_tar, [path.resolve() for path in paths]))
        raw = pa.concat_tables(
            [table for table, _ in indexed], promote_options="permissive"
        ).unify_dictionaries()
        notes += [note for _, of_shard in indexed for note in of_shard]
    if raw.num_rows == 0:
        raise UsageError(f"image source '{source}' holds no image ({', '.join(sorted(IMAGE_SUFFIXES))})")
    labels, label_notes = _resolve_labels(raw, vocabulary, source)
    columns = {name: raw[name] for name in ("key", "path", "offset", "length")}
    return SampleTable(pa.table({**columns, "label": pa.array(labels, pa.int32())})), notes + label_notes


def _index_folder(root: Path) -> pa.Table:
    columns: dict[str, list[Any]] = {name: [] for name in _INDEX_SCHEMA.names}
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
    return pa.table(columns, schema=_INDEX_SCHEMA)


def _utf8(path: str) -> str:
    try:
        path.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"the file name {path!r} is not UTF-8, as the sample table is; rename it") from error
    return path


def _index_tar(path: Path) -> tuple[pa.Table, list[str]]:
    columns: dict[str, list[Any]] = {name: [] for name in _INDEX_SCHEMA.names}
    notes: list[str] = []
    for sample in _tar_samples(path):
        if isinstance(sample, str):
            notes.append(sample)
            continue
        for column, value in zip(columns.values(), sample, strict=True):
            column.append(value)
    return pa.table(columns, schema=_INDEX_SCHEMA), notes


def _tar_samples(path: Path) -> Iterator[tuple[Any, ...] | str]:
    """Rows of `_INDEX_SCHEMA`, members that share a stem (WebDataset) being one sample; notes at last."""
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
                index, name = _read_label(content.read() if content else b"", suffix, f"{path}:{member.name}")
    if note:
        yield note
    if more_images:
        yield f"{path}: {more_images} images share a sample's name; the first of each name is taken"


def _read_label(content: bytes, suffix: str, where: str) -> tuple[int | None, str | None]:
    try:
        text: Any = content.decode().strip()
        if suffix == ".json":
            record = json.loads(text)
            text = next((record[key] for key in LABEL_KEYS if key in record), None)
    except (UnicodeDecodeError, json.JSONDecodeError, TypeError) as error:
        raise UsageError(f"{where}: label is not readable ({error})") from error
    if text is None or text == "":
        return None, None
    if re.fullmatch(r"-?\d+", str(text)):
        if int(text) >= 1 << 31:
            raise UsageError(f"{where}: the label {text} is no class index")
        return max(int(text), -1), None
    return None, str(text)


def _resolve_labels(
    raw: pa.Table, vocabulary: Vocabulary, source: str
) -> tuple[NDArray[np.int32], list[str]]:
    """Class indices from what the source calls the classes; the rule is in docs/images.md."""
    notes: list[str] = []
    indices = raw["label_index"].fill_null(-1).to_numpy().astype(np.int32)
    if indices.max(initial=-1) >= len(vocabulary):
        raise UsageError(
            f"the labels of '{source}' go up to {indices.max()}, but the vocabulary has {len(vocabulary)} "
            f"classes (0 to {len(vocabulary) - 1}): another vocabulary is needed"
        )
    encoded = raw["label_name"].combine_chunks().dictionary_encode()
    names: list[str] = encoded.dictionary.to_pylist()
    if names:
        found = [vocabulary.index_of(name) for name in names]
        if all(index is None for index in found):
            if len(names) != len(vocabulary):
                raise UsageError(
                    f"'{source}' has {len(names)} classes ({', '.join(sorted(names)[:3])}, ...), the "
                    f"vocabulary {len(vocabulary)} ({', '.join(vocabulary.ids[:3])}, ...), and no id or "
                    "name is in both"
                )
            found = [sorted(names).index(name) for name in names]
            notes.append("class folders were matched to the vocabulary by sorted order, as torchvision does")
        unknown = [name for name, index in zip(names, found, strict=True) if index is None]
        by_code = np.array([-1 if index is None else index for index in found], dtype=np.int32)
        codes = encoded.indices.fill_null(-1).to_numpy()
        indices = np.where(codes >= 0, by_code[codes], indices)
        if unknown:
            count = int(np.isin(codes, [names.index(name) for name in unknown]).sum())
            notes.append(
                f"{count} samples of {len(unknown)} classes outside the vocabulary ({', '.join(unknown[:3])}"
                f"{', ...' if len(unknown) > 3 else ''}) have no hard label"
            )
    if (indices < 0).all():
        notes.append("no sample has a hard label")
    absent = len(vocabulary) - len(np.unique(indices[indices >= 0]))
    if absent and absent < len(vocabulary):
        notes.append(f"{absent} of {len(vocabulary)} classes have no sample")
    return indices.astype(np.int32), notes


class ImageReader:
    """Reads samples' bytes by (path, offset, length) from any number of threads, keeping files open."""

    def __init__(self) -> None:
        self._open: OrderedDict[str, io.FileIO] = OrderedDict()

    def read(self, path: str, offset: int, length: int) -> bytes:
        """Bytes of one sample.

        Raises:
            UnreadableImageError: a loose image file is gone, or the file ends too early.
            RppError: a shard is gone: that is not one image's damage.
        """
        try:
            file = self._open.get(path)
            if file is None:
                # Evicted files are closed when the last reader lets go of them.
                file = self._open.setdefault(path, io.FileIO(path))
                while len(self._open) > MAX_OPEN_FILES:
                    self._open.popitem(last=False)
            content = os.pread(file.fileno(), length, offset)
        except OSError as error:
            if path.endswith(".tar"):
                raise RppError(f"cannot read image shard {path}: {error.strerror or error}") from error
            raise UnreadableImageError(f"cannot read file: {error.strerror or error}") from error
        if len(content) != length:
            raise UnreadableImageError(f"file ends after {len(content)} of {length} bytes")
        return content


def decode_image(content: bytes) -> Image.Image:
    """Bytes -> RGB picture, as open_clip's own pipelines see it (first frame, EXIF rotation not applied).

    Raises:
        UnreadableImageError: not an image, cut off, or larger than Pillow's decompression-bomb limit.
    """
    if not content:
        raise UnreadableImageError("empty file")
    try:
        with Image.open(io.BytesIO(content)) as image:
            return image.convert("RGB")
    except UnidentifiedImageError as error:  # Pillow's own words name an address in memory
        raise UnreadableImageError("not an image, or of a format that Pillow does not read") from error
    except Exception as error:  # Pillow's decoders raise many kinds for damaged data; each costs one row
        raise UnreadableImageError(f"{type(error).__name__}: {str(error)[:200]}") from error
