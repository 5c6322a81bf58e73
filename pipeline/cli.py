"""`rpp`: both stages chained, evaluation, reports, single pictures, import and export, the demo."""

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import BaseModel
from rich.console import Console

from pipeline.compare import compare_runs
from pipeline.demo.compare import DemoSettings, demo_table, run_demo
from pipeline.recipe import load_recipe
from pipeline.report import make_report
from pipeline.run import run_recipe
from pipeline.suite import check_all_evaluated, load_suite, run_suites
from pipeline.sweep import SweepSettings, check_all_done, run_sweep
from pipeline.tables import compared_cells, evaluation_cells, suite_cells, sweep_cells
from student_train.classifier import ClassifierSettings, export_classifier
from student_train.datasets import DataOptions, DataSettings, open_dataset
from student_train.evaluate import EvalOptions, evaluate_models, load_models
from student_train.huggingface import HuggingFaceSettings, export_huggingface
from student_train.onnx_tower import OnnxSettings, export_onnx
from student_train.predict import PredictSettings, predict
from student_train.published import ImportSettings, import_prompts
from teacher_cache.errors import UsageError, printable
from teacher_cache.options import run_app, settings_options

app = typer.Typer(
    help="Prompt pretraining of CLIP from a teacher that runs once.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
Json = Annotated[bool, typer.Option("--json", help="print JSON on standard output")]
Markdown = Annotated[bool, typer.Option("--markdown", help="print the table in Markdown")]
# A pipe has no width: a table that is cut to 80 columns there would lose figures.
WIDE = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 400
console = Console(soft_wrap=True, width=WIDE)
remarks = Console(stderr=True, soft_wrap=True)


def note(line: str) -> None:
    """A line for the user, on standard error."""
    remarks.print(line, markup=False, highlight=False)


@app.command()
def run(recipe: Annotated[Path, typer.Argument(help="a TOML recipe")], as_json: Json = False) -> None:
    """Build the cache, train, evaluate. Called again, it goes on where it stopped.

    Example: rpp run recipes/imagenet21k-vitb16-all-classes.toml
    """
    results = run_recipe(load_recipe(recipe), note)
    if as_json:
        print(json.dumps(results, ensure_ascii=False))
        return
    console.print(evaluation_cells(results["evals"]))


@app.command()
@settings_options(SweepSettings)
def sweep(
    settings: SweepSettings,
    recipe: Annotated[Path, typer.Argument(help="a TOML recipe")],
    as_json: Json = False,
    as_markdown: Markdown = False,
) -> None:
    """Train and evaluate a grid of settings over one cache. Called again, it goes on and skips what is done.

    Example: rpp sweep recipe.toml --set train.temperature=0.5,1,2 --set train.soft_weight=0,1 --seeds 3
    """
    record = run_sweep(recipe, settings, note)
    if as_json:
        print(record.model_dump_json())
    elif as_markdown:
        print(sweep_cells(record).markdown())
    else:
        console.print(sweep_cells(record))
    check_all_done(record)


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(help="folders of runs")],
    as_json: Json = False,
    as_markdown: Markdown = False,
) -> None:
    """What differs between runs, in settings and in results.

    Example: rpp compare runs/t1 runs/t2
    """
    compared = compare_runs(runs)
    if as_json:
        print(json.dumps(compared, ensure_ascii=False))
    elif as_markdown:
        print(compared_cells(compared).markdown())
    else:
        console.print(compared_cells(compared))


@app.command("eval")
@settings_options(EvalOptions)
def eval_command(
    options: EvalOptions,
    student: Annotated[
        list[str],
        typer.Option(
            help="a run's folder, one in Hugging Face's layout, or zero-shot for the cache's frozen model; "
            "may be repeated"
        ),
    ],
    images: Annotated[str | None, typer.Option(help=DataSettings.model_fields["images"].description)] = None,
    suite: Annotated[
        list[str] | None,
        typer.Option(help="many data sets: cross-dataset, domain, or a TOML file; may be repeated"),
    ] = None,
    root: Annotated[Path | None, typer.Option(help="where the suite's places start from")] = None,
    skip_missing: Annotated[
        bool, typer.Option("--skip-missing", help="do without data sets not there")
    ] = False,
    as_json: Json = False,
    as_markdown: Markdown = False,
) -> None:
    """Figures of students, or of the frozen model (--student zero-shot --cache ./zarr).

    Example: rpp eval --student runs/t2 --images 'val/*.tar' --classes imagenet-1k
    """
    if bool(images) == bool(suite):
        raise UsageError("name what to evaluate on: one data set by --images, or --suite")
    if as_json and as_markdown:
        raise UsageError("--json or --markdown, not both")
    if images:
        if root is not None or skip_missing:
            raise UsageError("--root and --skip-missing belong to --suite")
        dataset = open_dataset(DataSettings(**_of(DataOptions, options), images=images))
        rows = evaluate_models(load_models(student, options), dataset, options)
        for line in rows[0]["notes"]:
            note(f"note: {line}")
        results: dict[str, Any] = rows[0] if len(rows) == 1 else {"rows": rows}
        cells = evaluation_cells(rows)
    else:
        for name, value in _of(DataOptions, options).items():
            if value != DataOptions.model_fields[name].default:
                raise UsageError(
                    f"--{name.replace('_', '-')} is said by the suite, for each of its data sets"
                )
        suites = [load_suite(name, root) for name in suite or []]
        results = run_suites(suites, student, options, skip_missing, note)
        cells = suite_cells(results)
    if as_json:
        print(json.dumps(results, ensure_ascii=False))
    elif as_markdown:
        print(cells.markdown())
    else:
        console.print(cells)
    if suite:
        check_all_evaluated(results)


def _of(kind: type[BaseModel], options: BaseModel) -> dict[str, Any]:
    return options.model_dump(include=set(kind.model_fields))


@app.command("predict")
@settings_options(PredictSettings)
def predict_command(
    settings: PredictSettings,
    images: Annotated[list[Path], typer.Argument(help="picture files")],
    as_json: Json = False,
) -> None:
    """The likely classes of pictures, by a student or the frozen model.

    Example: rpp predict cat.jpg dog.png --student runs/t2 --classes imagenet-21k --top 5
    """
    predictions = predict(settings, images)
    if as_json:
        print(json.dumps([asdict(prediction) for prediction in predictions], ensure_ascii=False))
        return
    for prediction in predictions:
        console.print(prediction.image, markup=False, highlight=False)
        for share, name in zip(prediction.probabilities, prediction.classes, strict=True):
            console.print(printable(f"  {100 * share:5.1f} %  {name}"), markup=False, highlight=False)


@app.command("import")
@settings_options(ImportSettings)
def import_command(
    settings: ImportSettings,
    checkpoint: Annotated[Path, typer.Argument(help="a checkpoint of CoOp's or POMP's prompt learner")],
) -> None:
    """Make a student of published prompts, to evaluate them as one's own runs are.

    Example: rpp import pomp/model.pth.tar-5 --model ViT-B-16 --pretrained openai --out runs/pomp
    """
    console.print(str(import_prompts(settings, checkpoint)), markup=False, highlight=False)


export = typer.Typer(help="Write a student for other programs.", no_args_is_help=True)
app.add_typer(export, name="export")


@export.command("classifier")
@settings_options(ClassifierSettings)
def classifier_command(settings: ClassifierSettings, as_json: Json = False) -> None:
    """Class features of a vocabulary: safetensors, a plain [C, D] array (Detic, ZSSeg), and the names.

    Example: rpp export classifier --student runs/t2 --classes lvis.txt --out lvis
    """
    files = export_classifier(settings)
    if as_json:
        print(json.dumps({name: str(path) for name, path in files.items()}))
        return
    for path in files.values():
        console.print(str(path), markup=False, highlight=False)


@export.command("huggingface")
@settings_options(HuggingFaceSettings)
def huggingface_command(settings: HuggingFaceSettings, as_json: Json = False) -> None:
    """A folder in Hugging Face's layout: the prompts, config.json and a model card, ready for its hub.

    Example: rpp export huggingface --student runs/t2 --out t2-hub --results eval.json
    """
    files = export_huggingface(settings)
    if as_json:
        print(json.dumps({name: str(path) for name, path in files.items()}))
        return
    for path in files.values():
        console.print(str(path), markup=False, highlight=False)


@export.command("onnx")
@settings_options(OnnxSettings)
def onnx_command(settings: OnnxSettings, as_json: Json = False) -> None:
    """The image tower with its prompts as an ONNX file, compared with the student before it is kept.

    Example: rpp export onnx --student runs/t2 --out image.onnx
    """
    made = export_onnx(settings)
    if as_json:
        print(json.dumps(asdict(made), default=str))
        return
    for path in [made.file, *([made.data] if made.data else [])]:
        console.print(str(path), markup=False, highlight=False)
    note(f"its features differ from the student's by {made.max_difference:.1e} at most")


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(metavar="RUN|SWEEP", help="the folder of a run or a sweep")],
    out: Annotated[
        Path | None, typer.Option(help="the file to write [default: report.html in the folder]")
    ] = None,
) -> None:
    """One HTML file about a run or a sweep: tables, curves, heat maps, soft labels; it needs no network.

    Example: rpp report runs/t2 --out report.html
    """
    console.print(str(make_report(folder, out)), markup=False, highlight=False)


@app.command()
@settings_options(DemoSettings)
def demo(settings: DemoSettings, as_json: Json = False) -> None:
    """The main job on packaged pictures: cache, nine trainings, a table. One to two minutes on two cores.

    Example: rpp demo --out ./rpp-demo
    """
    results = run_demo(settings, note)
    if as_json:
        print(json.dumps(results, ensure_ascii=False))
        return
    console.print(demo_table(results))


def main() -> None:
    """Entry point of `rpp`."""
    run_app(app)


if __name__ == "__main__":
    main()
