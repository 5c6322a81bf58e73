"""A recipe's training with cached soft labels and with the teacher online, whole runs in turn.

The online run is that of `pipeline/demo/online.py`: the teacher's part of each batch is not read but computed
from pixels. Both must end with nearly the same loss: the cache holds float16.
With text prompts only, an online run needs the images for the teacher's sake, and what it computes serves
both sides.

A sweep is its runs and, with a cache, one build; evaluations and starts are the same for both and left out.

    EMOJI=emoji python benchmarks/online_teacher.py recipes/emoji-ablation.toml --runs 60 --build-seconds 24
"""

import json
import math
import statistics
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer
from timing import machine

from pipeline.demo.online import OnlineRun
from pipeline.recipe import load_recipe
from student_train.model.settings import PromptSettings
from student_train.training.loop import RunResult, train
from student_train.training.settings import TrainSettings

NEAR = 0.01  # of both losses after the last step


def main(
    recipe: Annotated[Path, typer.Argument(help="its table `train` is measured")],
    runs: Annotated[int, typer.Option(help="runs of the sweep")],
    build_seconds: Annotated[float, typer.Option(help="what building the cache took")],
    rounds: Annotated[int, typer.Option(help="how often each run is timed")] = 3,
) -> None:
    """Time whole runs in turn and print the figures as JSON."""
    settings = load_recipe(recipe).train
    found = {towers: measure(settings, towers, runs, build_seconds, rounds) for towers in ("both", "text")}
    print(json.dumps({"recipe": recipe.name, **found, "machine": machine()}, indent=1))


def measure(
    settings: TrainSettings, towers: str, runs: int, build_seconds: float, rounds: int
) -> dict[str, Any]:
    """Median seconds of a run of both kinds, and what a sweep of such runs takes."""
    prompts = PromptSettings(**{**settings.prompts.model_dump(), "towers": towers})
    settings = settings.model_copy(update={"prompts": prompts})
    taken: dict[str, list[RunResult]] = {"cached": [], "online": []}
    for number in range(rounds):
        for kind in list(taken)[:: -1 if number % 2 else 1]:
            with tempfile.TemporaryDirectory() as folder:
                own = settings.model_copy(update={"out": Path(folder) / "run"})
                taken[kind].append(train(own, OnlineRun if kind == "online" else None))
    cached, online = (statistics.median(result.seconds for result in taken[kind]) for kind in taken)
    losses = {kind: results[0].loss for kind, results in taken.items()}
    assert math.isclose(losses["cached"], losses["online"], abs_tol=NEAR), losses
    with_cache = build_seconds + runs * cached
    return {
        "steps": taken["cached"][0].steps,
        "seconds": {"cached": cached, "online": online},
        "all_seconds": {kind: [result.seconds for result in results] for kind, results in taken.items()},
        "loss": losses,
        "sweep_seconds": {"cached": with_cache, "online": runs * online},
        "sweep_online_over_cached": runs * online / with_cache,
    }


if __name__ == "__main__":
    typer.run(main)
