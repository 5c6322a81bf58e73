"""`rpp-cache`: build, look into and verify a cache."""

import json
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.filesize import decimal

from teacher_cache.build import BuildSettings, build_cache
from teacher_cache.errors import RppError
from teacher_cache.estimate import Estimate, estimate_build
from teacher_cache.options import run_app, settings_options
from teacher_cache.part import slowest_stage
from teacher_cache.progress import counting
from teacher_cache.store import SAMPLES, CacheStore

app = typer.Typer(
    help="Stage one: a frozen CLIP teacher goes once over an image set; its soft labels are kept in Zarr.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
Json = Annotated[bool, typer.Option("--json", help="print JSON on standard output")]
Cache = Annotated[str, typer.Argument(help="the cache")]
console = Console(soft_wrap=True)
remarks = Console(stderr=True, soft_wrap=True)


@app.command()
@settings_options(BuildSettings)
def build(
    settings: BuildSettings,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="say what, how large and how long")] = False,
    as_json: Json = False,
) -> None:
    """Run the teacher once over the images. Called again, it goes on where it stopped.

    Example: rpp-cache build --images 'shards/{0000..1415}.tar' --classes imagenet-21k --out ./zarr
    --teacher ViT-L-14 --pretrained openai
    """

    def remark(note: str) -> None:
        remarks.print(f"note: {note}", markup=False)

    if dry_run:
        estimate = estimate_build(settings, remark)
        if as_json:
            print(json.dumps(asdict(estimate)))
        else:
            console.print(in_words(estimate), markup=False, highlight=False)
        return
    result = build_cache(settings, remark)
    if as_json:
        print(json.dumps(result.__dict__, default=str))
        return
    console.print(
        f"{result.path}: {result.samples} samples, {result.parts_computed} of {result.parts_total} parts "
        f"computed now, {result.skipped} unreadable images, {result.seconds:.1f} s",
        markup=False,
    )
    if result.skipped:
        console.print(f"unreadable images and reasons: rpp-cache info --skipped {result.path}", markup=False)


def in_words(estimate: Estimate) -> str:
    """What a dry run prints."""
    sizes = ", ".join(f"{name} {decimal(size)}" for name, size in estimate.bytes.items())
    free = "" if estimate.bytes_free is None else f", {decimal(estimate.bytes_free)} free"
    if estimate.bytes_free is not None and estimate.bytes_free < estimate.bytes_total:
        free += " (too little)"
    times = ", ".join(
        f"{name.replace('_', ' ')} {timedelta(seconds=round(value))}"
        for name, value in estimate.seconds.items()
    )
    workers = f"{estimate.workers} worker{'s' * (estimate.workers > 1)}"
    return (
        f"{estimate.path}: nothing is written in a dry run\n"
        f"samples  {estimate.samples:,}, of which {estimate.labelled:,} have a label; "
        f"{estimate.classes:,} classes; views a sample: {estimate.views}\n"
        f"parts    {estimate.parts_missing:,} of {estimate.parts_total:,} are to be computed\n"
        f"space    {decimal(estimate.bytes_total)}{free} ({sizes})\n"
        f"time     {timedelta(seconds=round(estimate.seconds_total))} ({times}): {workers}, "
        f"{estimate.views_per_second:,.1f} views/s, from {estimate.slice_images} images timed here"
    )


def describe(store: CacheStore) -> dict[str, Any]:
    """What `rpp-cache info` shows."""
    header = store.header
    records = [store.record(part) for part in store.committed()]
    seconds: dict[str, float] = {}
    for record in records:
        for stage, value in record.seconds.items():
            seconds[stage] = round(seconds.get(stage, 0.0) + value, 3)
    skipped = sum(len(record.skipped) for record in records)
    return {
        "path": str(store.path),
        "samples": header.samples,
        "valid": sum(record.rows[1] - record.rows[0] for record in records) - skipped,
        "skipped": skipped,
        "views": header.views,
        "parts_total": header.parts,
        "parts_committed": len(records),
        "complete": len(records) == header.parts,
        "bytes_per_view": round(store.bytes_per_view(), 1),
        "encoding": header.encoding["name"],
        "teacher": header.teacher,
        "vocabularies": {
            name: {"classes": len(vocabulary), "templates": list(vocabulary.templates)}
            for name in store.vocabulary_names()
            for vocabulary in [store.vocabulary(name)]
        },
        "view_policy": header.view_policy,
        "images": header.images,
        "seconds": seconds,
        "slowest_stage": slowest_stage(seconds) if records else None,
        "software": header.software,
    }


@app.command()
def info(
    cache: Cache,
    skipped: Annotated[bool, typer.Option(help="list the unreadable images with their reasons")] = False,
    as_json: Json = False,
) -> None:
    """Say what a cache holds and how far it is.

    Example: rpp-cache info ./zarr --json
    """
    store = CacheStore.open(Path(cache))
    facts = describe(store)
    if skipped:
        facts["skipped_samples"] = [
            entry for part in store.committed() for entry in store.record(part).skipped
        ]
    if as_json:
        print(json.dumps(facts, ensure_ascii=False))
        return
    for name, value in facts.items():
        if isinstance(value, dict):
            value = ", ".join(f"{key} {item}" for key, item in value.items())
        elif isinstance(value, list):
            value = "".join(f"\n  row {e['row']} {e['key']}: {e['reason']}" for e in value) or "none"
        console.print(f"{name}: {value}", markup=False, highlight=False)


@app.command()
def verify(cache: Cache, as_json: Json = False) -> None:
    """Compare every stored array with its checksum.

    The record of a damaged part is withdrawn where the cache can be written: the next build computes it
    again. Exit code 1 if anything is damaged or missing.

    Example: rpp-cache verify ./zarr
    """
    store = CacheStore.open(Path(cache))
    damaged: list[int] = []
    with counting("parts", len(store.committed())) as counter:
        for part in store.committed():
            if not store.part_is_sound(part):
                damaged.append(part)
            counter(1)
    tables, missing = store.damaged_tables(), store.missing()
    for part in damaged:
        try:
            store.withdraw(part)
        except OSError as error:
            remarks.print(f"note: part {part} stays recorded: {error}", markup=False)
    ok = not (damaged or tables or missing)
    if as_json:
        facts = {"ok": ok, "damaged_parts": damaged, "missing_parts": missing, "damaged_tables": tables}
        print(json.dumps(facts))
    else:
        for part in damaged:
            rows = store.header.rows(part)
            console.print(
                f"part {part} (rows {rows.start} to {rows.stop - 1}) is damaged; build recomputes it"
            )
        for table in tables:
            remedy = "build writes it again" if table == SAMPLES else "the cache must be built anew"
            console.print(f"{table} is damaged; it belongs to no part: {remedy}")
        if missing:
            console.print(f"{len(missing)} of {store.header.parts} parts are missing; build computes them")
        console.print("ok" if ok else "not ok")
    raise typer.Exit(0 if ok else RppError.exit_code)


def main() -> None:
    """Entry point of `rpp-cache`."""
    run_app(app)
