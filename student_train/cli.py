"""`rpp-train`: train a student on a cache."""

import time

import typer
from rich.console import Console

from student_train.runs.record import read_settings
from student_train.training.preflight import check_train, is_main_process
from student_train.training.settings import TrainSettings
from teacher_cache.options import (
    Json,
    OneCommand,
    Version,
    command_line,
    print_json,
    run_app,
    settings_options,
)
from teacher_cache.progress import loading

app = command_line("Stage two: a frozen CLIP with prompts learns from hard labels and cached soft labels.")


@app.command(cls=OneCommand)
@settings_options(TrainSettings)
def train_command(settings: TrainSettings, as_json: Json = False, version: Version = False) -> None:
    """Train prompts on a cache. Without further options: the teacher's own model, its images, both towers.

    Example: rpp-train --cache ./zarr --temperature 2 --soft-weight 1 --out runs/t2

    Several GPUs: torchrun --nproc-per-node 4 -m student_train.cli --cache ./zarr
    """
    if is_main_process():
        check_train(settings)
    with loading():
        from student_train.training.distributed import AgreedError
        from student_train.training.loop import train
    try:
        result = train(settings)
    except AgreedError as error:
        if is_main_process():
            raise
        time.sleep(1)  # torchrun ends all processes when one ends; let the main process print its error first
        raise typer.Exit(error.exit_code) from error
    if not is_main_process():
        return
    if as_json:
        print_json(result.__dict__)
        return
    console = Console(soft_wrap=True)
    record = read_settings(result.out)
    if (samples := record.get("samples_per_step", settings.batch_size)) < settings.batch_size:
        console.print(
            f"note: the run has {samples} samples, fewer than --batch-size; every step used all of them"
        )
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


if __name__ == "__main__":  # for torchrun
    main()
