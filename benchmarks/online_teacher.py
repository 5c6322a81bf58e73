"""A recipe's training with cached soft labels and with the teacher online, whole runs in turn.

The online run is `train` itself; only the teacher's part of each batch is not read but computed from the
batch's pixels, by the same frozen model. Both must end with nearly the same loss: the cache holds float16.
With text prompts only, an online run needs the images for the teacher's sake, and what it computes serves
both sides.

A sweep is its runs and, with a cache, one build; evaluations and starts are the same for both and left out.

    EMOJI=emoji python benchmarks/online_teacher.py recipes/emoji-ablation.toml --runs 60 --build-seconds 24
"""

import json
import math
import statistics
import tempfile
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
import typer
from timing import machine

from pipeline.recipe import load_recipe
from student_train.data.join import Batch, Join
from student_train.model.settings import PromptSettings
from student_train.training.inputs import make_join
from student_train.training.loop import RunResult, train
from student_train.training.settings import TrainSettings
from teacher_cache.softlabels import TeacherCache
from teacher_cache.teacher.openclip import LoadedModel
from teacher_cache.views import normalise

NEAR = 0.01  # of both losses after the last step


def main(
    recipe: Annotated[Path, typer.Argument(help="its [train] is measured")],
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
                taken[kind].append(train_online(own) if kind == "online" else train(own))
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


def train_online(settings: TrainSettings) -> RunResult:
    """Train, the teacher looking at every batch."""

    def online_join(settings: TrainSettings, cache: TeacherCache, base: LoadedModel, *others: Any) -> Any:
        # without features in the cache, images are read also where no vision prompt needs them
        with patch.object(TeacherCache, "keeps_image_features", False):
            join = make_join(settings, cache, base, *others)
        join.batches = Online(join, base, settings)  # type: ignore[method-assign, assignment]
        return join

    with patch.dict(train.__globals__, make_join=online_join):
        return train(settings)


class Online:
    """A join's batches, with what the teacher says of their pixels in place of what the cache holds."""

    def __init__(self, join: Join, base: LoadedModel, settings: TrainSettings) -> None:
        self._batches, self._base = join.batches, base
        self._shares_features = settings.prompts.towers == "text"

    def __call__(self, first_step: int, last_step: int) -> Generator[Batch, None, None]:
        for batch in self._batches(first_step, last_step):
            assert batch.pixels is not None
            preprocess = self._base.preprocess
            with torch.no_grad():
                pixels = normalise(batch.pixels, preprocess.mean, preprocess.std)
                features_BD = F.normalize(self._base.model.encode_image(pixels), dim=-1)
            yield replace(
                batch,
                teacher={"image_features": features_BD},
                student_features=features_BD if self._shares_features else None,
            )


if __name__ == "__main__":
    typer.run(main)
