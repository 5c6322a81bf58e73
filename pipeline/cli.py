"""The command `rpp`: recipes, sweeps, evaluation, prediction, import, export, reports, models, the demo."""

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import BaseModel
from rich.console import Console

from pipeline.axes import parse_axes
from pipeline.recipe import load_recipe
from pipeline.settings import DemoSettings, SweepSettings
from pipeline.suite import find_data, load_suite
from student_train.evaluation.dataset_layouts import check_layout
from student_train.evaluation.preflight import (
    check_evaluation,
    check_model_and_classes,
    check_students,
    require_picture,
)
from student_train.evaluation.settings import DataOptions, DataSettings, EvalOptions, PredictSettings
from student_train.figures import FIGURES
from student_train.interchange.preflight import require_checkpoint, require_onnx
from student_train.interchange.settings import (
    ClassifierSettings,
    HuggingFaceSettings,
    ImportSettings,
    OnnxSettings,
)
from student_train.runs.record import require_no_run, require_student
from teacher_cache.errors import UsageError, printable
from teacher_cache.files.atomic_write import make_folder
from teacher_cache.files.remote import local_file
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
from teacher_cache.preflight import require_model
from teacher_cache.progress import loading
from teacher_cache.store.presence import require_cache

app = command_line("Prompt pretraining of CLIP from a teacher that runs once.", no_args_is_help=True)
Markdown = Annotated[bool, flag("--markdown", "print the table in Markdown", OUTPUT)]
# A pipe has no width: rich's default of 80 columns would split the table.
WIDE = None if (sys.stdout and sys.stdout.isatty()) or "COLUMNS" in os.environ else 400
console = Console(soft_wrap=True, width=WIDE)
remarks = Console(stderr=True, soft_wrap=True)


def note(line: str) -> None:
    """Print a line for the user on standard error."""
    remarks.print(line, markup=False, highlight=False)


def print_line(line: object) -> None:
    """Print a line of the result on standard output."""
    console.print(str(line), markup=False, highlight=False)


def print_table(results: Any, cells: Any, as_json: bool, as_markdown: bool = False) -> None:
    """Print results as JSON, or their table (`Cells`, or one of rich) in Markdown or for the terminal."""
    if as_json:
        print_json(results)
    elif as_markdown:
        print(cells.markdown())
    else:
        console.print(cells)


def print_files(files: dict[str, Path], as_json: bool) -> None:
    """Print the files that a command wrote: a line each, or JSON by name."""
    if as_json:
        print_json(files)
        return
    for path in files.values():
        print_line(path)


@app.callback()
def rpp(version: Version = False) -> None:
    """Prompt pretraining of CLIP from a teacher that runs once."""


@app.command(cls=OneCommand)
def run(
    recipe: Annotated[Path, typer.Argument(help="a TOML recipe", callback=as_written)], as_json: Json = False
) -> None:
    """Build the caches, train, evaluate. The same command again resumes where it stopped.

    A recipe with rows or several seeds is a sweep, in the folder that `out` of its table `train` names.

    Example: rpp run recipes/imagenet21k-vitb16-all-classes.toml
    """
    loaded = load_recipe(recipe)
    if loaded.is_sweep:
        require_no_run(loaded.train.out)
        sweep_recipe(recipe, SweepSettings(out=loaded.train.out), as_json)
        return
    with loading():
        from pipeline.run import run_recipe
        from pipeline.tables import evaluation_cells
    results = run_recipe(loaded, note)
    print_table(results, evaluation_cells(results["evals"]), as_json)


@app.command(cls=OneCommand)
@settings_options(SweepSettings)
def sweep(
    settings: SweepSettings,
    recipe: Annotated[Path, typer.Argument(help="a TOML recipe", callback=as_written)],
    as_json: Json = False,
    as_markdown: Markdown = False,
) -> None:
    """Train and evaluate a recipe's rows, or a grid of settings. The same command again skips what is done.

    Example: rpp sweep recipe.toml --set train.temperature=0.5,1,2 --set train.soft_weight=0,1 --seeds 3
    """
    parse_axes(settings.set)
    load_recipe(recipe, {"out": str(settings.out or Path("sweeps"))})
    sweep_recipe(recipe, settings, as_json, as_markdown)


def sweep_recipe(recipe: Path, settings: SweepSettings, as_json: bool, as_markdown: bool = False) -> None:
    """Run a sweep and print its table; raise an error at the end if a run failed."""
    with loading():
        from pipeline.sweep import check_all_done, run_sweep
        from pipeline.tables import sweep_cells
    record = run_sweep(recipe, settings, note)
    print_table(json.loads(record.model_dump_json()), sweep_cells(record), as_json, as_markdown)
    figures = {name for row in record.rows for one in row.evals for name in one}
    if record.several_teachers and any(FIGURES[name].against_teacher for name in figures & set(FIGURES)):
        note(
            "note: figures compare each row with the teacher of its own cache; to compare all rows with one "
            "teacher, name its cache in [[eval]]"
        )
    if share := record.training_share():
        note(f"{record.seconds:,.0f} s, {share:.0%} of them in training steps")
    check_all_done(record)


@app.command(cls=OneCommand)
def compare(
    runs: Annotated[list[Path], typer.Argument(help="folders of runs", callback=as_written)],
    as_json: Json = False,
    as_markdown: Markdown = False,
) -> None:
    """Print what differs between runs, in settings and in results.

    Example: rpp compare runs/t1 runs/t2
    """
    from pipeline.compare import compare_runs
    from pipeline.tables import compared_cells

    compared = compare_runs(runs)
    print_table(compared, compared_cells(compared), as_json, as_markdown)


@app.command("eval", cls=OneCommand)
@settings_options(EvalOptions)
def eval_command(
    options: EvalOptions,
    student: Annotated[
        list[str],
        typer.Option(
            help="a run's folder, one in Hugging Face's layout, zero-shot for the cache's frozen model, or "
            "zero-shot:MODEL:PRETRAINED (zero-shot:MODEL if it is a folder) for another one; may be repeated",
            callback=as_written,
            rich_help_panel="Model",
        ),
    ],
    images: Annotated[
        str | None,
        typer.Option(
            help=DataSettings.model_fields["images"].description,
            callback=as_written,
            rich_help_panel="Data",
            show_default="those of --suite",
        ),
    ] = None,
    suite: Annotated[
        list[str] | None,
        typer.Option(
            help="many data sets: cross-dataset, domain, or a TOML file; may be repeated",
            callback=as_written,
            rich_help_panel="Data",
            show_default="those of --images",
        ),
    ] = None,
    root: Annotated[
        Path | None,
        typer.Option(
            help="folder that relative paths of the suite start from",
            callback=as_written,
            rich_help_panel="Data",
            show_default="the working directory",
        ),
    ] = None,
    skip_missing: Annotated[
        bool, flag("--skip-missing", "leave out missing data sets of the suite", "Data")
    ] = False,
    as_json: Json = False,
    as_markdown: Markdown = False,
) -> None:
    """Print figures of students, or of the frozen model (--student zero-shot --cache ./zarr).

    Example: rpp eval --student runs/t2 --images 'val/*.tar' --classes imagenet-1k
    """
    if bool(images) == bool(suite):
        raise UsageError("give either --images, for one data set, or --suite")
    if as_json and as_markdown:
        raise UsageError("give --json or --markdown, not both")
    if images:
        if root is not None or skip_missing:
            raise UsageError("--root and --skip-missing need --suite")
        check_evaluation(student, options, images)
        with loading():
            from pipeline.tables import evaluation_cells
            from student_train.evaluation.datasets import open_dataset
            from student_train.evaluation.evaluate import evaluate_models, load_models
            from student_train.evaluation.models import teacher_notes
        dataset = open_dataset(DataSettings(**selected_fields(DataOptions, options), images=images))
        models = load_models(student, options)
        rows = evaluate_models(models, dataset, options)
        for line in (*rows[0]["notes"], *teacher_notes([model for model, _ in models])):
            note(f"note: {line}")
        results: dict[str, Any] = rows[0] if len(rows) == 1 else {"rows": rows}
        cells = evaluation_cells(rows)
    else:
        for name, value in selected_fields(DataOptions, options).items():
            if value != DataOptions.model_fields[name].default:
                raise UsageError(
                    f"--{name.replace('_', '-')} cannot be used with --suite, which sets it for each data set"
                )
        suites = [load_suite(name, root) for name in suite or []]
        find_data(suites, skip_missing, check_layout)
        check_students(student, options)
        with loading():
            from pipeline.suite_run import check_all_evaluated, run_suites
            from pipeline.tables import suite_cells
        results = run_suites(suites, student, options, skip_missing, note)
        cells = suite_cells(results)
    print_table(results, cells, as_json, as_markdown)
    if suite:
        check_all_evaluated(results)


def selected_fields(kind: type[BaseModel], options: BaseModel) -> dict[str, Any]:
    """Return the options that are fields of a settings class."""
    return options.model_dump(include=set(kind.model_fields))


@app.command("predict", cls=OneCommand)
@settings_options(PredictSettings)
def predict_command(
    settings: PredictSettings,
    images: Annotated[list[Path], typer.Argument(help="picture files", callback=as_written)],
    as_json: Json = False,
) -> None:
    """Print the likely classes of pictures, by a student or the frozen model.

    Example: rpp predict cat.jpg dog.png --student runs/t2 --classes imagenet-21k --top 5
    """
    for image in images:
        require_picture(image)
    check_model_and_classes(settings)
    with loading():
        from student_train.evaluation.predict import predict
    predictions = predict(settings, images)
    if as_json:
        print_json([asdict(prediction) for prediction in predictions])
        return
    for prediction in predictions:
        print_line(printable(prediction.image))
        named = zip(prediction.probabilities, prediction.classes, prediction.ids, strict=True)
        for share, name, identity in named:
            which = f" ({identity})" if identity != name else ""  # classes may share a name
            print_line(printable(f"  {100 * share:5.1f} %  {name}{which}"))


@app.command("import", cls=OneCommand)
@settings_options(ImportSettings)
def import_command(
    settings: ImportSettings,
    checkpoint: Annotated[
        str,
        typer.Argument(
            help="of CoOp, POMP, KgCoOp, ProGrad, MaPLe, IVLP, VPT or PromptSRC", callback=as_written
        ),
    ],
) -> None:
    """Make a student of published prompts, to evaluate them like your own runs.

    Example: rpp import pomp/model.pth.tar-5 --model ViT-B-16 --pretrained openai --out runs/pomp
    """
    file = Path(local_file(checkpoint))
    require_checkpoint(file)
    require_model(settings.model, settings.pretrained)
    with loading():
        from student_train.interchange.published import import_prompts, import_summary
        from student_train.model.stored import read_student
    path = import_prompts(settings, file)
    record = read_student(path).record
    if record.imported is not None:
        note(import_summary(record.imported, record.prompts))
    print_line(path)


export = command_line("Write a student for other programs.", no_args_is_help=True)
app.add_typer(export, name="export")


@export.command("classifier", cls=OneCommand)
@settings_options(ClassifierSettings)
def classifier_command(settings: ClassifierSettings, as_json: Json = False) -> None:
    """Write class features of a vocabulary: safetensors, a plain [C, D] array (Detic, ZSSeg), and the names.

    Example: rpp export classifier --student runs/t2 --classes lvis.txt --out lvis
    """
    check_model_and_classes(settings)
    with loading():
        from student_train.interchange.classifier import export_classifier
    print_files(export_classifier(settings), as_json)


@export.command("huggingface", cls=OneCommand)
@settings_options(HuggingFaceSettings)
def huggingface_command(settings: HuggingFaceSettings, as_json: Json = False) -> None:
    """Write a folder in Hugging Face's layout: the prompts, config.json and a model card, ready for its hub.

    Example: rpp export huggingface --student runs/t2 --out t2-hub --results eval.json
    """
    require_student(settings.student)
    with loading():
        from student_train.interchange.huggingface import export_huggingface
    print_files(export_huggingface(settings), as_json)


@export.command("onnx", cls=OneCommand)
@settings_options(OnnxSettings)
def onnx_command(settings: OnnxSettings, as_json: Json = False) -> None:
    """Write the image tower with its prompts as an ONNX file, after comparing it with the student.

    Example: rpp export onnx --student runs/t2 --out image.onnx
    """
    require_onnx()
    require_student(settings.student)
    with loading("torch, open_clip and onnx"):
        from student_train.interchange.onnx_tower import export_onnx
    made = export_onnx(settings)
    if as_json:
        print_json(asdict(made))
        return
    for path in [made.file, *([made.data] if made.data else [])]:
        print_line(path)
    note(f"its features differ from the student's by at most {made.max_difference:.1e}")


@app.command(cls=OneCommand)
def report(
    folder: Annotated[
        Path,
        typer.Argument(metavar="RUN|SWEEP", help="the folder of a run or a sweep", callback=as_written),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            help="the file to write",
            callback=as_written,
            rich_help_panel=OUTPUT,
            show_default="report.html in the folder",
        ),
    ] = None,
    cache: Annotated[
        str | None,
        typer.Option(
            help="where the cache of the runs is now",
            callback=as_written,
            show_default="where it was, or at the same place relative to the run",
        ),
    ] = None,
) -> None:
    """Write one HTML file about a run or a sweep: tables, curves, soft labels. It needs no network.

    Example: rpp report runs/t2 --out report.html
    """
    from pipeline.report.gather import gather

    gather(folder)
    if cache is not None:
        require_cache(cache)
    with loading():
        from pipeline.report import make_report
    print_line(make_report(folder, out, cache))


@app.command(cls=OneCommand)
def models(
    name: Annotated[
        str | None,
        typer.Argument(
            help="a model of open_clip, or a folder with open_clip_config.json: more about this one",
            callback=as_written,
            show_default="all models",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Print open_clip's models: prompts in which towers, tags, and with NAME a rough cost of training.

    Example: rpp models ViT-B-16-SigLIP2
    """
    with loading():
        from pipeline.model_list import describe_model, list_models
    results, parts = list_models() if name is None else describe_model(name)
    if as_json:
        print_json(results)
        return
    for part in parts:
        print_line(part) if isinstance(part, str) else console.print(part)


@app.command(cls=OneCommand)
@settings_options(DemoSettings)
def demo(settings: DemoSettings, as_json: Json = False) -> None:
    """Run the main job on packaged pictures: one pass of the teacher, a sweep, tables. About three minutes on
    two cores.

    Example: rpp demo --out ./rpp-demo
    """
    make_folder(settings.out)
    with loading():
        from pipeline.demo.compare import run_demo
        from pipeline.demo.story import story
    results = run_demo(settings, note)
    if as_json:
        print_json(results)
        return
    for part in story(results):
        print_line(part) if isinstance(part, str) else console.print(part)


def main() -> None:
    """Entry point of `rpp`."""
    run_app(app)


if __name__ == "__main__":
    main()
