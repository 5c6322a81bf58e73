"""Which stage sets the pace of a build, from what its parts record.

A worker has two parts at a time: it computes one and writes the other. Within a part, decoders read and
decode images while the teacher computes the batch before. What works at the same time is as fast as the
slowest of it, which is the one that is in use for most of the time:

- a teacher on a device of its own: while the device computes;
- decoders beside it: each reads an image and then decodes it, `(read + decode_elapsed) / decoders`;
- where the teacher and the decoders share cores, each slows the other down, and elapsed times do not tell
  them apart. The decoders count while the teacher has no pixels, `wait`, and the teacher for the rest;
- the cache's storage: `write`.

Words in backquotes are fields of `PartRecord.seconds` and `PartRecord.resources`.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import groupby
from operator import itemgetter

from teacher_cache.store.header import CacheHeader
from teacher_cache.store.records import PartRecord, Resources

STAGES = {"read": "reading", "decode": "decoding", "forward": "the teacher", "write": "writing"}
WAITS_LONG = 0.5  # share of the decoders' time without a core from which more decoders do not help


@dataclass(frozen=True)
class Pace:
    """The pace of parts that were computed with the same resources. All rates are those of one worker.

    Attributes:
        views_per_image: views that an image has in these parts.
        device, decoders, cores, torch_threads: as in `Resources`; None if an earlier version computed the
            parts, which did not record them.
        images_per_second: of the parts.
        stage_images_per_second: what each stage could do if the others took no time; None if it took no time
            or was not recorded. Reading and decoding: with all decoders, and decoding with as many cores.
        set_by: the stage that sets the pace: `read`, `decode`, `forward` or `write`.
        busy_share: share of the time in which that stage was in use.
        decoders_waited_share: share of the time of decoding in which decoders waited for a core or for
            Python's lock; None if it was not recorded.
        remedy: what would make it faster.
    """

    parts: int
    images: int
    views_per_image: int
    device: str | None
    decoders: int | None
    cores: int | None
    torch_threads: int | None
    images_per_second: float
    stage_images_per_second: dict[str, float | None]
    set_by: str
    busy_share: float
    decoders_waited_share: float | None
    remedy: str


def paces(header: CacheHeader, records: Iterable[PartRecord]) -> list[Pace]:
    """Return the pace of each group of parts with the same resources and number of views, the largest group
    first. Parts without times, or that the header does not have, are left out."""
    groups = [
        ((record.resources, len(header.views_of(record.part))), record)
        for record in records
        if record.seconds.get("wall", 0.0) > 0 and 0 <= record.part < header.parts
    ]
    found = [
        _pace([record for _, record in group], *key)
        for key, group in groupby(sorted(groups, key=lambda one: repr(one[0])), key=itemgetter(0))
    ]
    return sorted(found, key=lambda pace: -pace.images)


def _pace(records: list[PartRecord], resources: Resources | None, views: int) -> Pace:
    images = sum(stop - start for start, stop in (record.rows for record in records))
    seconds = dict.fromkeys(("read", "decode", "wait", "write"), 0.0)
    for record in records:
        for stage, value in record.seconds.items():
            seconds[stage] = seconds.get(stage, 0.0) + value
    wall, write = seconds["wall"], seconds["write"]
    period = max(wall, (wall + write) / 2)  # of the two parts of a worker, one at a time is computed
    set_by, in_use = _slowest(seconds, resources)
    elapsed = seconds.get("decode_elapsed", 0.0)
    waited = round(max(0.0, 1 - seconds["decode"] / elapsed), 3) if resources and elapsed else None
    alone = _alone(seconds, resources)
    return Pace(
        parts=len(records),
        images=images,
        views_per_image=views,
        **(asdict(resources) if resources else dict.fromkeys(Resources.__dataclass_fields__)),
        images_per_second=round(images / period, 1),
        stage_images_per_second={
            stage: round(images / alone[stage], 1) if alone.get(stage, 0.0) > 0 else None for stage in STAGES
        },
        set_by=set_by,
        busy_share=round(min(1.0, in_use / period), 3),
        decoders_waited_share=waited,
        remedy=_remedy(set_by, resources, waited),
    )


def _slowest(seconds: dict[str, float], resources: Resources | None) -> tuple[str, float]:
    """Return the stage that is in use for most of the time, and for how many seconds."""
    read, decode = seconds["read"], seconds.get("decode_elapsed", seconds["decode"])
    loading, teacher = seconds["wait"], seconds["wall"] - seconds["wait"]
    if resources and resources.device != "cpu":
        loading, teacher = (read + decode) / resources.decoders, seconds.get("device", 0.0)
    in_use = {"read" if read > decode else "decode": loading, "forward": teacher, "write": seconds["write"]}
    return max(in_use.items(), key=itemgetter(1))


def _alone(seconds: dict[str, float], resources: Resources | None) -> dict[str, float]:
    """Return the seconds that each stage would take without the others."""
    if resources is None:
        return {}
    # Beside a teacher on the same cores, decoders wait for these, which alone they would not. Beside another
    # device they wait for one another.
    decode = seconds["decode"]
    elapsed = decode if resources.device == "cpu" else max(decode, seconds.get("decode_elapsed", 0.0))
    return {
        "read": seconds["read"] / resources.decoders,
        "decode": max(elapsed / resources.decoders, decode / resources.cores),
        "forward": seconds.get("device", 0.0),
        "write": seconds["write"],
    }


def _remedy(set_by: str, resources: Resources | None, waited: float | None) -> str:
    on_cuda = resources is not None and resources.device != "cpu"
    more = "more --decode-processes" if on_cuda else "more --threads or --decode-processes"
    if set_by in ("read", "decode") and waited is not None and waited > WAITS_LONG:
        return (
            f"more cores or --workers: the decoders waited {waited:.0%} of their time for a core or for "
            "Python's lock"
        )
    if set_by == "read":
        return f"faster storage of the images, or {more}, which wait for it together"
    if set_by == "decode":
        has_all = resources is not None and resources.decoders >= resources.cores
        return "more cores: each has a decoder" if has_all else more
    if set_by == "write":
        return "faster storage of the cache, or an --encoding that stores less"
    return "a faster --device, a --precision of 16 bits, or a larger --batch-size"


def pace_text(pace: Pace) -> str:
    """Return a pace in words: its rate, those of the stages, and what to do, a line each."""
    views = f" of {pace.views_per_image} views" if pace.views_per_image > 1 else ""
    parts = f"{pace.parts} part{'s' * (pace.parts > 1)}"
    first = (
        f"{pace.images_per_second:,.1f} images/s{views} per worker ({parts}), set by {STAGES[pace.set_by]}, "
        f"in use {pace.busy_share:.0%} of the time"
    )
    if pace.device is None:
        return f"{first}\n  the rates of the stages were not recorded\n  faster with {pace.remedy}"
    # on shared cores, decoders wait for one while they read as well
    least = {"read": "at least "} if pace.device == "cpu" else {}
    rates = ", ".join(
        f"{STAGES[stage]} {least.get(stage, '')}{rate:,.0f}"
        for stage, rate in pace.stage_images_per_second.items()
        if rate
    )
    cores = f"{pace.cores} core{'s' * (pace.cores != 1)}"
    used = (
        f"decoding and the teacher share {cores}"
        if pace.device == "cpu"
        else f"{pace.decoders} decoders on {cores}"
    )
    return f"{first}\n  images/s of each stage alone: {rates}; {used}\n  faster with {pace.remedy}"
