"""What a cache is of, and how its rows and views are cut into parts."""

import sys
from bisect import bisect_right
from dataclasses import asdict, dataclass, replace
from pathlib import PurePosixPath
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from teacher_cache.command_settings import ViewPolicy
from teacher_cache.encodings import ArraySpec, encoding_of
from teacher_cache.errors import CacheMismatchError
from teacher_cache.files.json_text import typed_record
from teacher_cache.images.decode import MAX_PIXELS, MOST_PIXELS
from teacher_cache.settings import validated

CHUNK_ROWS = 1024  # rows a read touches at least; a part is one shard of such chunks

# Arrays beside those of the encoding: one value a sample, and one box a view.
SAMPLE_ARRAYS = {"valid": ArraySpec((), "bool", False), "labels": ArraySpec((), "int32", -1)}
# What no cache reaches: of a header that says more, memory would be asked for until none is left.
MOST_SAMPLES, MOST_PARTS = 1 << 31, 1 << 22
MOST_CLASSES, WIDEST_EMBEDDING = 1 << 22, 1 << 16
LONGEST_NAME = 255  # bytes of a folder's name
CROPS = {"crops": ArraySpec((("box", 5),), "uint16")}


def part_rows(asked: int, samples: int) -> int:
    """Rows a part: what was asked for or all samples, and above `CHUNK_ROWS` the next multiple of it,
    because a part is a shard of whole chunks."""
    rows = min(asked, samples)
    return rows if rows <= CHUNK_ROWS else -(-rows // CHUNK_ROWS) * CHUNK_ROWS


def require_name(vocabulary: Any) -> None:
    """Refuse a vocabulary's name that is not one of a folder.

    Raises:
        ValueError: it leads elsewhere, or no folder can have it.
    """
    name = vocabulary if isinstance(vocabulary, str) else ""
    if PurePosixPath(name).name != name or name in ("", "..") or len(name.encode()) > LONGEST_NAME:
        raise ValueError("its vocabulary has a name that leads elsewhere, or none")


@dataclass(frozen=True)
class CacheHeader:
    """What a cache is of. Two builds may share a cache only if all but `images`, `software` and
    `passes` are equal."""

    samples: Annotated[int, Field(ge=1, le=MOST_SAMPLES)]
    part_size: Annotated[int, Field(ge=1, le=MOST_SAMPLES)]
    embedding: Annotated[int, Field(ge=1, le=WIDEST_EMBEDDING)]
    classes: Annotated[int, Field(ge=1, le=MOST_CLASSES)]
    encoding: dict[str, Any]
    teacher: dict[str, Any]
    view_policy: dict[str, Any]
    vocabulary: str
    vocabulary_digest: str
    sample_table_digest: str
    images: str
    software: str
    passes: list[int]
    max_pixels: Annotated[int, Field(ge=1, le=MOST_PIXELS)] = MAX_PIXELS

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> "CacheHeader":
        """From what is stored, which anyone may have written; without `max_pixels` as it was before this
        could be chosen.

        Raises:
            ValueError: it describes no cache.
            UsageError: an encoding or view policy that this version does not know.
        """
        fields = {name: record[name] for name in cls.__dataclass_fields__ if name in record}
        header = typed_record(cls, fields)
        policy, teacher = validated(ViewPolicy, header.view_policy), header.teacher
        if header.passes != sorted(set(header.passes)) or [0, policy.views] != [0, *header.passes[-1:]]:
            raise ValueError("its passes do not lead to its views")
        if header.view_policy.get("views") != policy.views:
            raise ValueError("its view policy has no views")
        if header.passes[0] < 1:
            raise ValueError("its first pass has no view")
        if header.parts > MOST_PARTS:
            raise ValueError(f"{header.parts:,} parts are more than a cache has")
        require_name(header.vocabulary)
        kinds = {"model": str, "weights_digest": str, "pretrained": str | None, "logit_scale": int | float}
        if wrong := [name for name, kind in kinds.items() if not isinstance(teacher.get(name), kind)]:
            raise ValueError(f"its teacher has no {wrong[0]}")
        scale = teacher["logit_scale"]
        if isinstance(scale, bool) or not 0 < scale <= sys.float_info.max:
            raise ValueError(f"its teacher's logit scale is {str(scale)[:40]}, not a number above zero")
        encoding_of(header.encoding).require_classes(header.classes)
        return header

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

    def part_of(self, rows: NDArray[np.int64], view: int) -> NDArray[np.int64]:
        """The part of each row in a view."""
        return bisect_right(self.passes, view) * self.parts_per_pass + rows // self.part_size

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

    def extended(self, views: int) -> "CacheHeader":
        """The header with one more pass, which brings the number of views to `views`."""
        policy = {**self.view_policy, "views": views}
        return replace(self, view_policy=policy, passes=[*self.passes, views])

    def require_equal(self, asked: "CacheHeader", path: str) -> None:
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
            more = asked.views > self.views
            raise CacheMismatchError(
                f"the cache {path} was begun otherwise ({'; '.join(differences)}); ask for the same or "
                f"choose another --out{' (rpp-cache extend adds views to a finished cache)' if more else ''}"
            )
