"""The header of a cache: what it was created from, and how its rows and views are divided into parts."""

from bisect import bisect_right
from dataclasses import asdict, dataclass, replace
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from teacher_cache.command_settings import Pixels, ViewPolicy
from teacher_cache.encodings import ArraySpec, encoding_of
from teacher_cache.errors import CacheMismatchError, UsageError
from teacher_cache.files.json_text import typed_record
from teacher_cache.images.decode import MAX_PIXELS, MOST_PIXELS
from teacher_cache.settings import validated

CHUNK_ROWS = 1024  # the fewest rows that are read together; a part is one shard of such chunks

# Arrays beside those of the encoding: one value a sample, and one box a view.
SAMPLE_ARRAYS = {"valid": ArraySpec((), "bool", False), "labels": ArraySpec((), "int32", -1)}
CROPS = {"crops": ArraySpec((("box", 5),), "uint16")}
# Upper bounds: a forged header must not make a reader allocate without limit.
MOST_SAMPLES, MOST_PARTS = 1 << 31, 1 << 22
MOST_CLASSES, WIDEST_EMBEDDING = 1 << 22, 1 << 16
MOST_VIEWS = 1024
LONGEST_NAME = 255  # bytes of a folder's name
JpegDecoder = Literal["pillow", "nvjpeg"]
# Fields that may differ between two builds of one cache.
NOT_COMPARED = ("images", "software", "passes", "decoder_difference")


class TeacherRecord(BaseModel):
    """What a header records about the teacher. `Teacher.describe` adds more fields.

    A field that `describe` starts to record is declared here with the default that holds for older caches.
    """

    model_config = ConfigDict(extra="allow", protected_namespaces=())

    model: str
    pretrained: str | None
    weights_digest: str
    logit_scale: float = Field(gt=0, allow_inf_nan=False)
    logit_bias: float | None = Field(default=None, allow_inf_nan=False)
    conventions_from: str | None = None


def part_rows(requested: int, samples: int) -> int:
    """Return the rows a part: `requested`, at most all samples; above `CHUNK_ROWS` rounded up to whole
    chunks, because a part is a shard."""
    rows = min(requested, samples)
    return rows if rows <= CHUNK_ROWS else -(-rows // CHUNK_ROWS) * CHUNK_ROWS


@dataclass(frozen=True)
class CacheHeader:
    """What a cache was created from. Builds of one cache agree in all fields but `NOT_COMPARED`.

    A field added later needs a default: caches that were created before are read with it.

    Attributes:
        decoder: what decodes JPEG images.
        decoder_difference: of another decoder than Pillow, cosines of the teacher's features of some
            images with those of Pillow's pixels: `images`, `cosine_min` and `cosine_mean`.
    """

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
    decoder: JpegDecoder = "pillow"
    decoder_difference: dict[str, float] | None = None
    pixels: str = "none"  # codec of the views that the teacher saw

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> "CacheHeader":
        """Create a header from stored JSON, which may be forged. Missing options get their defaults.

        Raises:
            ValueError: it does not describe a cache.
            UsageError: an encoding, or an option of it or of the views, that this version does not know.
        """
        fields = {name: record[name] for name in cls.__dataclass_fields__ if name in record}
        header = typed_record(cls, fields)
        policy = validated(ViewPolicy, header.view_policy)
        encoding = encoding_of(header.encoding)
        try:
            teacher = typed_record(TeacherRecord, header.teacher)
        except ValueError as error:
            raise ValueError(f"teacher.{error}") from error
        if header.pixels not in get_args(Pixels):
            raise UsageError(
                f"unknown codec of rendered views '{header.pixels}'; known: {', '.join(get_args(Pixels))}"
            )
        if "views" not in header.view_policy:
            raise ValueError("view_policy.views: Field required")
        if header.passes != sorted(set(header.passes)) or [0, policy.views] != [0, *header.passes[-1:]]:
            raise ValueError(f"passes: {header.passes[:8]} do not ascend to {policy.views} views")
        if header.passes[0] < 1:
            raise ValueError("passes: the first pass has no view")
        if header.parts > MOST_PARTS:
            raise ValueError(f"{header.parts:,} parts; a cache has at most {MOST_PARTS:,}")
        _require_folder_name(header.vocabulary)
        encoding.require_classes(header.classes)
        return replace(
            header,
            encoding={**header.encoding, **encoding.record},
            view_policy={**header.view_policy, **policy.model_dump()},
            teacher={**header.teacher, **teacher.model_dump()},
        )

    @property
    def views(self) -> int:
        """Views a sample."""
        return int(self.view_policy["views"])

    @property
    def parts_per_pass(self) -> int:
        """Number of parts that cover all rows once; the last one may be shorter."""
        return -(-self.samples // self.part_size)

    @property
    def parts(self) -> int:
        """Number of parts. Part p of pass g has the number g · parts_per_pass + p."""
        return len(self.passes) * self.parts_per_pass

    def part_of(self, rows: NDArray[np.int64], view: int) -> NDArray[np.int64]:
        """Return the part of each row in a view."""
        return bisect_right(self.passes, view) * self.parts_per_pass + rows // self.part_size

    def rows(self, part: int) -> slice:
        """Return the rows of a part."""
        first = part % self.parts_per_pass * self.part_size
        return slice(first, min(first + self.part_size, self.samples))

    def views_of(self, part: int) -> range:
        """Return the views of a part: those of its pass. `passes` has the number of views after each pass."""
        number = part // self.parts_per_pass
        return range(self.passes[number - 1] if number else 0, self.passes[number])

    @property
    def per_view(self) -> dict[str, ArraySpec]:
        """Arrays [N, V, ...]: those of the encoding, and crops."""
        return encoding_of(self.encoding).arrays(self.embedding, self.classes) | CROPS

    def arrays_of(self, part: int) -> set[str]:
        """Return the arrays that a part writes; the first pass also writes those with one value a sample."""
        return {*self.per_view, *(SAMPLE_ARRAYS if part < self.parts_per_pass else ())}

    def extended(self, views: int) -> "CacheHeader":
        """Return the header with one more pass, up to `views` views."""
        policy = {**self.view_policy, "views": views}
        return replace(self, view_policy=policy, passes=[*self.passes, views])

    def require_equal(self, requested: "CacheHeader", path: str) -> None:
        """Refuse to mix the parts of two different builds in one cache.

        Raises:
            CacheMismatchError: with the stored and the requested value of each difference.
        """
        differences = []
        for name, stored in asdict(self).items():
            wanted = asdict(requested)[name]
            if name in NOT_COMPARED or stored == wanted:
                continue
            if isinstance(stored, dict):
                keys = [key for key in {**stored, **wanted} if stored.get(key) != wanted.get(key)]
                # a moved model folder with the same weights is the same teacher; earlier caches have no bias
                if name == "teacher" and set(keys) <= {
                    "model",
                    "pretrained",
                    "conventions_from",
                    "logit_bias",
                }:
                    continue
                differences += [(f"{name}.{key}", stored.get(key), wanted.get(key)) for key in keys]
            else:
                differences.append((name, stored, wanted))
        if differences:
            values = "; ".join(f"{name}: stored {old}, requested {new}" for name, old, new in differences)
            hint = (
                " (rpp-cache extend adds views to a finished cache)" if requested.views > self.views else ""
            )
            if self.pixels == "none" != requested.pixels:
                hint += " (rpp-cache render stores the views of a cache that was built without)"
            raise CacheMismatchError(
                f"the cache {path} was created with different settings ({values}); use the stored settings "
                f"or choose another --out{hint}"
            )


def _require_folder_name(vocabulary: str) -> None:
    """Raise ValueError if the vocabulary's name is a path, empty, or too long for a folder."""
    invalid = PurePosixPath(vocabulary).name != vocabulary or vocabulary in ("", "..")
    if invalid or len(vocabulary.encode(errors="surrogatepass")) > LONGEST_NAME:
        raise ValueError("vocabulary: not a folder name")
