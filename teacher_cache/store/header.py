"""What a cache is of, and how its rows and views are cut into parts."""

from dataclasses import asdict, dataclass, replace
from typing import Any

from teacher_cache.encodings import ArraySpec, encoding_of
from teacher_cache.errors import CacheMismatchError

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
