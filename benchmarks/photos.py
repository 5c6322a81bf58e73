"""The study on photographs: learning rates, cost, transfer, and tables of `recipes/photos.toml`.

`tune` chooses the learning rate of every row of the recipe, each from the same values, on a split of
`prompt-train.parquet`: prompts learn from 120 pictures a class, and the harmonic mean of base and new classes
on the other 30 decides. `cost` times a run with cached labels and the same run with the teacher online.
`transfer` tests the prompts on emoji and prompts of emoji on photographs. `probe` fits linear classifiers to
frozen image features: what labels can gain without other features. `record` writes all of it into
`docs/data/photos.json`, and `tables` makes the tables of docs/results.md from that file alone.

    python benchmarks/photos.py tune --photos photos --out photos-tune
    PHOTOS=photos rpp run recipes/photos.toml
    python benchmarks/photos.py cost --photos photos
    python benchmarks/photos.py transfer --photos photos --emoji emoji
    python benchmarks/photos.py probe --photos photos
    python benchmarks/photos.py record && python benchmarks/photos.py tables
"""

import json
import os
import re
import statistics
import tempfile
import time
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import open_clip
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
import typer
from PIL import Image
from timing import machine
from torch import Tensor

from pipeline.demo.online import OnlineRun
from pipeline.recipe import load_recipe
from pipeline.seeds import figure_text, spread
from pipeline.settings import SweepSettings
from pipeline.sweep import run_sweep
from pipeline.sweep_record import SweepRow, read_sweep
from student_train.evaluation.evaluate import evaluate
from student_train.evaluation.settings import EvalSettings
from student_train.markdown import table as markdown_table
from student_train.runs.record import STUDENT
from student_train.training.loop import Run, train
from teacher_cache.build import build_cache
from teacher_cache.classes.vocabulary import load_vocabulary
from teacher_cache.files.atomic_write import atomic_write_text
from teacher_cache.images.decode import decode_image
from teacher_cache.images.index import index_images
from teacher_cache.images.reader import ImageReader

RECIPE = Path("recipes") / "photos.toml"
SWEEP = Path("sweeps") / "photos"
FOLDER = Path("photos-study")  # of cost and transfer
RECORD = Path("docs") / "data" / "photos.json"
RATES = (0.00125, 0.005, 0.02, 0.08)
DECAYS = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3)  # of linear classifiers
VALIDATION_SHARE = 0.2
SEED = 0
LR = re.compile(r"^lr = .*$", re.MULTILINE)
TRANSFERRED = ("hard", "soft, teacher, T = 1", "text, soft")
HEADINGS = {
    "base": "base %",
    "new": "new %",
    "harmonic": "harmonic %",
    "agreement": "teacher agrees %",
    "kl": "KL to teacher",
    "ece": "ECE",
}

main = typer.Typer(add_completion=False, help=__doc__)


def split_pictures(source: Path, fit: Path, validation: Path) -> tuple[int, int]:
    """Write the two parts of a Parquet file of pictures, with the same share of every label.

    Returns:
        The numbers of pictures.
    """
    table = pq.read_table(source)
    labels = table["label"].to_numpy()
    random = np.random.default_rng(SEED)
    held = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        rows = random.permutation(np.flatnonzero(labels == label))
        held[rows[: round(VALIDATION_SHARE * len(rows))]] = True
    fit.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table.filter(pa.array(~held)), fit)
    pq.write_table(table.filter(pa.array(held)), validation)
    return int((~held).sum()), int(held.sum())


def tuning_recipe(text: str, folder: Path) -> str:
    """Return the recipe for the two parts, without learning rates: one seed, everything else as it is."""
    text = LR.sub("", text)
    text = text.replace("$PHOTOS/prompt-train.parquet", str(folder / "fit.parquet"))
    text = text.replace("$PHOTOS/test.parquet", str(folder / "validation.parquet"))
    text = re.sub(r'"zarr/', f'"{folder}/', text)
    text = re.sub(r"^seeds = .*$", "seeds = 1", text, flags=re.MULTILINE)
    tomllib.loads(text)
    return text


def best_rates(rows: list[SweepRow]) -> dict[str, float]:
    """Return the learning rate with the highest harmonic mean of each row.

    Raises:
        SystemExit: a run failed.
    """
    found: dict[str, tuple[float, float]] = {}
    for row in rows:
        if row.state != "done":
            raise SystemExit(f"{row.run} is {row.state}: {row.why}")
        score = row.evals[0]["harmonic"], row.settings["lr"]
        name = row.settings["row"]
        found[name] = max(found.get(name, score), score)
    return {name: rate for name, (_, rate) in found.items()}


def with_rates(text: str, rates: dict[str, float]) -> str:
    """Return the recipe with the learning rates of its rows, in whose tables `lr` is the last line."""
    names = [row["name"] for row in tomllib.loads(text)["row"]]
    head, *tables = re.split(r"(?=^\[\[row\]\]$)", text, flags=re.MULTILINE)
    changed = [LR.sub(f"lr = {rates[name]}", table) for name, table in zip(names, tables, strict=True)]
    return head + "".join(changed)


@main.command()
def tune(
    photos: Annotated[Path, typer.Option(help="folder with prompt-train.parquet and classes.txt")],
    out: Annotated[Path, typer.Option(help="folder for the parts, caches and runs")] = Path("photos-tune"),
    recipe: Annotated[Path, typer.Option(help="recipe to change")] = RECIPE,
    jobs: Annotated[int, typer.Option(help="runs at a time")] = 2,
) -> None:
    """Choose the learning rate of every row and write it into the recipe."""
    os.environ["PHOTOS"] = str(photos.resolve())
    split_pictures(photos / "prompt-train.parquet", out / "fit.parquet", out / "validation.parquet")
    own = out / "tune.toml"
    own.write_text(tuning_recipe(recipe.read_text(encoding="utf-8"), out), encoding="utf-8")
    axis = f"train.lr={','.join(map(str, RATES))}"
    settings = SweepSettings(set=(axis,), out=out / "sweep", seeds=1, jobs=jobs)
    record = run_sweep(own, settings, on_note=print)
    rates = best_rates(record.rows)
    recipe.write_text(with_rates(recipe.read_text(encoding="utf-8"), rates), encoding="utf-8")
    for name, rate in rates.items():
        print(f"{rate:<6} {name}")


@main.command()
def cost(
    photos: Annotated[Path, typer.Option(help="folder with prompt-train.parquet and classes.txt")],
    row: Annotated[str, typer.Option(help="row of the recipe that is timed")] = "soft, teacher, T = 1",
    out: Annotated[Path, typer.Option(help="file of the figures")] = FOLDER / "cost.json",
    rounds: Annotated[int, typer.Option(min=1, help="how often each run is timed")] = 3,
) -> None:
    """Time the teacher's pass, runs from the cache, and the same runs with the teacher online, in turn."""
    os.environ["PHOTOS"] = str(photos.resolve())
    recipe = load_recipe(RECIPE)
    settings = next(one.train for one in recipe.rows if one.name == row)
    taken: dict[str, list[float]] = {"cached": [], "online": []}
    losses: dict[str, list[float]] = {"cached": [], "online": []}
    with tempfile.TemporaryDirectory() as folder:
        build = next(one for one in recipe.builds if one.out == settings.cache)
        build = build.model_copy(update={"out": f"{folder}/cache.zarr"})
        started = time.monotonic()
        built = build_cache(build)
        build_seconds = time.monotonic() - started
        cache_bytes = sum(file.stat().st_size for file in Path(build.out).rglob("*") if file.is_file())
        for number in range(rounds):
            for kind, run_type in (("cached", Run), ("online", OnlineRun)):
                update = {"cache": build.out, "out": Path(folder) / f"{kind}-{number}"}
                result = train(settings.model_copy(update=update), run_type)
                taken[kind].append(result.seconds)
                losses[kind].append(result.loss)
    found = {
        "row": row,
        "pictures": built.samples,
        "views": build.view_policy.views,
        "build_seconds": build_seconds,
        "cache_bytes": cache_bytes,
        "cached_run_seconds": statistics.median(taken["cached"]),
        "online_run_seconds": statistics.median(taken["online"]),
        "all_seconds": taken,
        "losses": losses,
        "machine": machine(),
    }
    atomic_write_text(out, json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


def shared_names(photos: Path, emoji: Path) -> list[str]:
    """Return the names that both sets of classes have, in the photographs' order."""
    others = set((emoji / "classes.txt").read_text(encoding="utf-8").splitlines())
    names = (photos / "classes.txt").read_text(encoding="utf-8").splitlines()
    return [name for name in names if name in others]


def write_shared(sources: list[str], classes: Path, names: list[str], out: Path) -> int:
    """Write the pictures of some classes as Parquet, with labels among `names`; return their number."""
    vocabulary = load_vocabulary(str(classes))
    wanted = {vocabulary.names.index(name): number for number, name in enumerate(names)}
    reader, rows = ImageReader(), []
    for source in sources:
        samples, _ = index_images(source, vocabulary)
        for row in np.flatnonzero(np.isin(samples.labels, list(wanted))):
            data = reader.read(samples.locations(np.array([row]))[0])
            picture = {"bytes": data, "path": samples.keys(np.array([row]))[0]}
            rows.append({"image": picture, "label": wanted[int(samples.labels[row])]})
    out.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), out)
    return len(rows)


@main.command()
def transfer(
    photos: Annotated[Path, typer.Option(help="folder with test.parquet and classes.txt")],
    emoji: Annotated[Path, typer.Option(help="folder of the five styles' tars and classes.txt")],
    out: Annotated[Path, typer.Option(help="folder for pictures, caches and runs")] = Path("photos-transfer"),
) -> None:
    """Test prompts of photographs on emoji, and prompts of emoji on photographs, over the names of both."""
    os.environ["PHOTOS"] = str(photos.resolve())
    recipe, record = load_recipe(RECIPE), read_sweep(SWEEP)
    names = shared_names(photos, emoji)
    classes = out / "names.txt"
    out.mkdir(parents=True, exist_ok=True)
    classes.write_text("\n".join(names) + "\n", encoding="utf-8")
    styles = [str(style) for style in sorted(emoji.glob("*.tar"))]
    pictures = {"emoji": out / "emoji.parquet", "photographs": out / "photographs.parquet"}
    counts = {
        "emoji": write_shared(styles, emoji / "classes.txt", names, pictures["emoji"]),
        "photographs": write_shared(
            [str(photos / "test.parquet")], photos / "classes.txt", names, pictures["photographs"]
        ),
    }
    cache = out / "emoji.zarr"
    build = next(one for one in recipe.builds if one.out.endswith("teacher.zarr"))
    build_cache(
        build.model_copy(
            update={"images": str(pictures["emoji"]), "classes": str(classes), "out": str(cache)}
        )
    )

    def top1(student: str, kind: str) -> float:
        settings = EvalSettings(
            student=student, images=str(pictures[kind]), classes=str(classes), metrics=("accuracy",)
        )
        return float(evaluate(settings)["top1"])

    found: dict[str, Any] = {"names": len(names), "pictures": counts, "rows": {}}
    frozen = f"zero-shot:{recipe.train.student}"
    found["rows"]["zero-shot"] = {kind: [top1(frozen, kind)] for kind in pictures}
    for row in recipe.rows:
        if row.name not in TRANSFERRED:
            continue
        runs = [str(SWEEP / one.run) for one in record.rows if one.settings["row"] == row.name]
        found["rows"][f"{row.name}, from photographs"] = {
            kind: [top1(run, kind) for run in runs] for kind in pictures
        }
        own = []
        for seed in record.seeds:
            folder = out / "runs" / f"{row.name}, {seed}"
            update = {"cache": str(cache), "out": folder, "seed": seed, "class_subset": "all", "epochs": 20}
            if not (folder / STUDENT).is_file():
                train(row.train.model_copy(update={**update, "resume": folder.is_dir()}))
            own.append(str(folder))
        found["rows"][f"{row.name}, from emoji"] = {
            kind: [top1(run, kind) for run in own] for kind in pictures
        }
    atomic_write_text(FOLDER / "transfer.json", json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


def frozen_features(model: str, source: Path, classes: Path) -> tuple[Tensor, Tensor]:
    """Return unit features [N, D] of the pictures whose labels are in the base half, and these labels [N]."""
    clip, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{model}")
    vocabulary = load_vocabulary(str(classes))
    samples, _ = index_images(str(source), vocabulary)
    rows = np.flatnonzero(samples.labels < len(vocabulary) // 2)
    reader, found = ImageReader(), []
    for part in np.array_split(rows, max(1, len(rows) // 500)):
        images = [Image.fromarray(decode_image(reader.read(one))) for one in samples.locations(part)]
        with torch.inference_mode():
            found.append(clip.eval().encode_image(torch.stack([preprocess(image) for image in images])))
    return F.normalize(torch.cat(found).float(), dim=-1), torch.from_numpy(samples.labels[rows]).long()


def fit_linear(features: Tensor, labels: Tensor, decay: float) -> torch.nn.Linear:
    """Fit logistic regression to features times 10 by L-BFGS, with `decay` times the weights' squares."""
    layer = torch.nn.Linear(features.shape[1], int(labels.max()) + 1)
    optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(layer(10 * features), labels) + decay * layer.weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return layer


def accuracy(layer: torch.nn.Linear, features: Tensor, labels: Tensor) -> float:
    """Return the share of labels that a linear classifier finds."""
    return float((layer(10 * features).argmax(dim=1) == labels).float().mean())


@main.command()
def probe(
    photos: Annotated[Path, typer.Option(help="folder with prompt-train.parquet, test.parquet, classes.txt")],
    out: Annotated[Path, typer.Option(help="file of the figures")] = FOLDER / "probe.json",
) -> None:
    """Fit a linear classifier of the base half to frozen features; its decay is chosen on a split."""
    torch.manual_seed(SEED)
    classes, found = photos / "classes.txt", {}
    with tempfile.TemporaryDirectory() as folder:
        fit, validation = Path(folder) / "fit.parquet", Path(folder) / "validation.parquet"
        split_pictures(photos / "prompt-train.parquet", fit, validation)
        for model in ("student", "teacher"):
            folder_of = str(RECIPE.with_suffix("") / model)
            features, labels = frozen_features(folder_of, fit, classes)
            others, their_labels = frozen_features(folder_of, validation, classes)
            scores = {
                decay: accuracy(fit_linear(features, labels, decay), others, their_labels) for decay in DECAYS
            }
            decay = max(scores, key=lambda one: scores[one])
            layer = fit_linear(torch.cat([features, others]), torch.cat([labels, their_labels]), decay)
            tested = frozen_features(folder_of, photos / "test.parquet", classes)
            found[model] = {"decay": decay, "validation": scores, "base": accuracy(layer, *tested)}
    atomic_write_text(out, json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


@main.command()
def record(
    out: Annotated[Path, typer.Option(help="file to write")] = RECORD,
) -> None:
    """Write the study's figures, of every run, into one file."""
    sweep = read_sweep(SWEEP)
    runs: dict[str, list[dict[str, Any]]] = {}
    for row in sweep.rows:
        if row.state != "done" or row.train is None:
            raise SystemExit(f"{row.run} is {row.state}: {row.why}")
        figures = {name: row.evals[0].get(name) for name in HEADINGS}
        one = {"seed": row.seed, **figures, "seconds": row.train["seconds"], "steps": row.train["steps"]}
        runs.setdefault(row.settings["row"], []).append(one)
    frozen = [
        {"name": name, **{figure: found[0].get(figure) for figure in HEADINGS}}
        for name, found in sweep.baselines().items()
    ]
    costs = json.loads((FOLDER / "cost.json").read_text(encoding="utf-8"))
    record = {
        "rows": [
            {"name": name, "settings": sweep.row_settings[name], "runs": found}
            for name, found in runs.items()
        ],
        "frozen": frozen,
        "transfer": json.loads((FOLDER / "transfer.json").read_text(encoding="utf-8")),
        "probe": json.loads((FOLDER / "probe.json").read_text(encoding="utf-8")),
        "cost": {**costs, "runs": len(sweep.rows)},
        "sweep_seconds": sweep.seconds,
        "machine": machine(),
        "command": f"PHOTOS=photos rpp run {RECIPE.as_posix()}",
    }
    atomic_write_text(out, json.dumps(record, indent=1) + "\n")


@main.command()
def tables(
    source: Annotated[Path, typer.Option("--from", help="the study's figures")] = RECORD,
    page: Annotated[Path | None, typer.Option(help="page whose tables are replaced")] = Path(
        "docs/results.md"
    ),
) -> None:
    """Write the study's tables into the page, between their marks; without a page, print them."""
    found = markdown_tables(json.loads(source.read_text(encoding="utf-8")))
    if page is None:
        print("\n\n".join(found.values()))
        return
    text = page.read_text(encoding="utf-8")
    for name, table in found.items():
        marks = f"<!-- {name}: written by benchmarks/photos.py tables -->", f"<!-- end of {name} -->"
        if text.count(marks[0]) != 1 or text.count(marks[1]) != 1:
            raise SystemExit(f"{page} must have the lines '{marks[0]}' and '{marks[1]}' once")
        before, _, rest = text.partition(marks[0])
        _, _, after = rest.partition(marks[1])
        text = f"{before}{marks[0]}\n\n{table}\n\n{marks[1]}{after}"
    atomic_write_text(page, text)


def markdown_tables(record: dict[str, Any]) -> dict[str, str]:
    """Return the tables of the study by name: of all rows, and of the transfer."""
    rows: list[list[str]] = []
    for model in record["frozen"]:
        rows.append([model["name"], "", *(cell([model[figure]], figure) for figure in HEADINGS), ""])
    for row in record["rows"]:
        cells = [cell([run[figure] for run in row["runs"]], figure) for figure in HEADINGS]
        seconds = statistics.mean(run["seconds"] for run in row["runs"])
        rows.append([row["name"], f"{row['settings']['lr']:g}", *cells, f"{seconds:.0f}"])
    moved: list[list[str]] = []
    for name, found in record["transfer"]["rows"].items():
        moved.append([name, *(cell(found[kind], "top1") for kind in ("emoji", "photographs"))])
    headings = ["row", "lr", *HEADINGS.values(), "seconds"]
    return {
        "photographs": "\n".join(markdown_table(headings, rows)),
        "transfer": "\n".join(markdown_table(["prompts", "emoji top-1 %", "photographs top-1 %"], moved)),
    }


def cell(values: Sequence[float | None], figure: str) -> str:
    """Return mean ± sample standard deviation; empty without values."""
    return figure_text(figure, spread(value for value in values if value is not None), none="")


if __name__ == "__main__":
    main()
