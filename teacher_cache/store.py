"""The cache on disk: one Zarr v3 group, laid out, created, opened, committed by parts and verified.

Layout (docs/format.md): arrays whose first axis is the sample row, sharded by part; one group a vocabulary;
`samples.parquet`; `parts/NNNNNN.json`, written last. A part without its JSON does not exist.
"""

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from teacher_cache.encodings import ArraySpec, encoding_of
from teacher_cache.errors import CacheBusyError, CacheDamagedError, CacheMismatchError, UsageError
from teacher_cache.images import SampleTable
from teacher_cache.vocabulary import Vocabulary

FORMAT = "rpp-cache"
FORMAT_VERSION = 1
SAMPLES = "samples.parquet"
PARTS = "parts"
CHUNK_ROWS = 1024  # rows a read touches at least; a part is one shard of such chunks

# Arrays beside those of the encoding: one value a sample, and one box a view.
SAMPLE_ARRAYS = {"valid": ArraySpec((), "bool", False), "labels": ArraySpec((), "int32", -1)}
CROPS = {"crops": ArraySpec((("box", 5),), "uint16")}


def part_rows(asked: int, samples: int) -> int:
    """Rows a part: what was asked for or all samples, and above `CHUNK_ROWS` the next multiple of it,
    because a part is a shard of whole chunks."""
    rows = min(asked, samples)
    return rows if rows <= CHUNK_ROWS else -(-rows // CHUNK_ROWS) * CHUNK_ROWS


@dataclass(frozen=True)
class CacheHeader:
    """What a cache is of. Two builds may share a cache only if all but `images`, `software` and
    `passes` are equal."""

    samples: int
    part_size: int
    embedding: int
    classes: int
    encoding: dict[str, Any]
    teacher: dict[str, Any]
    view_policy: dict[str, Any]
    vocabulary: str
    vocabulary_digest: str
    sample_table_digest: str
    images: str
    software: str
    passes: list[int]

    @property
    def views(self) -> int:
        """Views a sample."""
        return int(self.view_policy["views"])

    @property
    def parts_per_pass(self) -> int:
        """Parts that hold all rows once, the last one possibly shorter."""
        return -(-self.samples // self.part_size)

    @property
    def parts(self) -> int:
        """Number of parts. Part p of pass g has the number g · parts_per_pass + p."""
        return len(self.passes) * self.parts_per_pass

    def rows(self, part: int) -> slice:
        """Rows of a part."""
        first = part % self.parts_per_pass * self.part_size
        return slice(first, min(first + self.part_size, self.samples))

    def views_of(self, part: int) -> range:
        """Views of a part: those of its pass. `passes` holds the number of views after each pass."""
        number = part // self.parts_per_pass
        return range(self.passes[number - 1] if number else 0, self.passes[number])

    @property
    def per_view(self) -> dict[str, ArraySpec]:
        """Arrays [N, V, ...]: those of the encoding, and crops."""
        return encoding_of(self.encoding).arrays(self.embedding, self.classes) | CROPS

    def arrays_of(self, part: int) -> set[str]:
        """Arrays that a part writes; what is one value a sample is written by the first pass."""
        return {*self.per_view, *(SAMPLE_ARRAYS if part < self.parts_per_pass else ())}

    def require_equal(self, asked: "CacheHeader", path: Path) -> None:
        """Refuse to mix two builds.

        Raises:
            CacheMismatchError: naming what differs, as stored and as asked for.
        """
        differences = []
        for name, stored in asdict(self).items():
            wanted = asdict(asked)[name]
            if name in ("images", "software", "passes") or stored == wanted:
                continue
            if isinstance(stored, dict):
                keys = [key for key in {**stored, **wanted} if stored.get(key) != wanted.get(key)]
                # a moved model folder with the same weights is the same teacher
                if name == "teacher" and set(keys) <= {"model", "pretrained"}:
                    continue
                differences += [f"{name}.{k}: {stored.get(k)} there, {wanted.get(k)} asked" for k in keys]
            else:
                differences.append(f"{name}: {stored} there, {wanted} asked")
        if differences:
            raise CacheMismatchError(
                f"the cache {path} was begun otherwise ({'; '.join(differences)}); ask for the same or "
                "choose another --out"
            )


@dataclass(frozen=True)
class PartRecord:
    """What is written when a part is complete."""

    part: int
    rows: tuple[int, int]
    checksums: dict[str, str]
    seconds: dict[str, float]
    skipped: list[dict[str, Any]]


def vocabulary_digest(vocabulary: Vocabulary) -> str:
    """Digest of names, ids and templates."""
    record = json.dumps(vocabulary.to_json(), ensure_ascii=False)
    return f"blake2b:{hashlib.blake2b(record.encode(), digest_size=16).hexdigest()}"


def checksum(array: NDArray[Any]) -> str:
    """Checksum of an array's decoded bytes in row-major order."""
    content = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return f"blake2b:{hashlib.blake2b(content.data, digest_size=16).hexdigest()}"


def _write_json(path: Path, record: dict[str, Any]) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(record, indent=1), encoding="utf-8")
    os.replace(temporary, path)


class CacheStore:
    """An open cache: its header, arrays and part records."""

    def __init__(self, path: Path, group: zarr.Group, header: CacheHeader) -> None:
        self.path = path
        self.group = group
        self.header = header

    @classmethod
    def create(
        cls,
        path: Path,
        header: CacheHeader,
        samples: SampleTable,
        vocabulary: Vocabulary,
        class_features: NDArray[np.float32],
    ) -> "CacheStore":
        """Lay out a new cache: all but the parts. It appears under `path` complete or not at all."""
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise UsageError(f"{path} exists and is no cache; choose another --out")
        temporary = path.with_name(f".{path.name}.new-{os.getpid()}")
        try:
            temporary.mkdir(parents=True)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise UsageError(f"cannot write {path}: {error.strerror}") from error
        try:
            group = zarr.create_group(temporary, zarr_format=3, attributes=_attributes(header))
            for name, spec in SAMPLE_ARRAYS.items():
                _create_array(group, name, spec, header, ())
            for name, spec in header.per_view.items():
                _create_array(group, name, spec, header, (("view", header.views),))
            store = cls(temporary, group, header)
            store.add_vocabulary(header.vocabulary, vocabulary, class_features)
            samples.write(temporary / SAMPLES)
            (temporary / PARTS).mkdir()
            if path.exists():
                path.rmdir()
            os.rename(temporary, path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        return cls.open(path, writable=True)

    @classmethod
    def open(cls, path: Path, writable: bool = False) -> "CacheStore":
        """Open a cache.

        Raises:
            UsageError: no cache there, or one of a newer format.
        """
        if not (path / "zarr.json").is_file():
            raise UsageError(f"no cache at {path}")
        try:
            group = zarr.open_group(path, mode="r+" if writable else "r", zarr_format=3)
            attributes: dict[str, Any] = dict(group.attrs)
        except (ValueError, KeyError, TypeError) as error:
            raise CacheDamagedError(f"{path}/zarr.json is not readable: {error}") from error
        if attributes.get("format") != FORMAT:
            raise UsageError(f"{path} is a Zarr group, but not written by rpp-cache")
        version = attributes["format_version"]
        if version != FORMAT_VERSION:
            raise UsageError(
                f"{path} has cache format {version}; this version of rpp reads {FORMAT_VERSION}: "
                "use a version of rpp that knows it"
            )
        header = CacheHeader(**{name: attributes[name] for name in CacheHeader.__dataclass_fields__})
        return cls(path, group, header)

    def array(self, name: str) -> zarr.Array[Any]:
        """One of the stored arrays, by its path in the group.

        Raises:
            CacheDamagedError: it is not there.
        """
        try:
            found = self.group[name]
        except KeyError as error:
            raise CacheDamagedError(f"the array '{name}' is missing in {self.path}") from error
        if not isinstance(found, zarr.Array):
            raise CacheDamagedError(f"'{name}' in {self.path} is no array")
        return found

    @cached_property
    def samples(self) -> SampleTable:
        """The sample table, in row order.

        Raises:
            CacheDamagedError: it is missing or not readable.
        """
        try:
            return SampleTable.read(self.path / SAMPLES)
        except (OSError, ValueError) as error:
            raise CacheDamagedError(f"{self.path / SAMPLES} is not readable: {error}") from error

    def locate_images(self, samples: SampleTable, images: str) -> None:
        """Record where the images lie now, if they moved since the cache was begun or its table is damaged.

        Args:
            samples: the same samples as the cache's, by their digest.
            images: the source that they were found in.
        """
        with suppress(CacheDamagedError):
            if samples.table.equals(self.samples.table):
                return
        self.group.attrs["images"] = images
        samples.write(self.path / SAMPLES)  # last: while it differs, the next build comes here again
        self.samples = samples

    # Vocabularies

    def add_vocabulary(self, name: str, vocabulary: Vocabulary, features_CD: NDArray[np.float32]) -> None:
        """Write a vocabulary with its unit class features."""
        group = self.group.create_group(
            f"vocabularies/{name}",
            attributes={**vocabulary.to_json(), "checksum": checksum(features_CD)},
        )
        array = group.create_array(
            "class_features",
            shape=features_CD.shape,
            dtype="float32",
            chunks=features_CD.shape,
            compressors=None,
            dimension_names=("class", "feature"),
        )
        array[:] = features_CD

    def vocabulary_names(self) -> list[str]:
        """Names of the vocabularies in this cache, the default one first.

        Raises:
            CacheDamagedError: there is none.
        """
        folder = self.path / "vocabularies"
        if not (folder / self.header.vocabulary / "zarr.json").is_file():
            raise CacheDamagedError(f"the vocabulary '{self.header.vocabulary}' is missing in {self.path}")
        others = sorted(path.name for path in folder.iterdir() if (path / "zarr.json").is_file())
        return [self.header.vocabulary, *(name for name in others if name != self.header.vocabulary)]

    def vocabulary(self, name: str | None = None) -> Vocabulary:
        """A vocabulary of this cache; the default one without a name.

        Raises:
            UsageError: no vocabulary of that name.
        """
        name = name or self.header.vocabulary
        if name not in self.vocabulary_names():
            known = ", ".join(self.vocabulary_names())
            raise UsageError(f"the cache {self.path} has no vocabulary '{name}', only {known}")
        return Vocabulary.from_json(dict(self.group[f"vocabularies/{name}"].attrs))

    def class_features(self, name: str | None = None) -> NDArray[np.float32]:
        """Unit class features of a vocabulary, [C, D] float32."""
        return np.asarray(self.array(f"vocabularies/{name or self.header.vocabulary}/class_features")[:])

    # Parts

    def _record_path(self, part: int) -> Path:
        return self.path / PARTS / f"{part:06d}.json"

    def committed(self) -> list[int]:
        """Parts that are complete, ascending."""
        return sorted(int(path.stem) for path in (self.path / PARTS).glob("[0-9]*.json"))

    def missing(self) -> list[int]:
        """Parts that are still to be computed, ascending."""
        return sorted(set(range(self.header.parts)) - set(self.committed()))

    def record(self, part: int) -> PartRecord:
        """The record of a committed part."""
        try:
            record = json.loads(self._record_path(part).read_text(encoding="utf-8"))
            return PartRecord(**{**record, "rows": tuple(record["rows"])})
        except (ValueError, TypeError, KeyError) as error:
            raise CacheDamagedError(f"{self._record_path(part)} is not readable: {error}") from error

    def commit(
        self,
        part: int,
        arrays: dict[str, NDArray[Any]],
        seconds: dict[str, float],
        skipped: list[dict[str, Any]],
    ) -> PartRecord:
        """Write a part's arrays, then its record: the moment at which the part exists."""
        rows = self.header.rows(part)
        started = time.monotonic()
        for name, values in arrays.items():
            self._erase_shards(name, part)
            self.array(name)[self._region(name, part)] = values
        seconds = {**seconds, "write": time.monotonic() - started}
        record = PartRecord(
            part=part,
            rows=(rows.start, rows.stop),
            checksums={name: checksum(values) for name, values in arrays.items()},
            seconds={name: round(value, 3) for name, value in seconds.items()},
            skipped=skipped,
        )
        _write_json(self._record_path(part), asdict(record))
        return record

    def _region(self, name: str, part: int) -> tuple[slice, ...]:
        """Where a part's values stand in an array."""
        rows, views = self.header.rows(part), self.header.views_of(part)
        return (rows,) if name in SAMPLE_ARRAYS else (rows, slice(views.start, views.stop))

    def _erase_shards(self, name: str, part: int) -> None:
        """Remove what an earlier attempt left of a part: zarr reads a shard that it does not fill, and
        cannot read a cut one."""
        shard = self.path / name / "c" / str(part % self.header.parts_per_pass)
        if name in SAMPLE_ARRAYS:
            shard.unlink(missing_ok=True)
        else:
            for view in self.header.views_of(part):
                shutil.rmtree(shard / str(view), ignore_errors=True)

    def part_is_sound(self, part: int) -> bool:
        """Whether the stored arrays of a committed part are those that were written."""
        try:
            record = self.record(part)
            if slice(*record.rows) != self.header.rows(part):
                return False
            if set(record.checksums) != self.header.arrays_of(part):
                return False
            return all(
                checksum(np.asarray(self.array(name)[self._region(name, part)])) == expected
                for name, expected in record.checksums.items()
            )
        # A shard that was cut or overwritten fails in the codec in as many ways as there are codecs.
        except (CacheDamagedError, ValueError, RuntimeError, OSError, KeyError, IndexError, TypeError):
            return False

    def withdraw(self, part: int) -> None:
        """Take back a part's record; the next build computes the part again."""
        path = self._record_path(part)
        os.replace(path, path.with_suffix(".damaged"))

    def damaged_tables(self) -> list[str]:
        """Which of the things that belong to no part (class features, sample table) are damaged."""
        damaged = []
        for name in self.vocabulary_names():
            expected = self.group[f"vocabularies/{name}"].attrs["checksum"]
            if checksum(self.class_features(name)) != expected:
                damaged.append(f"vocabularies/{name}/class_features")
        try:
            sound = self.samples.digest == self.header.sample_table_digest
        except (CacheDamagedError, KeyError):
            sound = False
        return damaged if sound else [*damaged, SAMPLES]

    def bytes_per_view(self) -> float:
        """Bytes on disk of all that grows with the number of samples, per committed view."""
        header = self.header
        spans = [(header.rows(part), len(header.views_of(part))) for part in self.committed()]
        views = sum((rows.stop - rows.start) * views for rows, views in spans)
        arrays = [*header.per_view, *SAMPLE_ARRAYS]
        folders = [self.path / name / "c" for name in arrays] + [self.path / PARTS]
        files = [Path(top, name) for folder in folders for top, _, names in os.walk(folder) for name in names]
        share = views / (header.samples * header.views)
        size: float = sum(file.stat().st_size for file in files)
        if (self.path / SAMPLES).exists():  # `verify` is who says that it is gone
            size += (self.path / SAMPLES).stat().st_size * share
        return size / views if views else 0.0

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the cache for one build; the lock dies with the process.

        Raises:
            CacheBusyError: another build holds it.
        """
        with open(self.path / "build.lock", "w", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise CacheBusyError(
                    f"another build is writing {self.path}; wait for it or stop it"
                ) from error
            yield


def _create_array(
    group: zarr.Group, name: str, spec: ArraySpec, header: CacheHeader, view: tuple[tuple[str, int], ...]
) -> None:
    # Views are shards of their own, so that more of them can be added later.
    inner = (*(1 for _ in view), *(size for _, size in spec.axes))
    axes = (*view, *spec.axes)
    group.create_array(
        name,
        shape=(header.samples, *(size for _, size in axes)),
        dtype=spec.dtype,
        shards=(header.part_size, *inner),
        chunks=(min(CHUNK_ROWS, header.part_size), *inner),
        compressors=None,  # float16 features compress by 8% and read 4 times slower
        fill_value=spec.fill,
        dimension_names=("sample", *(axis for axis, _ in axes)),
    )


def _attributes(header: CacheHeader) -> dict[str, Any]:
    return {"format": FORMAT, "format_version": FORMAT_VERSION, **asdict(header)}
