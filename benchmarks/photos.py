"""The study on photographs: pictures, learning rates, cost, transfer, and tables of `recipes/photos.toml`.

`split` writes the study's Parquet files from CIFAR-100. `tune` chooses the learning rate of every row of
the recipe, each from the same values, on a split of `prompt-train.parquet`: prompts learn from 120 pictures
a class, and the harmonic mean of base and new classes on the other 30 decides. `cost` times a run with
cached labels and the same run with the teacher online. `transfer` tests the prompts on emoji and prompts of
emoji on photographs. `probe` fits linear classifiers to frozen image features: what labels can gain without
other features. `record` writes all of it into `docs/data/photos.json`, and `tables` makes the tables of
docs/results.md from that file alone. All commands run in the root of a checkout, and keep what they make in
`photos-study/`.

    python benchmarks/photos.py split --cifar cifar-100-python --out photos
    python benchmarks/photos.py tune --photos photos
    PHOTOS=photos rpp run recipes/photos.toml
    python benchmarks/photos.py cost --photos photos
    python benchmarks/photos.py transfer --photos photos --emoji emoji
    python benchmarks/photos.py probe --photos photos
    python benchmarks/photos.py record
    python benchmarks/photos.py tables
    python benchmarks/photos.py prompts
"""

import gzip
import hashlib
import io
import json
import os
import pickle
import re
import shutil
import statistics
import tempfile
import time
import tomllib
from collections.abc import Iterable, Sequence
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
from pipeline.recipe import Recipe, load_recipe
from pipeline.seeds import figure_text, spread
from pipeline.settings import SweepSettings
from pipeline.sweep import check_all_done, run_sweep
from pipeline.sweep_record import SweepRecord, SweepRow, read_sweep
from student_train.evaluation.evaluate import evaluate
from student_train.evaluation.settings import EvalSettings
from student_train.figures import ZERO_SHOT
from student_train.interchange.huggingface import export_huggingface
from student_train.interchange.settings import HuggingFaceSettings
from student_train.markdown import table as markdown_table
from student_train.runs.record import MODEL, STUDENT
from student_train.training.loop import Run, train
from teacher_cache.build import build_cache
from teacher_cache.classes.vocabulary import load_vocabulary
from teacher_cache.cores import usable_cores
from teacher_cache.errors import UsageError
from teacher_cache.files.atomic_write import atomic_write_text, make_folder
from teacher_cache.files.json_text import parse_json
from teacher_cache.images.decode import decode_image
from teacher_cache.images.index import index_images
from teacher_cache.images.reader import ImageReader
from teacher_cache.options import run_app

RECIPE = Path("recipes") / "photos.toml"
SPLIT = RECIPE.with_suffix("") / "split.json.gz"
SWEEP = Path("sweeps") / "photos"
FOLDER = Path("photos-study")  # of what these commands make
TUNE, COST, TRANSFER, PROBE = (FOLDER / f"{name}.json" for name in ("tune", "cost", "transfer", "probe"))
RECORD = Path("docs") / "data" / "photos.json"
RATES = (0.00125, 0.005, 0.02, 0.08)
DECAYS = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3)  # of linear classifiers
SIDE = 32  # of CIFAR's pictures
VALIDATION_SHARE = 0.2
SEED = 0
LR = re.compile(r"^lr = .*$", re.MULTILINE)
TRANSFERRED = ("hard", "soft, teacher, T = 1", "text, soft")
PUBLISHED = ("hard", "soft, own, T = 1", "soft, teacher, T = 1")
CONTRASTS = (  # what is compared, a row, and the row (or frozen model) that is subtracted
    ("hard labels, against zero-shot", "hard", ZERO_SHOT),
    ("soft labels of the teacher, against zero-shot", "soft, teacher, T = 1", ZERO_SHOT),
    ("soft labels of the teacher, against hard", "soft, teacher, T = 1", "hard"),
    ("soft labels of the own model, against hard", "soft, own, T = 1", "hard"),
    ("soft labels: teacher, against own model", "soft, teacher, T = 1", "soft, own, T = 1"),
    ("T = 8, against T = 1 (teacher)", "soft, teacher, T = 8", "soft, teacher, T = 1"),
    ("T = 0.5, against T = 1 (teacher)", "soft, teacher, T = 0.5", "soft, teacher, T = 1"),
    ("QKV, against shared, equal positions (hard)", "hard", "hard, shared"),
    ("QKV, against shared, equal positions (soft)", "soft, teacher, T = 1", "soft, shared"),
    ("QKV, against shared, equal positions (text, hard)", "text, hard", "text, hard, shared"),
    ("QKV, against shared, equal positions (text, soft)", "text, soft", "text, soft, shared"),
    ("QKV, against shared, equal parameters (hard)", "hard", "hard, shared, 12 positions"),
    ("QKV, against shared, equal parameters (soft)", "soft, teacher, T = 1", "soft, shared, 12 positions"),
    ("carry residual, against replace (hard)", "hard, residual", "hard"),
    ("carry residual, against replace (soft)", "soft, residual", "soft, teacher, T = 1"),
    ("depth 1, against all blocks (soft)", "soft, depth 1", "soft, teacher, T = 1"),
    ("text alone, against both towers (hard)", "text, hard", "hard"),
    ("text alone, against both towers (soft)", "text, soft", "soft, teacher, T = 1"),
    ("1 shot, against zero-shot (hard)", "hard, 1 shot", ZERO_SHOT),
    ("1 shot, against zero-shot (soft)", "soft, 1 shot", ZERO_SHOT),
    ("4 shots, against zero-shot (hard)", "hard, 4 shots", ZERO_SHOT),
    ("4 shots, against zero-shot (soft)", "soft, 4 shots", ZERO_SHOT),
    ("16 shots, against zero-shot (hard)", "hard, 16 shots", ZERO_SHOT),
    ("16 shots, against zero-shot (soft)", "soft, 16 shots", ZERO_SHOT),
)
HEADINGS = {
    "base": "base %",
    "new": "new %",
    "harmonic": "harmonic %",
    "agreement": "teacher agrees %",
    "kl": "KL to teacher",
    "ece": "ECE",
}

main = typer.Typer(add_completion=False, help=__doc__.splitlines()[0])

Photos = Annotated[Path, typer.Option(help="folder of the Parquet files and classes.txt", file_okay=False)]


def load_study(photos: Path) -> Recipe:
    """Return the recipe for these photographs, and make the folder of the study.

    Raises:
        UsageError: the folder does not have the files, or this is not the root of a checkout.
    """
    for name in ("prompt-train.parquet", "test.parquet", "classes.txt"):
        if not (photos / name).is_file():
            raise UsageError(f"{photos} has no {name}; docs/results.md says what the folder has")
    os.environ["PHOTOS"] = str(photos.resolve())
    make_folder(FOLDER, "")
    return load_recipe(RECIPE)


def read_json(file: Path, command: str) -> Any:
    """Return what a command of this script wrote.

    Raises:
        UsageError: it has not been run, or the file is damaged.
    """
    if not file.is_file():
        raise UsageError(f"there is no {file}; `python benchmarks/photos.py {command}` writes it")
    try:
        return parse_json(file.read_bytes())
    except ValueError as error:
        raise UsageError(f"{file} is damaged: {error}") from error


class ArrayUnpickler(pickle.Unpickler):
    """Reads CIFAR's pickles: plain values and NumPy arrays, nothing that could run other code."""

    ALLOWED = frozenset(
        {
            ("numpy._core.multiarray", "_reconstruct"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("_codecs", "encode"),  # bytes in pickles that Python 3 wrote
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        """Return one of the classes of arrays.

        Raises:
            UsageError: another class.
        """
        module = module.replace("numpy.core.", "numpy._core.")  # its name when CIFAR-100 was written
        if (module, name) not in self.ALLOWED:
            raise UsageError(f"the pickle asks for {module}.{name}; CIFAR-100's have arrays only")
        return super().find_class(module, name)


def read_cifar(file: Path) -> dict[str, Any]:
    """Return the content of one file of `cifar-100-python`.

    Raises:
        UsageError: it is none.
    """
    try:
        with open(file, "rb") as opened:
            content = ArrayUnpickler(opened, encoding="latin1").load()
    except (pickle.UnpicklingError, EOFError, UnicodeDecodeError) as error:
        raise UsageError(f"{file} is not a file of CIFAR-100: {error}") from error
    if not isinstance(content, dict):
        raise UsageError(f"{file} is not a file of CIFAR-100")
    return content


def png(pixels: np.ndarray) -> bytes:
    """Encode pixels [H, W, 3] uint8."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@main.command()
def split(
    cifar: Annotated[Path, typer.Option(help="folder with train, test and meta, of the Python version")],
    out: Annotated[Path, typer.Option(help="folder to write")] = Path("photos"),
) -> None:
    """Write the study's pictures and names from CIFAR-100, each picture in its place, and check them."""
    make_folder(out)
    names = read_cifar(cifar / "meta")["fine_label_names"]
    pictures: dict[str, tuple[np.ndarray, int]] = {}
    for content in (read_cifar(cifar / "train"), read_cifar(cifar / "test")):
        pixels = content["data"].reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1)
        for name, label, one in zip(content["filenames"], content["fine_labels"], pixels, strict=True):
            pictures.setdefault(f"{names[label]}/{name}", (one, label))
    for part, wanted in json.loads(gzip.decompress(SPLIT.read_bytes())).items():
        missing = [name for name in wanted["pictures"] if name not in pictures]
        if missing:
            raise UsageError(f"{cifar} lacks {len(missing)} pictures of {part}; the first: {missing[0]}")
        found = [(name, *pictures[name]) for name in wanted["pictures"]]
        if pixels_digest(one for _, one, _ in found) != wanted["sha256"]:
            raise UsageError(f"pictures of {part} in {cifar} have other pixels than the study's")
        rows = [{"image": {"bytes": png(one), "path": name}, "label": label} for name, one, label in found]
        pq.write_table(pa.Table.from_pylist(rows), out / f"{part}.parquet")
        print(f"{out / part}.parquet: {len(rows):,} pictures")
    atomic_write_text(out / "classes.txt", "\n".join(name.replace("_", " ") for name in names) + "\n")


def pixels_digest(pictures: Iterable[np.ndarray]) -> str:
    """Return the SHA-256 of the pixels [H, W, 3] uint8 of all pictures, in their order."""
    digest = hashlib.sha256()
    for one in pictures:
        digest.update(one.tobytes())
    return digest.hexdigest()


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


def scores_of(rows: list[SweepRow]) -> dict[str, dict[str, float]]:
    """Return the harmonic mean of each row by its learning rate, a text as JSON needs it."""
    found: dict[str, dict[str, float]] = {}
    for row in rows:
        found.setdefault(row.settings["row"], {})[str(row.settings["lr"])] = row.evals[0]["harmonic"]
    return found


def best_rates(scores: dict[str, dict[str, float]]) -> dict[str, float]:
    """Return the learning rate with the highest harmonic mean of each row; of equal ones the largest."""
    return {
        name: max(map(float, of_row), key=lambda rate: (of_row[str(rate)], rate))
        for name, of_row in scores.items()
    }


def with_rates(text: str, rates: dict[str, float]) -> str:
    """Return the recipe with the learning rates of its rows, in whose tables `lr` is the last line."""
    names = [row["name"] for row in tomllib.loads(text)["row"]]
    head, *tables = re.split(r"(?=^\[\[row\]\]$)", text, flags=re.MULTILINE)
    changed = [LR.sub(f"lr = {rates[name]}", table) for name, table in zip(names, tables, strict=True)]
    return head + "".join(changed)


@main.command()
def tune(
    photos: Photos,
    out: Annotated[Path, typer.Option(help="folder for the parts, caches and runs")] = FOLDER / "tune",
    jobs: Annotated[int, typer.Option(help="runs at a time")] = 2,
) -> None:
    """Choose the learning rate of every row and write it into the recipe."""
    load_study(photos)
    split_pictures(photos / "prompt-train.parquet", out / "fit.parquet", out / "validation.parquet")
    own = out / "tune.toml"
    own.write_text(tuning_recipe(RECIPE.read_text(encoding="utf-8"), out), encoding="utf-8")
    axis = f"train.lr={','.join(map(str, RATES))}"
    settings = SweepSettings(set=(axis,), out=out / "sweep", seeds=1, jobs=jobs)
    record = run_sweep(own, settings, on_note=print)
    check_all_done(record)
    scores = scores_of(record.rows)
    rates = best_rates(scores)
    frozen = {name: found[0]["harmonic"] for name, found in record.baselines().items()}
    atomic_write_text(TUNE, json.dumps({"rows": scores, "frozen": frozen}, indent=1) + "\n")
    atomic_write_text(RECIPE, with_rates(RECIPE.read_text(encoding="utf-8"), rates))
    for name, rate in rates.items():
        print(f"{rate:<6} {name}")


@main.command()
def cost(
    photos: Photos,
    row: Annotated[str, typer.Option(help="row that is timed; it has soft labels")] = "soft, teacher, T = 1",
    rounds: Annotated[int, typer.Option(min=1, help="how often each run is timed")] = 3,
) -> None:
    """Time the teacher's pass, runs from the cache, and the same runs with the teacher online, in turn.

    Runs have the threads of a run of the study, and the machine for themselves.
    """
    recipe = load_study(photos)
    rows = {one.name: one.train for one in recipe.rows if one.train.soft_weight}
    if row not in rows:
        raise UsageError(f"--row: no row '{row}' with soft labels; known: {', '.join(rows)}")
    settings = rows[row]
    taken: dict[str, list[float]] = {"cached": [], "online": []}
    losses: dict[str, list[float]] = {"cached": [], "online": []}
    with tempfile.TemporaryDirectory() as folder:
        build = next(one for one in recipe.builds if one.out == settings.cache)
        build = build.model_copy(update={"out": f"{folder}/cache.zarr"})
        started = time.monotonic()
        built = build_cache(build)
        build_seconds = time.monotonic() - started
        cache_bytes = sum(file.stat().st_size for file in Path(build.out).rglob("*") if file.is_file())
        torch.set_num_threads(max(1, usable_cores() // (recipe.jobs or 1)))
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
    atomic_write_text(COST, json.dumps(found, indent=1) + "\n")
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
    photos: Photos,
    emoji: Annotated[Path, typer.Option(help="folder of the five styles' tars and classes.txt")],
) -> None:
    """Test prompts of photographs on emoji, and prompts of emoji on photographs, over the names of both."""
    recipe, record = load_study(photos), read_sweep(SWEEP)
    check_all_done(record)
    names = shared_names(photos, emoji)
    out = FOLDER / "transfer"
    out.mkdir(exist_ok=True)
    classes = out / "names.txt"
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
            update = {
                "cache": str(cache),
                "student_features": None,  # those of the recipe are of photographs
                "out": folder,
                "seed": seed,
                "class_subset": "all",
                "epochs": 20,
            }
            if not (folder / STUDENT).is_file():
                train(row.train.model_copy(update={**update, "resume": folder.is_dir()}))
            own.append(str(folder))
        found["rows"][f"{row.name}, from emoji"] = {
            kind: [top1(run, kind) for run in own] for kind in pictures
        }
    atomic_write_text(TRANSFER, json.dumps(found, indent=1) + "\n")
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
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
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
    photos: Photos,
) -> None:
    """Fit a linear classifier of the base half to frozen features; its decay is chosen on a split."""
    load_study(photos)
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
    atomic_write_text(PROBE, json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


@main.command()
def record(
    out: Annotated[Path, typer.Option(help="file to write")] = RECORD,
) -> None:
    """Write the study's figures, of every run, into one file."""
    sweep = read_sweep(SWEEP)
    check_all_done(sweep)
    runs: dict[str, list[dict[str, Any]]] = {}
    for row in sweep.rows:
        assert row.train is not None  # it is done
        figures = {name: row.evals[0].get(name) for name in HEADINGS}
        one = {"seed": row.seed, **figures, "seconds": row.train["seconds"], "steps": row.train["steps"]}
        runs.setdefault(row.settings["row"], []).append(one)
    frozen = [
        {"name": name, **{figure: found[0].get(figure) for figure in HEADINGS}}
        for name, found in sweep.baselines().items()
    ]
    costs = read_json(COST, "cost --photos ...")
    saved = [run["seconds"] for name in teacher_rows(sweep, costs["row"]) for run in runs[name]]
    record = {
        "rows": [
            {"name": name, "settings": sweep.row_settings[name], "runs": found}
            for name, found in runs.items()
        ],
        "frozen": frozen,
        "tuning": read_json(TUNE, "tune --photos ..."),
        "transfer": read_json(TRANSFER, "transfer --photos ... --emoji ..."),
        "probe": read_json(PROBE, "probe --photos ..."),
        "cost": {**costs, "runs": len(saved), "runs_seconds": sum(saved)},
        "sweep_seconds": sweep.seconds,
        "machine": machine(),
        "command": f"PHOTOS=photos rpp run {RECIPE.as_posix()}",
    }
    make_folder(out.parent)
    atomic_write_text(out, json.dumps(record, indent=1) + "\n")


def teacher_rows(sweep: SweepRecord, timed: str) -> list[str]:
    """Return the rows with soft labels of the same cache as the timed row, and as many steps and towers."""
    every = sweep.row_settings
    alike = {key: every[timed].get(key) for key in ("cache", "towers", "shots", "epochs")}
    return [
        name
        for name, settings in every.items()
        if settings.get("soft_weight") != 0 and all(settings.get(key) == alike[key] for key in alike)
    ]


@main.command()
def prompts(
    out: Annotated[Path, typer.Option(help="folder to write")] = RECIPE.with_suffix("") / "prompts",
) -> None:
    """Write the prompts of some rows, of each seed, as one file each that names no folder of this machine."""
    sweep = read_sweep(SWEEP)
    check_all_done(sweep)
    make_folder(out)
    for row in sweep.rows:
        if (name := row.settings["row"]) in PUBLISHED:
            with tempfile.TemporaryDirectory() as folder:
                exported = HuggingFaceSettings(student=str(SWEEP / row.run), out=Path(folder) / "hub")
                export_huggingface(exported)
                file = out / f"{re.sub(r'[^a-zA-Z0-9.]+', '-', name)}-seed-{row.seed}.safetensors"
                shutil.copyfile(exported.out / MODEL, file)
                print(file)


@main.command()
def tables(
    source: Annotated[Path, typer.Option("--from", help="the study's figures")] = RECORD,
    page: Annotated[Path, typer.Option(help="page whose tables are replaced")] = Path("docs/results.md"),
) -> None:
    """Write the study's tables into a page, each between the two lines that mark its place."""
    found = markdown_tables(read_json(source, "record"))
    text = page.read_text(encoding="utf-8")
    for name, table in found.items():
        first, last = f"<!-- {name}: written by benchmarks/photos.py tables -->", f"<!-- end of {name} -->"
        if not text.count(first) == text.count(last) == 1 or text.index(first) > text.index(last):
            raise UsageError(f"{page} must have the lines '{first}' and '{last}' once, in this order")
        before, after = text[: text.index(first)], text[text.index(last) :]
        text = f"{before}{first}\n\n{table}\n\n{after}"
    atomic_write_text(page, text)


def markdown_tables(record: dict[str, Any]) -> dict[str, str]:
    """Return the tables of the study by name: of all rows, of differences, and of the transfer.

    Raises:
        UsageError: rows have different seeds, or one seed.
    """
    seeds = {tuple(run["seed"] for run in row["runs"]) for row in record["rows"]}
    if len(seeds) != 1 or len(set(*seeds)) < 2:
        raise UsageError("the rows of a table need the same seeds, at least two")
    rows: list[list[str]] = []
    for model in record["frozen"]:
        chosen_by = cell([record["tuning"]["frozen"].get(model["name"])], "harmonic")
        figures = (cell([model[figure]], figure) for figure in HEADINGS)
        rows.append([model["name"], "", chosen_by, *figures, ""])
    for row in record["rows"]:
        cells = [cell([run[figure] for run in row["runs"]], figure) for figure in HEADINGS]
        seconds = statistics.mean(run["seconds"] for run in row["runs"])
        chosen_by = cell([max(record["tuning"]["rows"][row["name"]].values())], "harmonic")
        rows.append([row["name"], f"{row['settings']['lr']:g}", chosen_by, *cells, f"{seconds:.0f}"])
    moved: list[list[str]] = []
    for name, found in record["transfer"]["rows"].items():
        moved.append([name, *(cell(found[kind], "top1") for kind in ("emoji", "photographs"))])
    headings = ["row", "lr", "split: harmonic %", *HEADINGS.values(), "seconds"]
    return {
        "photographs": "\n".join(markdown_table(headings, rows)),
        "differences": differences(record),
        "transfer": "\n".join(markdown_table(["prompts", "emoji top-1 %", "photographs top-1 %"], moved)),
    }


def differences(record: dict[str, Any]) -> str:
    """Return the table of `CONTRASTS` in points of accuracy, each seed's difference with the same seed's run.

    A contrast whose rows the record does not have is left out.
    """
    figures = ("base", "new", "harmonic")
    runs = {row["name"]: sorted(row["runs"], key=lambda run: run["seed"]) for row in record["rows"]}
    frozen = {model["name"]: model for model in record["frozen"]}
    rows = []
    for label, name, other in CONTRASTS:
        if name not in runs or other not in runs | frozen:
            continue
        cells = []
        for figure in figures:
            subtracted = [run[figure] for run in runs.get(other, [frozen.get(other)] * len(runs[name]))]
            found = spread(
                100 * (run[figure] - less) for run, less in zip(runs[name], subtracted, strict=True)
            )
            assert found is not None
            cells.append(f"{found.mean:+.2f} ± {found.deviation or 0:.2f}".replace("-", "−"))
        rows.append([label, *cells])
    return "\n".join(markdown_table(["difference in points", "base", "new", "harmonic"], rows))


def cell(values: Sequence[float | None], figure: str) -> str:
    """Return mean ± sample standard deviation; empty without values.

    Raises:
        UsageError: some runs have the figure and others have not.
    """
    known = [value for value in values if value is not None]
    if known and len(known) != len(values):
        raise UsageError(f"{len(values) - len(known)} of {len(values)} runs have no {figure}")
    return figure_text(figure, spread(known), none="")


if __name__ == "__main__":
    run_app(main)
