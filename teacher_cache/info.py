"""What a cache holds, how far its build is, and which stage of the build took the time."""

from collections import Counter
from typing import Any

from teacher_cache.store import CacheStore

# What to do, by the stage that sets the pace of a build.
REMEDIES = {
    "read": "the images' storage is what a build waits for",
    "decode": "more --threads, or more workers, decode more images at a time",
    "forward": "the teacher is what a build waits for: a faster --device or a --precision of 16 bits",
    "write": "the cache's storage is what a build waits for",
}


def slowest_stage(seconds: dict[str, float]) -> str:
    """Which stage sets the pace, from the seconds of one or more parts: `read`, `decode`, `forward` or
    `write`."""
    if seconds["wait"] > seconds["forward"]:  # most of the time the teacher had no pixels
        return "read" if seconds["read"] > seconds["decode"] else "decode"
    # a part is written while the next one is computed
    return "write" if seconds["write"] > seconds["wall"] else "forward"


def describe(store: CacheStore) -> dict[str, Any]:
    """What `rpp-cache info` shows."""
    header = store.header
    store.require_whole()
    records = store.records()
    seconds: dict[str, float] = {}
    for record in records:
        for stage, value in record.seconds.items():
            seconds[stage] = round(seconds.get(stage, 0.0) + value, 3)
    first_pass = [record for record in records if record.part < header.parts_per_pass]
    skipped = sum(len(record.skipped) for record in first_pass)
    per_pass = Counter(record.part // header.parts_per_pass for record in records)
    return {
        "path": store.path,
        "samples": header.samples,
        "valid": sum(record.rows[1] - record.rows[0] for record in first_pass) - skipped,
        "skipped": skipped,
        "views": header.views,
        "finished_views": store.finished_views(),
        "passes": [
            {"views": views, "parts_committed": per_pass[number], "parts_total": header.parts_per_pass}
            for number, views in enumerate(header.passes)
        ],
        "parts_total": header.parts,
        "parts_committed": len(records),
        "complete": len(records) == header.parts,
        "bytes_per_view": round(store.bytes_per_view(), 1),
        "encoding": header.encoding["name"],
        "encoding_options": {key: value for key, value in header.encoding.items() if key != "name"},
        "teacher": header.teacher,
        "vocabularies": {
            name: {"classes": len(vocabulary), "templates": list(vocabulary.templates)}
            for name in store.vocabulary_names()
            for vocabulary in [store.vocabulary(name)]
        },
        "view_policy": header.view_policy,
        "max_pixels": header.max_pixels,
        "images": header.images,
        "seconds": seconds,
        "slowest_stage": slowest_stage(seconds) if "wall" in seconds else None,
        "software": header.software,
    }
