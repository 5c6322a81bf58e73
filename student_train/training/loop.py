"""The training loop: prompts learn from hard labels and cached soft labels.

Reads top to bottom in the order in which things happen. What is computed lives elsewhere: batches in
`join.py`, towers in `student.py`, the step's classes in `step_classes.py`, losses in `losses.py`, and what
several processes have to say to one another in `distributed.py`.

Shapes: B samples of the step in this process, C classes of the step, D embedding.
"""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from student_train.data.join import Batch, Join
from student_train.model.stored import StoredStudent, read_student
from student_train.model.student import PromptedCLIP, save_student
from student_train.runs.folder import BAD_STEP, RunFolder
from student_train.runs.record import CHECKPOINT, described, look_into
from student_train.training.distributed import AgreedError, Processes, joined_processes
from student_train.training.health import Health
from student_train.training.inputs import load_student_base, make_join
from student_train.training.losses import distillation_loss
from student_train.training.metric_logs import MetricLogs
from student_train.training.optimizer import learning_rate, make_optimizer
from student_train.training.run_identity import check_same_run, describe_run
from student_train.training.settings import TrainSettings
from student_train.training.step_classes import StepClasses, StepText, positions_of
from teacher_cache.encodings import ClassHead
from teacher_cache.errors import RppError, UsageError
from teacher_cache.progress import counting
from teacher_cache.softlabels import TeacherCache, open_cache
from teacher_cache.teacher.teacher import AUTOCAST
from teacher_cache.views import normalise


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

    Under torchrun, every process calls this; the first one writes.

    Raises:
        UsageError: settings that do not fit the cache, the model or the folder.
        RppError: the loss or a gradient is not finite, an image is gone, or a signal stopped the run.
    """
    with (
        joined_processes(settings.device) as (processes, device),
        stop_signals() as stopped,
        ExitStack() as at_end,
    ):
        run, _ = processes.agree(lambda: prepare(settings, processes, device))
        at_end.callback(run.folder.close)
        at_end.push(run.logs)
        processes.agree(run.begin)
        student, join, optimizer, scaler = run.student, run.join, run.optimizer, run.scaler
        learnable = [parameter for parameter in student.parameters() if parameter.requires_grad]
        amp = AUTOCAST.get(settings.precision)
        head, scale = run.cache.head.to(device), float(student.logit_scale.exp())
        started = logged_at = time.perf_counter()
        waited, health = 0.0, Health(device, settings.clip_norm, scaler)
        # closed at the end, whatever it is: processes that decode images are not left behind
        with run.counting() as counter, closing(join.batches(run.first_step, run.total_steps)) as batches:
            for step in range(run.first_step, run.total_steps):
                waiting = time.perf_counter()
                batch, stop = processes.agree(lambda: next(batches), stopped[0] if stopped else 0)
                waited += time.perf_counter() - waiting
                if stop:
                    run.check(health, step)
                    processes.agree(lambda: run.folder.save(step))  # noqa: B023 - called at once
                    raise AgreedError(
                        f"stopped by {signal.Signals(stop).name} after step {step} of {run.total_steps}; "
                        f"go on with --out {run.folder.out} --resume"
                    )

                classes_C, correction = run.classes.choose(batch.step_labels, step)
                with torch.autocast(device.type, dtype=amp, enabled=amp is not None):
                    image_features_BD = encode_batch(student, batch, device)
                    class_features_CD = run.text.class_features(classes_C)
                # logits in float32 on both sides: at scale 100, bfloat16 would round them by tenths
                logits_BC = ClassHead(class_features_CD, scale).logits(image_features_BD)
                teacher_logits_BC = run.teacher_logits(batch, classes_C, head) if batch.teacher else logits_BC
                targets_B = positions_of(batch.labels, classes_C).to(device)
                _, hard, soft = distillation_loss(
                    logits_BC,
                    teacher_logits_BC,
                    targets_B,
                    settings.soft_weight,
                    settings.temperature,
                    correction,
                )
                # means over this process's samples -> their share of the means over the step's
                hard, soft = batch.labelled_share * hard, batch.share * soft
                loss = hard + settings.soft_weight * soft

                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(settings, step, run.total_steps)
                optimizer.zero_grad(set_to_none=True)
                scaler.scale(loss).backward()
                done = step + 1
                logs = done % settings.log_every == 0 or done == run.total_steps
                hits = (logits_BC.argmax(-1) == targets_B).sum() if logs else torch.zeros_like(loss)
                figures = processes.sum_gradients(learnable, torch.stack([loss, hard, soft, hits]).detach())
                scaler.unscale_(optimizer)
                norm = torch.nn.utils.clip_grad_norm_(learnable, settings.clip_norm or float("inf"))
                scaler.step(optimizer)
                scaler.update()

                health.note(done, figures[0], norm)
                saves = done % settings.checkpoint_every == 0 or done == run.total_steps
                if logs or saves:
                    run.check(health, done)
                if logs:
                    now = time.perf_counter()
                    # steps since the last line of the log, which a continued run may have written earlier
                    steps = min((done - 1) % settings.log_every + 1, done - run.first_step)
                    of_loss, of_hard, of_soft, of_hits = figures.tolist()
                    labelled = int((batch.step_labels >= 0).sum())
                    line = {
                        "step": done,
                        "time": time.time(),
                        "epoch": done / join.steps_per_epoch,
                        "loss": of_loss,
                        "hard_loss": of_hard,
                        "soft_loss": of_soft,
                        "accuracy": of_hits / labelled if labelled else None,
                        "lr": optimizer.param_groups[0]["lr"],
                        "gradient_norm": norm.item(),
                        **health.counts(),
                        "samples_per_second": steps * join.batch_size / (now - logged_at),
                        "wait_seconds": waited,
                    }
                    logged_at = now
                    processes.agree(lambda: run.log(line))  # noqa: B023 - called at once
                    counter(0, **shown(line))
                if saves:
                    processes.agree(lambda: run.folder.save(done))  # noqa: B023 - called at once
                counter(1)

        seconds = time.perf_counter() - started
        result, _ = processes.agree(lambda: run.finish(seconds, waited))
        return result


@dataclass
class Run:
    """Everything that is made before the first step.

    Attributes:
        record: what the run wrote down of itself; None before a new one is begun.
        first_step: known when the folder is begun, or taken up.
    """

    settings: TrainSettings
    processes: Processes
    device: torch.device
    cache: TeacherCache
    student: PromptedCLIP
    join: Join
    mode: str
    classes: StepClasses
    text: StepText
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    folder: RunFolder
    logs: MetricLogs
    record: dict[str, Any] | None
    init: StoredStudent | None
    total_steps: int
    first_step: int = 0

    def begin(self) -> None:
        """Begin the run's folder, or take it up. Nothing is written before all else is known to be right."""
        resumed = self.record is not None
        if self.record is not None:
            self.first_step = self.folder.resume(self.total_steps)
        else:
            self.record = describe_run(
                self.settings,
                self.cache,
                self.student,
                self.mode,
                self.processes.size,
                self.join.batch_size,
                self.init,
            )
            self.folder.begin(self.record)
        if self.processes.first:
            out = self.folder.out
            self.logs.open(out, described(self.record), resumed)

    def log(self, line: dict[str, Any]) -> None:
        """Write down how it goes: in the run's folder, which has to take it, and for those who watch."""
        self.folder.log(line)
        self.logs.log(line)

    def counting(self) -> AbstractContextManager[Callable[..., None]]:
        """Progress of the steps, shown by the first process."""
        if not self.processes.first:
            return nullcontext(lambda *amount, **fields: None)
        return self._shown()

    @contextmanager
    def _shown(self) -> Iterator[Callable[..., None]]:
        with counting("steps", self.total_steps) as counter:
            counter.start_at(self.first_step)
            yield counter

    def teacher_logits(self, batch: Batch, classes_C: Tensor, head: ClassHead) -> Tensor:
        """Of this process's samples, [B, C] float32."""
        stored = {name: values.to(self.device) for name, values in batch.teacher.items()}
        every = len(classes_C) == len(head.class_features_CD)
        chosen = None if every else classes_C.to(self.device)
        return self.cache.encoding.logits(stored, head, self.settings.temperature, chosen)

    def check(self, health: Health, done: int) -> None:
        """End the run where figures have gone wrong; the samples of such a step go to `bad-step.json`.

        Raises:
            AgreedError: a loss, gradient or prompt that is not finite, or float16 that overflows for good.
        """
        fault = health.fault()
        last = self.folder.last_checkpoint
        kept = "no checkpoint was written" if last is None else f"the last good checkpoint has {last} steps"
        if fault is not None:
            bad, what = fault
            rows, views = self.join.step_samples(bad - 1)
            samples = {"rows": rows.tolist(), "views": views.tolist(), "keys": self.cache.samples.keys(rows)}
            self.folder.write_bad_step({"step": bad, "what": what, **samples})
            raise AgreedError(
                f"{what} at step {bad} (rows {', '.join(map(str, rows[:8]))}{', ...' * (len(rows) > 8)}; all "
                f"of them, with views and keys, in {self.folder.out / BAD_STEP}); {kept}"
            )
        if health.overflows():
            raise AgreedError(
                f"at step {done} gradients overflow float16 even where they are not scaled up: no step is "
                f"taken any more; {kept}; train with --precision bf16 or fp32"
            )
        if not self.folder.is_finite():
            raise AgreedError(f"after step {done} the prompts are not finite; {kept}; take a smaller --lr")

    def finish(self, seconds: float, waited: float) -> RunResult:
        """Write the student."""
        samples = (self.total_steps - self.first_step) * self.join.batch_size
        if self.processes.first:
            save_student(self.student, self.folder.out)
        return RunResult(
            out=self.folder.out,
            steps=self.total_steps,
            samples=samples,
            loss=self.folder.last_loss(),
            seconds=seconds,
            samples_per_second=samples / max(seconds, 1e-9),
            wait_seconds=waited,
            mode=self.mode,
        )


def prepare(settings: TrainSettings, processes: Processes, device: torch.device) -> Run:
    """Open, load and check everything; nothing is written yet."""
    if settings.resume and settings.out is None:
        raise UsageError("--resume needs --out with a run's folder")
    out = settings.out or Path("runs") / f"{Path(settings.cache).stem}-{datetime.now():%Y%m%d-%H%M%S}"
    record = look_into(out, settings.resume)
    logs = MetricLogs(settings.log)
    cache = open_cache(settings.cache, settings.vocabulary)
    cache.encoding.require_temperature(settings.temperature)
    torch.manual_seed(settings.seed)
    base = load_student_base(settings, cache, device)
    # a checkpoint holds the prompts: what the run started from may be gone
    going_on = record is not None and (out / CHECKPOINT).exists()
    init = read_student(settings.init) if settings.init is not None and not going_on else None
    if record is not None:
        started_from = record.get("init") if going_on else (init.digest if init else None)
        check_same_run(settings, out, record, cache, base, started_from)
    student = PromptedCLIP(base, settings.prompts, seed=settings.seed)
    if init is not None:
        student.take_prompts(init)
    if settings.freeze and (frozen := student.tower_prompts(settings.freeze)):
        frozen.requires_grad_(False)
    student = student.to(device)
    classes = StepClasses(settings, len(cache.vocabulary))
    join, mode = make_join(settings, cache, base, processes, device)
    optimizer = make_optimizer(settings, [p for p in student.parameters() if p.requires_grad])
    scaler = torch.amp.GradScaler(device.type, enabled=settings.precision == "fp16")
    folder = RunFolder(out, student.prompts, optimizer, scaler, writes=processes.first)
    return Run(
        settings,
        processes,
        device,
        cache,
        student,
        join,
        mode,
        classes,
        StepText(student, cache, processes, device),
        optimizer,
        scaler,
        folder,
        logs,
        record,
        init,
        total_steps=min(settings.epochs * join.steps_per_epoch, settings.max_steps or 2**62),
    )


def shown(line: dict[str, Any]) -> dict[str, str]:
    """What the progress says of a line of the log."""
    return {
        "samples/s": f"{line['samples_per_second']:.0f}",
        "loss": f"{line['loss']:.4f}",
        "hard": f"{line['hard_loss']:.4f}",
        "soft": f"{line['soft_loss']:.4f}",
        "wait": f"{line['wait_seconds']:.1f}s",
    }


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
