"""`rpp`: both stages chained, evaluation, single pictures, import and export of students, the demo."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from pipeline.demo.compare import DemoSettings, demo_table, run_demo
from pipeline.recipe import load_recipe
from pipeline.run import run_recipe
from student_train.classifier import ClassifierSettings, export_classifier
from student_train.evaluate import EvalSettings, evaluate
from student_train.huggingface import HuggingFaceSettings, export_huggingface
from student_train.onnx_tower import OnnxSettings, export_onnx
from student_train.predict import PredictSettings, predict
from student_train.published import ImportSettings, import_prompts
from teacher_cache.options import run_app, settings_options

app = typer.Typer(
    help="Prompt pretraining of CLIP from a teacher that runs once.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
Json = Annotated[bool, typer.Option("--json", help="print JSON on standard output")]
console = Console(soft_wrap=True)
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
    console.print(evaluation_table(results["evals"]))


@app.command("eval")
@settings_options(EvalSettings)
def eval_command(settings: EvalSettings, as_json: Json = False) -> None:
    """Accuracy of a student, or of the frozen model (--student zero-shot --cache ./zarr).

    Example: rpp eval --student runs/t2 --images 'val/*.tar' --classes imagenet-1k
    """
    result = evaluate(settings)
    for line in result["notes"]:
        note(f"note: {line}")
    if as_json:
        print(json.dumps(result, ensure_ascii=False))
        return
    console.print(evaluation_table([result]))


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
            console.print(f"  {100 * share:5.1f} %  {name}", markup=False, highlight=False)


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
@settings_options(DemoSettings)
def demo(settings: DemoSettings, as_json: Json = False) -> None:
    """The main job on packaged pictures: cache, nine trainings, a table. About three minutes on two cores.

    Example: rpp demo --out ./rpp-demo
    """
    results = run_demo(settings, note)
    if as_json:
        print(json.dumps(results, ensure_ascii=False))
        return
    console.print(demo_table(results))


def evaluation_table(evals: list[dict[str, Any]]) -> Table:
    """One row an evaluation."""
    table = Table("student", "images", "classes", "samples", "top-1 %", "top-5 %", "unreadable", "no label")
    for result in evals:
        figures = [f"{100 * result[name]:.2f}" for name in ("top1", "top5")]
        counts = [str(result[name]) for name in ("classes", "samples")]
        table.add_row(
            result["student"],
            result["images"],
            *counts,
            *figures,
            str(result["skipped"]),
            str(result["without_label"]),
        )
    return table


def main() -> None:
    """Entry point of `rpp`."""
    run_app(app)


if __name__ == "__main__":
    main()
