"""How a step's time grows with the number of classes, and an epoch's reading with the number of rows.

Classes: forward and backward of the prompted text tower over the first 1,000, 2,000, ... names of
`imagenet-22k`, with the logits and the loss of a batch against them. Rows: an epoch through the join, from a
real cache by blocks, with the epoch's order. The exponent is the slope of a least-squares line through
(log size, log seconds): 1 is linear.

    python benchmarks/scaling.py --json
    python benchmarks/scaling.py --model ViT-B-16 --device cuda
"""

import json
import tempfile
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import synthetic
import torch
import typer
from rich.console import Console
from timing import in_turn, machine, record

from student_train.data.join import Join
from student_train.model.settings import PromptSettings
from student_train.model.student import PromptedCLIP
from student_train.training.losses import StepLogits, TotalLoss
from student_train.training.settings import TrainSettings
from teacher_cache import open_cache
from teacher_cache.classes.vocabulary import load_vocabulary
from teacher_cache.encodings import ClassHead
from teacher_cache.teacher.openclip import load_model
from teacher_cache.teacher.teacher import choose_device

BATCH = 256
FIRST_CLASSES, FIRST_ROWS = 1000, 10_000


def main(
    model: Annotated[
        str, typer.Option(help="small, or an open_clip model; its weights are random")
    ] = "small",
    classes: Annotated[int, typer.Option(help="largest number of classes")] = 21_841,
    rows: Annotated[int, typer.Option(help="largest number of rows")] = 1_000_000,
    rounds: Annotated[int, typer.Option(help="how often each size is timed")] = 3,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")] = "auto",
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Time all sizes in turn, print seconds and the fits."""
    place = choose_device(device)
    with tempfile.TemporaryDirectory() as folder:
        report = {
            "classes": by_classes(model, sizes(FIRST_CLASSES, classes), rounds, place, Path(folder)),
            "rows": by_rows(sizes(FIRST_ROWS, rows), rounds, Path(folder)),
            "machine": machine(),
        }
    if as_json:
        print(json.dumps(report))
        return
    console = Console(soft_wrap=True, highlight=False)
    for name in ("classes", "rows"):
        for size, times in report[name]["times"].items():
            console.print(f"{size:>9} {name}: {times['seconds']:8.3f} s {times['cpu_seconds']:8.3f} CPU s")
        console.print(f"{name}: seconds grow as size^{report[name]['exponent']:.2f}")


def sizes(first: int, last: int) -> list[int]:
    """first, twice as much, ..., and last."""
    doubled = [first * 2**k for k in range(64) if first * 2**k < last]
    return [*doubled, last]


def fitted(times: dict[str, Any]) -> dict[str, Any]:
    """The times and the exponents of their growth."""
    of = record(times)
    slopes = {
        name: float(np.polyfit(np.log([int(s) for s in of]), np.log([t[name] for t in of.values()]), 1)[0])
        for name in ("seconds", "cpu_seconds")
    }
    return {"times": of, "exponent": slopes["seconds"], "exponent_cpu": slopes["cpu_seconds"]}


def by_classes(
    model: str, numbers: list[int], rounds: int, device: torch.device, folder: Path
) -> dict[str, Any]:
    """A step over the first classes of imagenet-22k."""
    if model == "small":
        name = str(synthetic.write_model(folder / "model"))
    else:
        name = str(synthetic.write_random(folder / "model", model))
    student = PromptedCLIP(load_model(name, device=device), PromptSettings(towers="text"))
    tokens = student.tokenize_names(load_vocabulary("imagenet-22k").names)
    embedding = student.encode_text(tokens[:2]).shape[1]
    features_BD = torch.nn.functional.normalize(torch.randn(BATCH, embedding, device=device), dim=-1)
    learnable = [parameter for parameter in student.parameters() if parameter.requires_grad]

    def step(number: int) -> None:
        logits_BC = ClassHead(student.encode_text(tokens[:number], normalize=True), 100.0).logits(features_BD)
        targets_B = torch.randint(number, (BATCH,), device=device)
        loss = TotalLoss(TrainSettings(cache="none"))(
            StepLogits(logits_BC, torch.randn_like(logits_BC), targets_B)
        )["loss"]
        torch.autograd.grad(loss, learnable)

    times = in_turn({str(n): (lambda n=n: step(n)) for n in numbers}, rounds)
    return {"model": model, "batch": BATCH, **fitted(times)}


def by_rows(numbers: list[int], rounds: int, folder: Path) -> dict[str, Any]:
    """An epoch of reading."""
    model = synthetic.write_model(folder / "of-rows")
    cache = open_cache(synthetic.write_cache(folder / "rows.zarr", model, max(numbers), "imagenet-1k"))

    def epoch(number: int) -> None:
        join = Join(cache, np.arange(number), BATCH, 0, student_features=cache, reader="blocks")
        for _ in join.batches(0, join.steps_per_epoch):
            pass

    times = in_turn({str(n): (lambda n=n: epoch(n)) for n in numbers}, rounds)
    return {"embedding": cache.header.embedding, "batch": BATCH, **fitted(times)}


if __name__ == "__main__":
    typer.run(main)
