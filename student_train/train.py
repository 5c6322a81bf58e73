"""The training loop: prompts learn from hard labels and cached soft labels.

Reads top to bottom in the order in which things happen. What is computed lives elsewhere: batches in
`join.py`, towers in `student.py`, losses in `losses.py`.

Shapes: B batch, C classes of the step, D embedding.
"""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from student_train.join import Batch, ClassSubset, Join, locate_images, select_rows, subset_classes
from student_train.losses import distillation_loss, sample_classes, sampling_correction
from student_train.prompts import PromptSettings
from student_train.run_folder import CHECKPOINT, RunFolder, read_settings
from student_train.student import PromptedCLIP, save_student
from teacher_cache.encodings import ClassHead
from teacher_cache.errors import RppError, UsageError
from teacher_cache.openclip import LoadedModel, load_model
from teacher_cache.options import Place
from teacher_cache.progress import counting
from teacher_cache.softlabels import TeacherCache, open_cache
from teacher_cache.teacher import AUTOCAST, Precision, Teacher, choose_device
from teacher_cache.views import ViewRenderer, normalise

# What may differ between a run and its continuation without changing its result.
FREE_ON_RESUME = {"resume", "threads", "log_every", "checkpoint_every", "device", "out"}
MAY_MOVE = {"images", "cache", "student_features"}  # compared by what they hold


class TrainSettings(BaseModel):
    """Settings of stage two."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cache: Place = Field(description="a finished cache of rpp-cache build")
    out: Path | None = Field(default=None, description="the run's folder [default: runs/CACHE-DATE]")
    resume: bool = Field(default=False, description="go on with the run in --out")
    student: str | None = Field(default=None, description="open_clip model [default: the teacher's]")
    pretrained: str | None = Field(default=None, description="its pretrained tag or weights file")
    images: str | None = Field(default=None, description="image source [default: where the cache found them]")
    student_features: Place | None = Field(
        default=None, description="a cache made by the student's own model over the same samples and views"
    )
    prompts: PromptSettings = PromptSettings()
    soft_weight: float = Field(default=1.0, ge=0, description="weight λ of the soft-label loss")
    temperature: float = Field(default=1.0, gt=0, description="temperature T of the soft labels")
    classes_per_step: Literal["all"] | Annotated[int, Field(ge=2)] = Field(
        default="all", description="classes in each step's softmax: all, or a number of sampled ones"
    )
    class_subset: ClassSubset = Field(default="all", description="train on all, base or new classes")
    shots: int | None = Field(default=None, ge=1, description="samples a class [default: all]")
    epochs: int = Field(default=5, ge=1, description="passes over the samples")
    max_steps: int | None = Field(default=None, ge=1, description="stop the schedule at this step")
    batch_size: int = Field(default=256, ge=1, description="samples a step")
    optimizer: Literal["sgd", "adamw"] = Field(default="sgd", description="sgd has momentum 0.9")
    lr: float = Field(default=0.002, gt=0, description="peak learning rate")
    weight_decay: float = Field(default=5e-4, ge=0, description="weight decay of the prompts")
    warmup: float = Field(default=0.05, ge=0, lt=1, description="share of the steps with linear warm-up")
    clip_norm: float = Field(default=1.0, ge=0, description="largest gradient norm; 0 does not clip")
    precision: Precision = Field(default="fp32", description="autocast precision of the towers")
    seed: int = Field(default=0, ge=0, description="prompts, order, views, sampled classes")
    device: str = Field(default="auto", description="auto, cpu, cuda or cuda:N")
    threads: int = Field(default=min(16, os.cpu_count() or 1), ge=1, description="threads that decode images")
    log_every: int = Field(default=10, ge=1, description="steps between two lines of metrics.jsonl")
    checkpoint_every: int = Field(default=500, ge=1, description="steps between two checkpoints")


@dataclass(frozen=True)
class RunResult:
    """What a run did. `wait_seconds` is the time the loop waited for data."""

    out: Path
    steps: int
    samples: int
    loss: float
    seconds: float
    samples_per_second: float
    wait_seconds: float
    mode: str


def train(settings: TrainSettings) -> RunResult:
    """Train prompts on a cache; everything that comes out lies in the run's folder.

    Raises:
        UsageError: settings that do not fit the cache, the model or the folder.
        RppError: the loss is not finite, an image is gone, or the run was stopped by a signal.
    """
    cache = open_cache(settings.cache)
    device = choose_device(settings.device)
    torch.manual_seed(settings.seed)
    base = load_student_base(settings, cache, device)
    student = PromptedCLIP(base, settings.prompts, seed=settings.seed).to(device)
    classes = torch.from_numpy(subset_classes(len(cache.vocabulary), settings.class_subset))
    join, mode = make_join(settings, cache, base)
    total_steps = min(settings.epochs * join.steps_per_epoch, settings.max_steps or 2**62)
    learnable = [p for p in student.parameters() if p.requires_grad]
    optimizer = make_optimizer(settings, learnable)
    scaler = torch.amp.GradScaler(device.type, enabled=settings.precision == "fp16")

    out = settings.out or Path("runs") / f"{Path(settings.cache).stem}-{datetime.now():%Y%m%d-%H%M%S}"
    run = RunFolder(out, student.prompts, optimizer, scaler)
    first_step = 0
    if settings.resume:
        check_same_run(settings, out, cache)
        first_step = run.resume()
    else:
        run.begin(describe_run(settings, cache, student, mode))

    text = StepText(student, cache, settings, device)
    autocast = torch.autocast(
        device.type, dtype=AUTOCAST.get(settings.precision), enabled=settings.precision != "fp32"
    )
    head, scale = cache.head.to(device), float(student.logit_scale.exp())
    started = time.perf_counter()
    waited, logged_at = 0.0, started
    batches = join.batches(first_step, total_steps)
    with counting("steps", total_steps) as counter, stop_signals() as stopped:
        counter.start_at(first_step)
        for step in range(first_step, total_steps):
            waiting = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - waiting

            step_classes, correction = choose_classes(settings, classes, batch, step)
            with autocast:
                image_features_BD = encode_batch(student, batch, device)
                class_features_CD = text.class_features(step_classes)
            # logits in float32 on both sides: at scale 100, bfloat16 would round them by tenths
            logits_BC = ClassHead(class_features_CD.float(), scale).logits(image_features_BD)
            teacher_logits_BC = cache.encoding.logits(
                {name: values.to(device) for name, values in batch.teacher.items()},
                head,
                settings.temperature,
                step_classes.to(device),
            )
            targets_B = positions_of(batch.labels, step_classes).to(device)
            loss, hard, soft = distillation_loss(
                logits_BC,
                teacher_logits_BC,
                targets_B,
                settings.soft_weight,
                settings.temperature,
                correction,
            )
            if not torch.isfinite(loss):
                run.save(step)
                raise RppError(
                    f"the loss is {loss.item()} at step {step} (hard {hard.item()}, soft {soft.item()}; rows "
                    f"{batch.rows[:8].tolist()}...); the prompts before it are in {out / CHECKPOINT}"
                )

            for group in optimizer.param_groups:
                group["lr"] = learning_rate(settings, step, total_steps)
            optimizer.zero_grad(set_to_none=True)
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            norm = torch.nn.utils.clip_grad_norm_(learnable, settings.clip_norm or float("inf"))
            scaler.step(optimizer)
            scaler.update()

            done = step + 1
            if done % settings.log_every == 0 or done == total_steps:
                now = time.perf_counter()
                # steps since the last line of the log, which a continued run may have written earlier
                steps = min((done - 1) % settings.log_every + 1, done - first_step)
                line = {
                    "step": done,
                    "epoch": done / join.steps_per_epoch,
                    "loss": loss.item(),
                    "hard_loss": hard.item(),
                    "soft_loss": soft.item(),
                    "accuracy": batch_accuracy(logits_BC, targets_B),
                    "lr": optimizer.param_groups[0]["lr"],
                    "gradient_norm": norm.item(),
                    "samples_per_second": steps * join.batch_size / (now - logged_at),
                    "wait_seconds": waited,
                }
                logged_at = now
                run.log(line)
                counter(0, loss=f"{line['loss']:.4f}", wait=f"{waited:.1f}s")
            if done % settings.checkpoint_every == 0 or done == total_steps or stopped:
                run.save(done)
            counter(1)
            if stopped and done < total_steps:
                raise RppError(
                    f"stopped by {signal.Signals(stopped[0]).name} after step {done} of {total_steps}; go on "
                    f"with --out {out} --resume"
                )

    seconds = time.perf_counter() - started
    samples = (total_steps - first_step) * join.batch_size
    save_student(student, out)
    return RunResult(
        out=out,
        steps=total_steps,
        samples=samples,
        loss=run.metrics()[-1]["loss"],
        seconds=seconds,
        samples_per_second=samples / max(seconds, 1e-9),
        wait_seconds=waited,
        mode=mode,
    )


def load_student_base(settings: TrainSettings, cache: TeacherCache, device: torch.device) -> LoadedModel:
    """The student's frozen model: the teacher's own unless the settings name another.

    Raises:
        UsageError: the teacher's model is found, but with other weights than the cache was made with.
    """
    if settings.student is not None or settings.pretrained is not None:
        return load_model(settings.student or cache.teacher["model"], settings.pretrained, device)
    base = load_model(cache.teacher["model"], cache.teacher["pretrained"], device)
    if base.digest != cache.teacher["weights_digest"]:
        raise UsageError(
            f"{base.name} has weights {base.digest} now, the cache {cache.path} was made with "
            f"{cache.teacher['weights_digest']}; name the student's weights with --student and --pretrained"
        )
    return base


def make_join(settings: TrainSettings, cache: TeacherCache, base: LoadedModel) -> tuple[Join, str]:
    """The run's batches, and their mode: `features` (no image is read) or `images`.

    Features serve where no vision prompt changes them and a cache holds those of the student's own model.
    """
    rows = select_rows(
        cache.labels, cache.valid, len(cache.vocabulary), settings.class_subset, settings.shots, settings.seed
    )
    features: TeacherCache | None = None
    if settings.student_features is not None:
        features = open_cache(settings.student_features)
        check_student_features(settings, cache, features, base)
    elif settings.prompts.towers == "text" and cache.teacher["weights_digest"] == base.digest:
        features = cache if cache.keeps_image_features else None
    if features is not None:
        join = Join(cache, rows, settings.batch_size, settings.seed, student_features=features)
        return join, "features"
    samples = locate_images(cache, settings.images)
    renderer = ViewRenderer(base.preprocess)
    join = Join(
        cache,
        rows,
        settings.batch_size,
        settings.seed,
        renderer=renderer,
        samples=samples,
        threads=settings.threads,
    )
    return join, "images"


def check_student_features(
    settings: TrainSettings, cache: TeacherCache, features: TeacherCache, base: LoadedModel
) -> None:
    """Refuse features that are not those of the student over the same samples and views."""
    if settings.prompts.towers != "text":
        raise UsageError("--student-features serves text prompts alone: vision prompts change the features")
    if features.teacher["weights_digest"] != base.digest:
        raise UsageError(
            f"{features.path} holds features of {features.teacher['model']} "
            f"({features.teacher['weights_digest']}), the student is {base.name} ({base.digest})"
        )
    for name in ("sample_table_digest", "view_policy"):
        ours, theirs = getattr(cache.header, name), getattr(features.header, name)
        if ours != theirs:
            raise UsageError(f"{features.path} has another {name} ({theirs}) than {cache.path} ({ours})")


def describe_run(
    settings: TrainSettings, cache: TeacherCache, student: PromptedCLIP, mode: str
) -> dict[str, Any]:
    """What `settings.json` holds: everything that decides the run's result."""
    return {
        "settings": settings.model_dump(mode="json"),
        "cache": asdict(cache.header),
        "student": {
            "model": student.base.name,
            "pretrained": student.base.pretrained,
            "weights_digest": student.base.digest,
        },
        "templates": list(cache.vocabulary.templates),
        "mode": mode,
        "never_read": student.describe_dead(),
        "software": f"rpp {version('rpp')}, torch {torch.__version__}",
    }


def check_same_run(settings: TrainSettings, out: Path, cache: TeacherCache) -> None:
    """Refuse to continue a run with settings or a cache that would change its result.

    Raises:
        UsageError: no run in `out`, or what differs.
    """
    if settings.out is None:
        raise UsageError("--resume needs --out with a run's folder")
    record = read_settings(out)
    changed = [
        f"{name}: {record['settings'].get(name)} there, {value} asked"
        for name, value in settings.model_dump(mode="json").items()
        if name not in FREE_ON_RESUME | MAY_MOVE and record["settings"].get(name) != value
    ]
    there_cache, now_cache = record["cache"], asdict(cache.header)
    for header in (there_cache, now_cache):
        header["weights"] = header["teacher"]["weights_digest"]  # not where the teacher lies
    for name in ("weights", "sample_table_digest", "vocabulary_digest", "view_policy"):
        there, now = there_cache[name], now_cache[name]
        if there != now:
            changed.append(f"cache {name}: {there} there, {now} now")
    if changed:
        raise UsageError(f"the run {out} was begun otherwise ({'; '.join(changed)})")


def make_optimizer(settings: TrainSettings, parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """SGD with momentum 0.9, as CoOp and POMP use, or AdamW."""
    if not parameters:
        raise UsageError("nothing to train: a prompt depth of 0 has no prompts")
    if settings.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=settings.lr, momentum=0.9, weight_decay=settings.weight_decay)
    return torch.optim.AdamW(parameters, lr=settings.lr, weight_decay=settings.weight_decay)


def learning_rate(settings: TrainSettings, step: int, total_steps: int) -> float:
    """Linear warm-up, then cosine to zero."""
    warmup_steps = round(settings.warmup * total_steps)
    if step < warmup_steps:
        return settings.lr * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return settings.lr * 0.5 * (1 + float(np.cos(np.pi * progress)))


def choose_classes(settings: TrainSettings, classes: Tensor, batch: Batch, step: int) -> tuple[Tensor, float]:
    """Classes of the step's softmax, ascending [C] int64, and what is added to sampled negatives' logits."""
    if settings.classes_per_step == "all" or settings.classes_per_step >= len(classes):
        return classes, 0.0
    k = settings.classes_per_step
    generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + step)
    labelled = batch.labels[batch.labels >= 0] - classes[0]
    return classes[0] + sample_classes(labelled, len(classes), k, generator), sampling_correction(
        k, len(classes)
    )


def positions_of(labels_B: Tensor, step_classes: Tensor) -> Tensor:
    """Where each label stands among the ascending step classes, [B] int64; -1 stays -1."""
    positions = torch.searchsorted(step_classes, labels_B)
    return torch.where(labels_B >= 0, positions, -1)


def encode_batch(student: PromptedCLIP, batch: Batch, device: torch.device) -> Tensor:
    """The student's unit image features, [B, D]: computed from pixels, or those that the cache holds."""
    if batch.student_features is not None:
        return F.normalize(batch.student_features.to(device).float(), dim=-1)
    if batch.pixels is None:
        raise RppError("a batch has neither pixels nor features")
    preprocess = student.base.preprocess
    pixels = batch.pixels.to(device, non_blocking=True)
    features: Tensor = student.encode_image(
        normalise(pixels, preprocess.mean, preprocess.std), normalize=True
    )
    return features


class StepText:
    """The student's class features of a step: learnt ones, or fixed ones where text has no prompts."""

    def __init__(
        self, student: PromptedCLIP, cache: TeacherCache, settings: TrainSettings, device: torch.device
    ) -> None:
        self.student = student
        self.fixed_CD: Tensor | None = None
        if settings.prompts.towers == "vision":
            same = student.base.digest == cache.teacher["weights_digest"]
            teacher = Teacher(student.base, device)
            features = cache.class_features if same else teacher.class_features(cache.vocabulary)
            self.fixed_CD = features.to(device)
        else:
            self.tokens = student.tokenize_names(cache.vocabulary.names)

    def class_features(self, classes: Tensor) -> Tensor:
        """Unit class features of the given classes, [C, D]."""
        if self.fixed_CD is not None:
            return self.fixed_CD[classes]
        features: Tensor = self.student.encode_text(self.tokens[classes], normalize=True)
        return features


def batch_accuracy(logits_BC: Tensor, targets_B: Tensor) -> float | None:
    """Share of the labelled samples of the batch whose highest logit is their class."""
    labelled = targets_B >= 0
    if not labelled.any():
        return None
    return float((logits_BC.argmax(-1) == targets_B)[labelled].float().mean())


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """SIGTERM and SIGINT are noted in the list instead of ending the process; a second one ends it."""
    received: list[int] = []

    def note(number: int, frame: Any) -> None:
        received.append(number)
        signal.signal(number, before[number])

    numbers: tuple[int, ...] = (signal.SIGTERM, signal.SIGINT)
    try:
        before = {number: signal.signal(number, note) for number in numbers}
    except ValueError:  # not in the main thread: the caller handles signals
        yield received
        return
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
