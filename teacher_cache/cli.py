"""`rpp-cache`: build, extend, relabel, look into, verify and export a cache."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from teacher_cache.build import BuildSettings, build_cache
from teacher_cache.errors import RppError, UsageError, printable
from teacher_cache.estimate import Estimate, estimate_build
from teacher_cache.export import export_soft_labels
from teacher_cache.extend import ExtendSettings, extend_cache
from teacher_cache.options import run_app, settings_options
from teacher_cache.part import slowest_stage
from teacher_cache.progress import counting
from teacher_cache.relabel import RelabelSettings, relabel_cache
from teacher_cache.softlabels import open_cache
from teacher_cache.stats import sample_rows, teacher_statistics
from teacher_cache.store import CacheStore, Damage, verify_store

app = typer.Typer(
    help="Stage one: a frozen CLIP teacher goes once over an image set; its soft labels are kept in Zarr.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
Json = Annotated[bool, typer.Option("--json", help="print JSON on standard output")]
InVocabulary = Annotated[str | None, typer.Option(help="one that relabel added [default: that of the build]")]
Cache = Annotated[str, typer.Argument(help="the cache, a path or a URL")]
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


REMEDIES = {
    "read": "the images' storage is what a build waits for",
    "decode": "more --threads, or more workers, decode more images at a time",
    "forward": "the teacher is what a build waits for: a faster --device or a --precision of 16 bits",
    "write": "the cache's storage is what a build waits for",
}


@app.command()
def info(
    cache: Cache,
    skipped: Annotated[bool, typer.Option(help="list the unreadable images with their reasons")] = False,
    as_json: Json = False,
) -> None:
    """Say what a cache holds, how far it is, and which stage of the build took the time.

    Example: rpp-cache info ./zarr --json
    """
    store = CacheStore.open(cache)
    facts = describe(store)
    if skipped:
        facts["skipped_samples"] = store.skipped()
    if as_json:
        print(json.dumps(facts, ensure_ascii=False))
        return
    for name, value in facts.items():
        if name == "skipped_samples":
            lines = (printable(f"  row {e['row']} {e['key']}: {e['reason']}") for e in value)
            value = "".join(f"\n{line}" for line in lines) or "none"
        elif name == "passes":
            value = "; ".join(
                f"to {p['views']} views: {p['parts_committed']} of {p['parts_total']} parts" for p in value
            )
        elif name == "slowest_stage":
            value = f"{value}: {REMEDIES[value]}" if value else "nothing was computed yet"
        elif isinstance(value, dict):
            value = ", ".join(f"{key} {item}" for key, item in value.items())
        console.print(f"{name}: {value}", markup=False, highlight=False)


@app.command()
def verify(cache: Cache, as_json: Json = False) -> None:
    """Compare all that is stored with its checksums.

    The record of a damaged part is withdrawn where the cache can be written: the next build computes it
    again. Exit code 1 if anything is damaged or missing.

    Example: rpp-cache verify ./zarr
    """
    store = CacheStore.open(cache)
    with counting("parts", len(store.committed())) as counter:
        damage = verify_store(store, on_part=counter)
    for part in damage.parts:
        try:
            store.withdraw(part)
        except (OSError, RppError) as error:
            remarks.print(f"note: part {part} stays recorded: {error}", markup=False)
    if as_json:
        print(
            json.dumps(
                {
                    "ok": not damage,
                    "damaged_parts": damage.parts,
                    "missing_parts": damage.missing,
                    "damaged_tables": damage.tables,
                }
            )
        )
    else:
        for line in _in_words(store, damage):
            console.print(line, markup=False, highlight=False)
    raise typer.Exit(RppError.exit_code if damage else 0)


def _in_words(store: CacheStore, damage: Damage) -> Iterator[str]:
    header = store.header
    for part in damage.parts:
        rows, views = header.rows(part), header.views_of(part)
        yield (
            f"part {part} (rows {rows.start} to {rows.stop - 1}, views {views.start} to {views.stop - 1}) is "
            "damaged; build recomputes it"
        )
    for table in damage.tables:
        name = table.removeprefix("vocabularies/")
        added = table.startswith("vocabularies/") and name not in (header.vocabulary, "zarr.json")
        remedy = f"relabel --name {name} writes it again" if added else "build writes it again"
        yield f"{table} is damaged; it belongs to no part: {remedy}"
    if damage.missing:
        yield f"{len(damage.missing)} of {header.parts} parts are missing; build computes them"
    yield "not ok" if damage else "ok"


@app.command()
@settings_options(RelabelSettings)
def relabel(settings: RelabelSettings, cache: Cache, as_json: Json = False) -> None:
    """Add a vocabulary to a cache: new class names, new templates, another language. No image is read.

    Example: rpp-cache relabel ./zarr --name german --classes german.csv --templates 'ein Foto von {}.'
    """
    result = relabel_cache(cache, settings)
    if as_json:
        print(json.dumps(asdict(result)))
        return
    what = "written" if result.written else "there already"
    console.print(
        f"{result.path}: vocabulary {result.name} {what}, {result.classes} classes, {result.seconds:.1f} s; "
        f"{result.labelled_classes} of the build's classes are in it by their id and keep their hard labels",
        markup=False,
    )


@app.command()
@settings_options(ExtendSettings)
def extend(settings: ExtendSettings, cache: Cache, as_json: Json = False) -> None:
    """Add views to a finished cache. Called again, it goes on where it stopped.

    Example: rpp-cache extend ./zarr --views 8
    """
    result = extend_cache(cache, settings)
    if as_json:
        print(json.dumps(asdict(result)))
        return
    console.print(
        f"{result.path}: {result.views} views a sample, {result.parts_computed} of {result.parts_total} "
        f"parts computed now, {result.seconds:.1f} s",
        markup=False,
    )


@app.command()
def stats(
    cache: Cache,
    temperature: Annotated[str, typer.Option(help="temperatures, by commas")] = "1",
    view: Annotated[int, typer.Option(help="which view")] = 0,
    sample: Annotated[int | None, typer.Option(min=1, help="random rows to take [default: all]")] = None,
    seed: Annotated[int, typer.Option(help="decides the random rows")] = 0,
    pairs: Annotated[int, typer.Option(min=0, help="most confused class pairs to show")] = 10,
    vocabulary: InVocabulary = None,
    as_json: Json = False,
) -> None:
    """Say how good and how sure the teacher is.

    Top-1 and top-5 against the hard labels; at each temperature the mean entropy of the soft labels and its
    exponential, the effective number of classes; the most confused pairs of classes.

    Example: rpp-cache stats ./zarr --temperature 0.5,1,2,4 --sample 100000
    """
    try:
        temperatures = [float(text) for text in temperature.split(",")]
    except ValueError as error:
        raise UsageError(f"--temperature '{temperature}': numbers with commas between, as 0.5,1,2") from error
    opened = open_cache(cache, vocabulary)
    count = len(sample_rows(opened, sample, seed))
    with counting("rows", count) as counter:
        facts = teacher_statistics(opened, temperatures, view, sample, seed, pairs, on_rows=counter)
    if as_json:
        print(json.dumps(facts, ensure_ascii=False))
        return
    console.print(f"{facts['rows']} rows, {facts['labelled']} of them with a hard label, view {view}")
    if facts["labelled"]:
        console.print(f"teacher's top-1 {facts['top1']:.2%}, top-5 {facts['top5']:.2%}")
    table = Table("temperature", "mean entropy (nats)", "effective classes (its exponential)")
    for line in facts["temperatures"]:
        table.add_row(
            f"{line['temperature']:g}", f"{line['entropy']:.4f}", f"{line['effective_classes']:,.1f}"
        )
    console.print(table)
    for pair in facts["confused"]:
        console.print(
            f"{pair['count']} x '{pair['label_name']}' taken for '{pair['predicted_name']}'", markup=False
        )


@app.command()
def export(
    cache: Cache,
    out: Annotated[Path, typer.Option(help="the Parquet file to write")],
    top: Annotated[int, typer.Option(min=1, help="likeliest classes kept of each sample")] = 20,
    temperature: Annotated[float, typer.Option(help="temperature T of the soft labels")] = 1.0,
    view: Annotated[int, typer.Option(help="which view")] = 0,
    vocabulary: InVocabulary = None,
) -> None:
    """Write the likeliest classes of every sample to Parquet, for other trainers.

    Columns: key, label (-1 = none), label_id, classes, probabilities. The names of the classes stand in the
    schema's metadata.

    Example: rpp-cache export ./zarr --out soft.parquet --top 20 --temperature 1
    """
    opened = open_cache(cache, vocabulary)
    with counting("rows", len(opened)) as counter:
        written = export_soft_labels(opened, out, top, temperature, view, on_rows=counter)
    console.print(
        f"{out}: {written} samples, the top {top} classes at temperature {temperature:g}", markup=False
    )


def main() -> None:
    """Entry point of `rpp-cache`."""
    run_app(app)


if __name__ == "__main__":
    main()
