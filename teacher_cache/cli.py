"""`rpp-cache`: build, look into, verify and export a cache."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from teacher_cache.build import BuildSettings, build_cache
from teacher_cache.errors import RppError, UsageError
from teacher_cache.export import export_soft_labels
from teacher_cache.options import run_app, settings_options
from teacher_cache.progress import counting
from teacher_cache.softlabels import open_cache
from teacher_cache.stats import sample_rows, teacher_statistics
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
def build(settings: BuildSettings, as_json: Json = False) -> None:
    """Run the teacher once over the images. Called again, it goes on where it stopped.

    Example: rpp-cache build --images 'shards/{0000..1415}.tar' --classes imagenet-21k --out ./zarr
    --teacher ViT-L-14 --pretrained openai
    """
    result = build_cache(settings, on_note=lambda note: remarks.print(f"note: {note}", markup=False))
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


@app.command()
def stats(
    cache: Cache,
    temperature: Annotated[str, typer.Option(help="temperatures, by commas")] = "1",
    view: Annotated[int, typer.Option(help="which view")] = 0,
    sample: Annotated[int | None, typer.Option(min=1, help="random rows to take [default: all]")] = None,
    seed: Annotated[int, typer.Option(help="decides the random rows")] = 0,
    pairs: Annotated[int, typer.Option(min=0, help="most confused class pairs to show")] = 10,
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
    opened = open_cache(cache)
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
) -> None:
    """Write the likeliest classes of every sample to Parquet, for other trainers.

    Columns: key, label (-1 = none), label_id, classes, probabilities. The names of the classes stand in the
    schema's metadata.

    Example: rpp-cache export ./zarr --out soft.parquet --top 20 --temperature 1
    """
    opened = open_cache(cache)
    with counting("rows", len(opened)) as counter:
        written = export_soft_labels(opened, out, top, temperature, view, on_rows=counter)
    console.print(
        f"{out}: {written} samples, the top {top} classes at temperature {temperature:g}", markup=False
    )


def main() -> None:
    """Entry point of `rpp-cache`."""
    run_app(app)
