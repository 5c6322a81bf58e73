"""`rpp-cache`: build, extend, render, relabel, inspect, verify and export a cache."""

from collections.abc import Iterator
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from teacher_cache import preflight
from teacher_cache.command_settings import BuildSettings, ExtendSettings, RelabelSettings, RenderSettings
from teacher_cache.errors import RppError, UsageError, printable
from teacher_cache.options import (
    OUTPUT,
    Json,
    OneCommand,
    Version,
    as_written,
    command_line,
    flag,
    print_json,
    run_app,
    settings_options,
)
from teacher_cache.progress import counting, loading
from teacher_cache.store.presence import require_cache

if TYPE_CHECKING:
    from teacher_cache.estimate import Estimate
    from teacher_cache.store.cache_store import CacheStore
    from teacher_cache.store.verify import Damage

app = command_line(
    "Stage one: store the soft labels of a frozen CLIP teacher for an image set in Zarr.",
    no_args_is_help=True,
)
InVocabulary = Annotated[
    str | None, typer.Option(help="a vocabulary that relabel added", show_default="the build's")
]
Cache = Annotated[str, typer.Argument(help="the cache: a folder or a URL", callback=as_written)]
console = Console(soft_wrap=True)
remarks = Console(stderr=True, soft_wrap=True)


@app.callback()
def rpp_cache(version: Version = False) -> None:
    """Stage one: store the soft labels of a frozen CLIP teacher for an image set in Zarr."""


@app.command(cls=OneCommand)
@settings_options(BuildSettings)
def build(
    settings: BuildSettings,
    dry_run: Annotated[
        bool, flag("--dry-run", "print what would be computed, how large and how long; write nothing", OUTPUT)
    ] = False,
    as_json: Json = False,
) -> None:
    """Run the teacher once over the images. The same command again resumes where it stopped.

    Example: rpp-cache build --images 'shards/{0000..1415}.tar' --classes imagenet-21k --out ./zarr
    --teacher ViT-L-14 --pretrained openai
    """
    preflight.check_build(settings)
    with loading():
        from teacher_cache.build import build_cache
        from teacher_cache.estimate import estimate_build
    if dry_run:
        estimate = estimate_build(settings, _remark)
        if as_json:
            print_json(asdict(estimate))
        else:
            console.print(estimate_text(estimate), markup=False, highlight=False)
        return
    result = build_cache(settings, _remark)
    if as_json:
        print_json(result.__dict__)
        return
    console.print(
        f"{result.path}: {result.samples} samples, {result.parts_computed} of {result.parts_total} parts "
        f"computed now, {result.skipped} unreadable images, {result.seconds:.1f} s",
        markup=False,
    )
    _print_pace(result.pace)
    if result.skipped:
        console.print(f"unreadable images and reasons: rpp-cache info --skipped {result.path}", markup=False)


def _print_pace(found: list[dict[str, Any]]) -> None:
    from teacher_cache.pace import Pace, pace_text

    for one in found:
        console.print(f"pace: {pace_text(Pace(**one))}", markup=False, highlight=False)


def _remark(note: str) -> None:
    remarks.print(f"note: {note}", markup=False)


def estimate_text(estimate: "Estimate") -> str:
    """Return an estimate as the text that a dry run prints."""
    sizes = ", ".join(f"{name} {decimal(size)}" for name, size in estimate.bytes.items())
    free = "" if estimate.bytes_free is None else f", {decimal(estimate.bytes_free)} free"
    if estimate.bytes_free is not None and estimate.bytes_free < estimate.bytes_total:
        free += " (too little)"
    times = ", ".join(
        f"{name.replace('_', ' ')} {timedelta(seconds=round(value))}"
        for name, value in estimate.seconds.items()
    )
    workers = f"{estimate.workers} worker{'s' * (estimate.workers > 1)}"
    other = estimate.other_pixels
    return (
        f"{estimate.path}: nothing is written in a dry run\n"
        f"samples  {estimate.samples:,}, of which {estimate.labelled:,} have a label; "
        f"{estimate.classes:,} classes; views per sample: {estimate.views}\n"
        f"parts    {estimate.parts_missing:,} of {estimate.parts_total:,} to compute\n"
        f"space    {decimal(estimate.bytes_total)}{free} ({sizes})\n"
        f"time     {timedelta(seconds=round(estimate.seconds_total))} ({times}): {workers}, "
        f"{estimate.views_per_second:,.1f} views/s, from {estimate.slice_images} images timed here\n"
        f"pixels   {estimate.pixels}; with --pixels {other['pixels']} {decimal(other['bytes_total'])} and "
        f"{timedelta(seconds=round(other['seconds_total']))}"
    )


@app.command(cls=OneCommand)
def info(
    cache: Cache,
    skipped: Annotated[
        bool, flag("--skipped", "list the unreadable images with their reasons", OUTPUT)
    ] = False,
    as_json: Json = False,
) -> None:
    """Print what a cache contains, its progress, and which stage sets the pace of its build.

    Example: rpp-cache info ./zarr --json
    """
    require_cache(cache)
    from teacher_cache.info import describe
    from teacher_cache.pace import STAGES, Pace, pace_text
    from teacher_cache.store.cache_store import CacheStore

    store = CacheStore.open(cache)
    facts = describe(store)
    if skipped:
        facts["skipped_samples"] = store.parts.skipped()
    if as_json:
        print_json(facts)
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
            value = STAGES[value] if value else "nothing has been computed yet"
        elif name == "pace":
            value = "".join(f"\n  {pace_text(Pace(**one))}" for one in value) or "not recorded"
        elif name == "labels":
            value = printable(_label_text(value))
        elif name == "notes":
            value = "".join(f"\n  {printable(note)}" for note in value) or "none"
        elif isinstance(value, dict):
            value = ", ".join(f"{key} {item}" for key, item in value.items())
        console.print(f"{name}: {value}", markup=False, highlight=False)


def _label_text(labels: dict[str, Any]) -> str:
    """Return the counts of labels in one line, with the first samples of each count."""

    def counted(name: str) -> str:
        keys = labels.get(f"first_{name}")
        count = "not counted" if labels[name] is None else f"{labels[name]:,}"
        return f"{name.replace('_', ' ')} {count}" + (f" (first: {', '.join(keys)})" if keys else "")

    counts = ("labelled", "unlabelled", "outside_vocabulary", "contradictory")
    return f"{', '.join(map(counted, counts))}, choice {labels['choice']}"


@app.command(cls=OneCommand)
def verify(cache: Cache, as_json: Json = False) -> None:
    """Compare everything that is stored with its checksums.

    The record of a damaged part is withdrawn if the cache can be written: the next build computes the part
    again. The exit code is 1 if anything is damaged or missing.

    Example: rpp-cache verify ./zarr
    """
    require_cache(cache)
    from teacher_cache.store.cache_store import CacheStore
    from teacher_cache.store.verify import verify_store

    store = CacheStore.open(cache)
    with counting("parts", len(store.parts.committed())) as counter:
        damage = verify_store(store, on_part=counter)
    for part in damage.parts:
        try:
            store.parts.withdraw(part)
        except (OSError, RppError) as error:
            remarks.print(f"note: part {part} stays recorded: {error}", markup=False)
    for part in damage.pixels:
        try:
            store.pixels.withdraw(part)
        except (OSError, RppError) as error:
            remarks.print(f"note: the views of part {part} stay recorded: {error}", markup=False)
    if as_json:
        print_json(
            {
                "ok": not damage,
                "damaged_parts": damage.parts,
                "missing_parts": damage.missing,
                "damaged_tables": damage.tables,
                "damaged_pixels": damage.pixels,
            }
        )
    else:
        for line in _damage_lines(store, damage):
            console.print(line, markup=False, highlight=False)
    raise typer.Exit(RppError.exit_code if damage else 0)


def _damage_lines(store: "CacheStore", damage: "Damage") -> Iterator[str]:
    header = store.header
    for part in damage.parts:
        rows, views = header.rows(part), header.views_of(part)
        yield (
            f"part {part} (rows {rows.start} to {rows.stop - 1}, views {views.start} to {views.stop - 1}) is "
            "damaged; build recomputes it"
        )
    for part in damage.pixels:
        yield f"the rendered views of part {part} are damaged; render writes them again"
    for table in damage.tables:
        name = table.removeprefix("vocabularies/")
        added = table.startswith("vocabularies/") and name not in (header.vocabulary, "zarr.json")
        remedy = f"relabel --name {name} writes it again" if added else "build writes it again"
        yield f"{table} is damaged; it belongs to no part: {remedy}"
    if damage.missing:
        yield f"{len(damage.missing)} of {header.parts} parts are missing; build computes them"
    yield "not ok" if damage else "ok"


@app.command(cls=OneCommand)
@settings_options(RelabelSettings)
def relabel(settings: RelabelSettings, cache: Cache, as_json: Json = False) -> None:
    """Add a vocabulary to a cache: new class names, new templates, another language. No image is read.

    Example: rpp-cache relabel ./zarr --name german --classes german.csv --templates 'ein Foto von {}.'
    """
    preflight.check_relabel(cache, settings)
    with loading():
        from teacher_cache.relabel import relabel_cache
    result = relabel_cache(cache, settings)
    for note in result.notes:
        _remark(note)
    if as_json:
        print_json(asdict(result))
        return
    what = "written" if result.written else "already exists"
    console.print(
        f"{result.path}: vocabulary {result.name} {what}, {result.classes} classes, {result.seconds:.1f} s; "
        f"{result.labelled_classes} of the build's classes have the same id in it and keep their hard labels",
        markup=False,
    )


@app.command(cls=OneCommand)
@settings_options(ExtendSettings)
def extend(settings: ExtendSettings, cache: Cache, as_json: Json = False) -> None:
    """Add views to a finished cache. The same command again resumes where it stopped.

    Example: rpp-cache extend ./zarr --views 8
    """
    preflight.check_extend(cache, settings)
    with loading():
        from teacher_cache.extend import extend_cache
    result = extend_cache(cache, settings, _remark)
    if as_json:
        print_json(asdict(result))
        return
    console.print(
        f"{result.path}: {result.views} views per sample, {result.parts_computed} of {result.parts_total} "
        f"parts computed now, {result.seconds:.1f} s",
        markup=False,
    )
    _print_pace(result.pace)


@app.command(cls=OneCommand)
@settings_options(RenderSettings)
def render(settings: RenderSettings, cache: Cache, as_json: Json = False) -> None:
    """Store the pixels of a cache's views, so that training reads them instead of the original images.

    The same command again resumes where it stopped, and renders views that extend added.

    Example: rpp-cache render ./zarr --pixels jpeg95
    """
    preflight.check_render(cache, settings)
    with loading():
        from teacher_cache.render import render_cache
    result = render_cache(cache, settings)
    if as_json:
        print_json(asdict(result))
        return
    console.print(
        f"{result.path}: views of {result.parts_rendered} of {result.parts_total} parts rendered now as "
        f"{result.codec}, {result.bytes_per_view:,.0f} bytes a view, {result.seconds:.1f} s",
        markup=False,
    )
    if result.difference is not None:
        console.print(f"mean difference from the exact pixels: {result.difference:.3f} of 255")
    if result.cosine is not None:
        smallest, mean = result.cosine
        console.print(f"cosine of features, stored against exact: mean {mean:.6f}, smallest {smallest:.6f}")
    if result.parts_left:
        remarks.print(f"note: {result.parts_left} parts are not built yet; render again after the build")


@app.command(cls=OneCommand)
def stats(
    cache: Cache,
    temperature: Annotated[str, typer.Option(help="temperatures T, separated by commas")] = "1",
    view: Annotated[int, typer.Option(help="view of each sample, counted from 0")] = 0,
    sample: Annotated[int | None, typer.Option(min=1, help="random rows to take", show_default="all")] = None,
    seed: Annotated[int, typer.Option(help="seed of the random rows")] = 0,
    pairs: Annotated[
        int, typer.Option(min=0, help="most confused class pairs to print", rich_help_panel=OUTPUT)
    ] = 10,
    vocabulary: InVocabulary = None,
    as_json: Json = False,
) -> None:
    """Print how accurate and how certain the teacher is.

    Top-1 and top-5 against the hard labels; at each temperature the mean entropy of the soft labels and its
    exponential, the effective number of classes; the most confused pairs of classes.

    Example: rpp-cache stats ./zarr --temperature 0.5,1,2,4 --sample 100000
    """
    try:
        temperatures = [float(text) for text in temperature.split(",")]
    except ValueError as error:
        raise UsageError(f"--temperature '{temperature}': expected numbers such as 0.5,1,2") from error
    if min(temperatures) <= 0:
        raise UsageError(f"--temperature must be above zero, found {min(temperatures)}")
    require_cache(cache)
    with loading("torch and dask"):
        from teacher_cache.softlabels import open_cache
        from teacher_cache.stats import sample_rows, teacher_statistics
    opened = open_cache(cache, vocabulary)
    count = len(sample_rows(opened, sample, seed))
    with counting("rows", count) as counter:
        facts = teacher_statistics(opened, temperatures, view, sample, seed, pairs, on_rows=counter)
    if as_json:
        print_json(facts)
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
    if facts["confused"]:
        console.print("most confused classes, hard label first:")
    shared = opened.vocabulary.duplicate_names
    for pair in facts["confused"]:
        label, predicted = (
            f"'{pair[f'{side}_name']}'" + f" ({pair[f'{side}_id']})" * (pair[f"{side}_name"] in shared)
            for side in ("label", "predicted")
        )
        line = printable(f"{pair['count']} x {label} taken for {predicted}")
        console.print(line, markup=False, highlight=False)


@app.command(cls=OneCommand)
def export(
    cache: Cache,
    out: Annotated[
        Path, typer.Option(help="the Parquet file to write", callback=as_written, rich_help_panel=OUTPUT)
    ],
    top: Annotated[
        int | None,
        typer.Option(
            min=1, help="likeliest classes kept per sample", show_default="20, or all of a smaller vocabulary"
        ),
    ] = None,
    temperature: Annotated[float, typer.Option(help="temperature T of the soft labels")] = 1.0,
    view: Annotated[int, typer.Option(help="view of each sample, counted from 0")] = 0,
    vocabulary: InVocabulary = None,
) -> None:
    """Write the likeliest classes of every sample to Parquet, for other trainers.

    Columns: key, label (-1 = none), label_id, classes, probabilities; row, path, offset and view, to join the
    rows with the cache and its samples.parquet where keys are repeated. The names of the classes are in the
    schema's metadata.

    Example: rpp-cache export ./zarr --out soft.parquet --top 20 --temperature 1
    """
    require_cache(cache)
    with loading("torch"):
        from teacher_cache.export import DEFAULT_TOP, export_soft_labels
        from teacher_cache.softlabels import open_cache
    opened = open_cache(cache, vocabulary)
    top = min(DEFAULT_TOP, len(opened.vocabulary)) if top is None else top
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
