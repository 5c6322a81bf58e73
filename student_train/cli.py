"""`rpp-train`: train a student on a cache."""

import json
import time
from typing import Annotated

import typer
from rich.console import Console

from student_train.distributed import AgreedError, speaks
from student_train.run_record import read_settings
from student_train.settings import TrainSettings
from student_train.train import train
from teacher_cache.options import run_app, settings_options

app = typer.Typer(
    help="Stage two: a frozen CLIP with prompts learns from hard labels and cached soft labels.",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command()
@settings_options(TrainSettings)
def train_command(
    settings: TrainSettings,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON on standard output")] = False,
) -> None:
    """Train prompts on a cache. Without further options: the teacher's own model, its images, both towers.

    Example: rpp-train --cache ./zarr --temperature 2 --soft-weight 1 --out runs/t2

    Several GPUs: torchrun --nproc-per-node 4 -m student_train.cli --cache ./zarr
    """
    try:
        result = train(settings)
    except AgreedError as error:
        if speaks():
            raise
        time.sleep(1)  # torchrun ends all processes when one has ended: the first one says the line before
        raise typer.Exit(error.exit_code) from error
    if not speaks():
        return
    if as_json:
        print(json.dumps(result.__dict__, default=str))
        return
    console = Console(soft_wrap=True)
    record = read_settings(result.out)
    if (samples := record.get("samples_per_step", settings.batch_size)) < settings.batch_size:
        console.print(f"note: the run has {samples} samples, fewer than --batch-size: a step had all of them")
    for line in record.get("never_read", []):
        console.print(f"note: {line}", markup=False)
    console.print(
        f"{result.out}: {result.steps} steps from {result.mode}, {result.samples_per_second:.0f} samples/s, "
        f"{result.seconds:.1f} s of which {result.wait_seconds:.1f} s waiting for data, last loss "
        f"{result.loss:.4f}",
        markup=False,
    )


def main() -> None:
    """Entry point of `rpp-train`."""
    run_app(app)


if __name__ == "__main__":  # as torchrun starts it
    main()
