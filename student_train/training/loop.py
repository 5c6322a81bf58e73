"""The training loop: prompts learn from hard labels and cached soft labels.

`train` reads top to bottom in the order in which things happen; each part that it calls has its own file:
batches (`inputs.py`), logits (`forward.py`), losses (`losses/`), the optimizer's step (`optimizer.py`),
checkpoints (`checkpoint.py`), figures (`metrics.py`, `health.py`) and what several processes agree on
(`distributed.py`).
"""

import logging
import signal
from collections.abc import Generator, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch

from student_train.data.join import Batch
from student_train.model.stored import read_student
from student_train.model.student import PromptedCLIP, save_student
from student_train.runs.folder import BAD_STEP, RunFolder
from student_train.runs.record import FROM_RUN, find_checkpoint, public_record, require_startable
from student_train.training.checkpoint import Checkpoint
from student_train.training.distributed import AgreedError, Processes, joined_processes
from student_train.training.forward import Forward
from student_train.training.health import Health
from student_train.training.inputs import as_recorded, load_student_base, make_join
from student_train.training.losses import StepLogits, TotalLoss
from student_train.training.metric_logs import MetricLogs
from student_train.training.metrics import Metrics
from student_train.training.optimizer import PromptOptimizer
from student_train.training.run_identity import check_same_run, describe_run, places_of_inputs
from student_train.training.settings import TrainSettings
from teacher_cache.compat.dynamo import CompileClock, is_compile_error, require_compiler
from teacher_cache.errors import RppError, UsageError
from teacher_cache.files.places import absolute_place
from teacher_cache.progress import print_remark
from teacher_cache.settings import bytes_of
from teacher_cache.softlabels import open_cache
from teacher_cache.stopping import handling_stops
from teacher_cache.teacher.teacher import AUTOCAST

log = logging.getLogger(__name__)


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


def train(settings: TrainSettings, run_type: "type[Run] | None" = None) -> RunResult:
    """Train prompts on a cache; the results are in the run's folder.

    Under torchrun, every process calls this; the first one writes.

    Args:
        run_type: the class of the run's parts; `Run` if None.

    Raises:
        UsageError: settings that do not fit the cache, the model or the folder.
        RppError: the loss or a gradient is not finite, an image is missing, or a signal stopped the run.
    """
    with (
        joined_processes(settings.device) as (processes, device),
        stop_signals() as stopped,
        ExitStack() as at_end,
    ):
        run = processes.agree(run_type or Run, settings, processes, device)
        at_end.callback(run.folder.close)
        at_end.push(run.metrics.logs)
        processes.agree(run.start)
        first, total = run.first_step, run.total_steps
        # the batches are closed in any case, which ends the processes that decode images
        with run.metrics.progress(first, total), closing(run.batches(first, total)) as batches:
            for step in range(first, total):
                with run.metrics.waiting():
                    batch, stop = processes.agree_or_stop(partial(next, batches), stopped)
                if stop:
                    run.check(step)
                    processes.agree(run.checkpoint.save, step)
                    raise AgreedError(
                        f"stopped by {signal.Signals(stop).name} after step {step} of {total}; resume "
                        f"with --out {run.folder.out} --resume"
                    )

                done = step + 1
                last = done == total
                logs = done % settings.log_every == 0 or last
                saves = done % settings.checkpoint_every == 0 or last
                figures = run.train_step(batch, step, logs)
                if logs or saves:
                    run.check(done)
                if logs:
                    processes.agree(run.metrics.log, run.metrics_line(batch, done, figures))
                if saves:
                    processes.agree(run.checkpoint.save, done)
                run.metrics.count_step()
        return processes.agree(run.finish)


class Run:
    """The parts of a run.

    Attributes:
        record: what `settings.json` holds of the run to resume; None in a new run.
        first_step: steps that were taken before, known once the run is started.
    """

    def __init__(self, settings: TrainSettings, processes: Processes, device: torch.device) -> None:
        """Open, load and check everything, and write nothing.

        Raises:
            UsageError: as `train`.
        """
        if settings.resume and settings.out is None:
            raise UsageError("--resume needs --out with a run's folder")
        out = settings.out or Path("runs") / f"{Path(settings.cache).stem}-{datetime.now():%Y%m%d-%H%M%S}"
        record = require_startable(out, settings.resume)
        logs = MetricLogs(settings.log)
        cache = open_cache(settings.cache, settings.vocabulary)
        cache.encoding.require_temperature(settings.temperature)
        torch.manual_seed(settings.seed)
        if settings.compile:
            require_compiler(device)
        base = load_student_base(settings, cache, device, record)
        # a checkpoint has the prompts: the run of --init may be gone
        from_checkpoint = record is not None and find_checkpoint(out) is not None
        init = read_student(settings.init) if settings.init is not None and not from_checkpoint else None
        if record is not None:
            started_from = record.get("init") if from_checkpoint else (init.digest if init else None)
            check_same_run(settings, out, record, cache, base, started_from)
        student = PromptedCLIP(base, settings.prompts, seed=settings.seed)
        if init is not None:
            student.take_prompts(init)
        if settings.freeze and (frozen := student.tower_prompts(settings.freeze)):
            frozen.requires_grad_(False)
        student = student.to(device)
        self.settings, self.processes, self.cache, self.student = settings, processes, cache, student
        self.record, self.init, self.first_step = record, init, 0
        self.loss = TotalLoss(settings)
        reads = settings if record is None else as_recorded(settings, record, cache)
        self.join = make_join(reads, cache, base, processes, device, self.loss.reads_teacher)
        self.total_steps = min(settings.epochs * self.join.steps_per_epoch, settings.max_steps or 2**62)
        learnable = [parameter for parameter in student.parameters() if parameter.requires_grad]
        self.optimizer = PromptOptimizer(settings, learnable, device, self.total_steps)
        self.forward = Forward(settings, cache, student, processes, device)
        if (dtype := AUTOCAST.get(settings.precision)) is not None:
            student.keep_half_weights(dtype)
        if settings.compile:
            student.compile_towers()
        student.text_memory = self._text_memory()
        self.plan = self.forward.plan()
        self.health = Health(device, settings.clip_norm, self.optimizer.scaler)
        self.checkpoint = Checkpoint(out, student.prompts, self.optimizer, writes=processes.first)
        self.folder = RunFolder(out, writes=processes.first, lock=settings.lock)
        clock = CompileClock() if settings.compile else None
        self.metrics = Metrics(
            self.folder, logs, settings.log_every, visible=processes.first, compiling=clock
        )

    def start(self) -> None:
        """Create the run's folder, or resume the run in it."""
        resumes = self.record is not None
        if self.record is not None:
            self.folder.resume()
            self.first_step = self.checkpoint.load(self.total_steps)
            base = self.student.base
            places = places_of_inputs(self.settings, self.folder.out, self.cache, base)
            moved = {**self.record["settings"], "cache": absolute_place(self.settings.cache)}
            self.folder.update(self.record, {"settings": moved, FROM_RUN: places})
            self.folder.drop_metrics(after=self.first_step)
        else:
            self.record = describe_run(
                self.settings,
                self.folder.out,
                self.cache,
                self.student,
                self.join,
                self.processes.size,
                self.init,
                self.plan,
            )
            self.folder.create(self.record)
        if self.processes.first:
            if self.plan is not None:
                print_remark(f"text tower: {self.plan}")
                if self.settings.text_memory is not None and self.plan.peak_bytes > self._text_memory():
                    print_remark(
                        f"note: the text tower needs more than --text-memory {self.settings.text_memory}, "
                        "although all its activations are recomputed"
                    )
            self.metrics.logs.open(self.folder.out, public_record(self.record), resumes)

    def _text_memory(self) -> int:
        """Bytes for activations of the text tower: as requested, as in the run to resume, or what is free."""
        if self.settings.text_memory is not None:
            return bytes_of(self.settings.text_memory)
        recorded = (self.record or {}).get("text_memory")
        if isinstance(recorded, int):
            return recorded
        return self.forward.free_memory(-(-self.join.batch_size // self.processes.size))

    def batches(self, first: int, total: int) -> Generator[Batch, None, None]:
        """Yield the batches of steps first .. total - 1 with their `StepInputs`; the caller closes it."""
        return self.join.batches(first, total, self.forward.prepare)

    def train_step(self, batch: Batch, step: int, with_accuracy: bool) -> dict[str, torch.Tensor]:
        """Take a step.

        Returns:
            Scalars over the whole step, of all processes: `loss` and its terms, `hits` (samples whose hard
            label has the largest logit; 0 without `with_accuracy`) and `gradient_norm`.
        """
        logits, figures = self._forward_backward(batch, step)
        figures["hits"] = torch.zeros_like(figures["loss"])
        if with_accuracy:
            figures["hits"] += (logits.student_BC.argmax(-1) == logits.targets_B).sum()
        shares = torch.stack(list(figures.values())).detach()
        total = self.processes.sum_gradients(self.optimizer.parameters, shares)
        norm = self.optimizer.step()
        figures = dict(zip(figures, total, strict=True)) | {"gradient_norm": norm}
        self.health.note(step + 1, figures["loss"], norm)
        return figures

    def _forward_backward(self, batch: Batch, step: int) -> tuple[StepLogits, dict[str, torch.Tensor]]:
        """Compute a step's gradients; if the first step needs more memory than there is, with a smaller plan.

        Raises:
            RppError: not enough memory on the GPU.
        """
        while True:
            try:
                logits = self.forward(batch, batch.prepared)
                figures = self.loss(logits)
                self.optimizer.backward(figures["loss"], step)
            except torch.OutOfMemoryError as error:
                smaller = self.forward.smaller_plan() if step == self.first_step else None
                if smaller is None or self.processes.size > 1:  # other processes wait in the step's exchange
                    raise RppError(
                        f"not enough GPU memory at step {step} ({str(error).partition(chr(10))[0]}); "
                        f"use a smaller --text-memory (now {self.student.text_memory}), --batch-size or "
                        "--classes-per-step, or --precision bf16"
                    ) from error
                self.plan = smaller
                log.warning("not enough memory on the GPU: text tower with a smaller plan: %s", smaller)
            except RuntimeError as error:
                if not self.settings.compile or not is_compile_error(error):
                    raise
                reason = str(error).strip().partition("\n")[0]
                raise RppError(
                    f"torch.compile cannot compile the towers ({reason}); leave out --compile"
                ) from error
            else:
                return logits, figures

    def metrics_line(self, batch: Batch, done: int, figures: dict[str, torch.Tensor]) -> dict[str, Any]:
        """The line of `metrics.jsonl` for step `done`, the first of which is 1."""
        values = dict(zip(figures, torch.stack(list(figures.values())).tolist(), strict=True))
        hits, norm = values.pop("hits"), values.pop("gradient_norm")
        labelled = int((batch.step_labels >= 0).sum())
        return self.metrics.line(
            done,
            self.join.batch_size,
            {
                "epoch": done / self.join.steps_per_epoch,
                **values,
                "accuracy": hits / labelled if labelled else None,
                "lr": self.optimizer.rate,
                "gradient_norm": norm,
                **self.health.counts(),
            },
        )

    def check(self, done: int) -> None:
        """End the run where figures are not finite; the samples of such a step go to `bad-step.json`.

        Raises:
            AgreedError: a loss, gradient or prompt that is not finite, or float16 that always overflows.
        """
        fault = self.health.fault()
        last = self.checkpoint.last_step
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
        if self.health.overflows():
            raise AgreedError(
                f"at step {done} gradients overflow float16 without any scaling: no later step would be "
                f"taken; {kept}; train with --precision bf16 or fp32"
            )
        if not self.checkpoint.is_finite():
            raise AgreedError(f"after step {done} the prompts are not finite; {kept}; use a smaller --lr")

    def finish(self) -> RunResult:
        """Write the student."""
        seconds = self.metrics.seconds
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
            wait_seconds=self.metrics.wait_seconds,
            mode=self.join.mode,
        )


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """SIGTERM, SIGINT and SIGHUP are appended to the list; a second SIGTERM or SIGINT ends the process, as
    without this block."""
    received: list[int] = []
    before: dict[int, Any] = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def note(number: int, frame: Any) -> None:
        received.append(number)
        if number in before:
            signal.signal(number, before[number])

    with handling_stops(note, signal.SIGINT):
        yield received
