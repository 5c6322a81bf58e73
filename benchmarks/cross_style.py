"""How well prompts trained on some drawing styles of emoji transfer to other styles and new classes.

Three protocols with the demo's student as the teacher, which was itself trained on Twemoji and EmojiOne:

- domain: prompts learnt on Noto and Twemoji, tested on Noto v1, EmojiOne and Fluent, all 1,205 classes;
- base-to-new: learnt on the base half of the classes, tested on both halves of Noto v1 and Fluent;
- few-shot: learnt on the base half, then adapted to the new half with 1, 2 and 4 pictures a class of four
  styles, against the same from fresh prompts; tested on Fluent's new half.

All trained rows of a table share every setting except the one that the row names; nothing was tuned on a test
style. If it is stopped, run it again to continue.

    python benchmarks/cross_style.py --emoji emoji --out cross-style --seeds 3
"""

import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.demo.clips import STUDENT, unpack_clip
from pipeline.suite import Suite, SuiteData
from pipeline.suite_run import run_suites
from student_train.evaluation.settings import EvalOptions
from student_train.figures import FIGURES, ZERO_SHOT
from student_train.markdown import table as markdown_table
from student_train.model.settings import PromptSettings
from student_train.training.loop import train
from student_train.training.settings import TrainSettings
from teacher_cache.build import build_cache
from teacher_cache.command_settings import BuildSettings, ViewPolicy

LEARNT, FEW_SHOT = "{noto,twemoji}.tar", "{noto,noto-v1,twemoji,emojione}.tar"
FROZEN = "zero-shot"
PRETRAINED = "QKV, hard + soft"
ROWS: dict[str, dict[str, Any]] = {
    "shared, hard": {"prompt_structure": "shared", "soft_weight": 0.0},
    "shared, hard + soft": {"prompt_structure": "shared"},
    "QKV, hard": {"soft_weight": 0.0},
    PRETRAINED: {},
    "QKV, hard + soft, text only": {"towers": "text"},
}
SHOTS = (1, 2, 4)


def main(
    emoji: Annotated[Path, typer.Option(help="folder of the five styles' tars and classes.txt")],
    out: Annotated[Path, typer.Option(help="folder for caches, runs and figures")] = Path("cross-style"),
    seeds: Annotated[int, typer.Option(help="trainings of each row")] = 3,
    epochs: Annotated[int, typer.Option(help="passes over the pictures")] = 5,
) -> None:
    """Build the caches, train every row with every seed, and print three tables."""
    started = time.monotonic()
    study = Study(emoji, out, seeds, epochs)
    tables = {"domain": study.domain(), "base-to-new": study.base_to_new(), "few-shot": study.few_shot()}
    (out / "results.json").write_text(json.dumps(tables, indent=1), encoding="utf-8")
    for name, rows in tables.items():
        print(f"\n{name}\n\n{table(rows)}")
    print(f"\n{seeds} seeds, {time.monotonic() - started:.0f} s in all")


class Study:
    """Caches and runs below one folder."""

    def __init__(self, emoji: Path, out: Path, seeds: int, epochs: int) -> None:
        self.emoji, self.out, self.seeds, self.epochs = emoji, out, seeds, epochs
        self.cache = self._build("learnt", LEARNT)

    def domain(self) -> list[dict[str, Any]]:
        """All classes, three styles that no student has seen."""
        styles = {"Noto v1": "noto-v1", "EmojiOne": "emojione", "Fluent": "fluent-flat"}
        runs = {row: self._runs(row, "all", self.cache, differs) for row, differs in ROWS.items()}
        return self._measured(runs, styles, ("accuracy", "calibration", "agreement"))

    def base_to_new(self) -> list[dict[str, Any]]:
        """Trained on the base half, tested on both."""
        styles = {"Noto v1": "noto-v1", "Fluent": "fluent-flat"}
        runs = {row: self._runs(row, "base", self.cache, differs) for row, differs in ROWS.items()}
        return self._measured(runs, styles, ("base-to-new",))

    def few_shot(self) -> list[dict[str, Any]]:
        """The new half with few pictures a class, from pretrained and from fresh prompts."""
        cache = self._build("few-shot", FEW_SHOT)
        pretrained = self._runs(PRETRAINED, "base", self.cache, ROWS[PRETRAINED])
        runs = {f"{PRETRAINED}, learnt on the base half": pretrained}
        for shots in SHOTS:
            for start, inits in (("fresh", [None] * self.seeds), ("pretrained", pretrained)):
                row = f"{shots} shots from {start} prompts"
                differs = [{"shots": shots, "init": init} for init in inits]
                runs[row] = self._runs(row, "new", cache, *differs)
        return self._measured(runs, {"Fluent": "fluent-flat"}, ("accuracy",), class_subset="new")

    def _build(self, name: str, images: str) -> str:
        path = self.out / f"{name}.zarr"
        build_cache(
            BuildSettings(
                images=str(self.emoji / images),
                classes=str(self.emoji / "classes.txt"),
                out=str(path),
                teacher=str(unpack_clip(STUDENT, self.out)),
                view_policy=ViewPolicy(views=4, view_scale_min=0.5, view_flip=0.0),
            )
        )
        return str(path)

    def _runs(self, row: str, classes: str, cache: str, *differs: dict[str, Any]) -> list[str]:
        """The row's runs, one a seed; `differs` holds one dictionary for all of them or one each."""
        folders = []
        for seed in range(self.seeds):
            own = dict(differs[seed % len(differs)])
            prompts = {name: own.pop(name) for name in ("prompt_structure", "carry", "towers") if name in own}
            folder = self.out / "runs" / f"{classes} {row} {seed}".replace(", ", "-").replace(" ", "-")
            settings = TrainSettings(
                cache=cache,
                out=folder,
                resume=(folder / "settings.json").is_file(),
                prompts=PromptSettings(**prompts),
                class_subset=classes,
                epochs=self.epochs,
                batch_size=32,
                lr=0.01,
                seed=seed,
                **own,
            )
            train(settings)
            folders.append(str(folder))
        return folders

    def _measured(
        self, runs: dict[str, list[str]], styles: dict[str, str], metrics: Sequence[Any], **others: Any
    ) -> list[dict[str, Any]]:
        """Of each row and style the figures of all seeds, the frozen model's first."""
        data = tuple(
            SuiteData(
                name=name,
                images=str(self.emoji / f"{style}.tar"),
                classes=str(self.emoji / "classes.txt"),
                **others,
            )
            for name, style in styles.items()
        )
        students = [ZERO_SHOT, *(folder for folders in runs.values() for folder in folders)]
        options = EvalOptions(cache=self.cache, metrics=tuple(metrics))
        found = run_suites([Suite(name="styles", data=data)], students, options)["rows"]
        rows = []
        for name in styles:
            for row, folders in {FROZEN: [ZERO_SHOT], **runs}.items():
                own = [one for one in found if one["data"] == name and one["student"] in folders]
                figures = {figure: [one[figure] for one in own] for figure in FIGURES if figure in own[0]}
                rows.append({"style": name, "prompts": row, "samples": own[0]["samples"], **figures})
        return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Mean ± sample standard deviation over seeds, in Markdown."""
    figures = [figure for figure in FIGURES if figure in rows[0]]
    cells = [
        [row["style"], row["prompts"], *(_spread(row[figure], figure) for figure in figures)] for row in rows
    ]
    headings = ["tested on", "prompts", *(FIGURES[figure].heading for figure in figures)]
    return "\n".join(markdown_table(headings, cells))


def _spread(values: Sequence[float], figure: str) -> str:
    scale = FIGURES[figure].scale
    digits = 1 if scale == 100 else 3
    mean = f"{scale * statistics.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {scale * statistics.stdev(values):.{digits}f}"


if __name__ == "__main__":
    typer.run(main)
