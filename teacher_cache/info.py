"""What `rpp-cache info` prints: the content of a cache, its progress and the pace of its build."""

from collections import Counter
from dataclasses import asdict
from typing import Any

import numpy as np

from teacher_cache.errors import CacheDamagedError, printable
from teacher_cache.images.table import LabelReport
from teacher_cache.pace import paces
from teacher_cache.store.cache_store import CacheStore
from teacher_cache.store.pixels import one_codec


def describe(store: CacheStore) -> dict[str, Any]:
    """Return what `rpp-cache info` prints."""
    header, labels = store.header, asdict(_label_report(store))
    store.parts.require_all_shards()
    records = store.parts.records()
    seconds: dict[str, float] = {}
    for record in records:
        for stage, value in record.seconds.items():
            seconds[stage] = round(seconds.get(stage, 0.0) + value, 3)
    first_pass = [record for record in records if record.part < header.parts_per_pass]
    skipped = sum(len(record.skipped) for record in first_pass)
    found = paces(header, records)
    per_pass = Counter(record.part // header.parts_per_pass for record in records)
    return {
        "path": store.path,
        "samples": header.samples,
        "valid": sum(record.rows[1] - record.rows[0] for record in first_pass) - skipped,
        "skipped": skipped,
        "views": header.views,
        "finished_views": store.parts.finished_views(),
        "passes": [
            {"views": views, "parts_committed": per_pass[number], "parts_total": header.parts_per_pass}
            for number, views in enumerate(header.passes)
        ],
        "parts_total": header.parts,
        "parts_committed": len(records),
        "complete": len(records) == header.parts,
        "bytes_per_view": round(store.parts.bytes_per_view(), 1),
        "pixels": _pixels(store),
        "labels": {name: value for name, value in labels.items() if name != "notes"},
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
        "decoder": header.decoder,
        "decoder_difference": header.decoder_difference,
        "images": header.images,
        "seconds": seconds,
        "pace": [asdict(pace) for pace in found],
        "slowest_stage": found[0].set_by if found else None,
        "software": header.software,
        "notes": [*labels["notes"], *map(printable, store.vocabulary(header.vocabulary).remarks)],
    }


def _pixels(store: CacheStore) -> dict[str, Any]:
    """Return what is stored of the rendered views; `codec` none if nothing is."""
    records = store.pixels.records()
    codec = one_codec(records, store.path)
    if codec is None:
        return {"codec": store.header.pixels}
    compared = [record.difference for record in records if record.difference is not None]
    return {
        "codec": codec,
        "parts": len(records),
        "bytes_per_view": round(
            sum(record.tar_bytes for record in records) / max(1, sum(r.stored_views for r in records)), 1
        ),
        "difference": round(float(np.mean(compared)), 4) if compared else None,
        "seen_by_teacher": all(record.seen_by_teacher for record in records),
    }


def _label_report(store: CacheStore) -> LabelReport:
    """Return what indexing reported; of an earlier version's cache, what its labels tell."""
    try:
        samples = store.samples
        if report := samples.label_report:
            return report
        unlabelled, origin = np.flatnonzero(samples.labels < 0), samples.origin
        return LabelReport(
            choice="first",
            labelled=len(samples) - len(unlabelled),
            unlabelled=len(unlabelled),
            first_unlabelled=samples.keys(unlabelled[:3]),
            notes=origin.notes if origin else [],
        )
    except CacheDamagedError:
        return LabelReport(choice="first")  # `verify` and `build` name the damage
