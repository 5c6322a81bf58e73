"""A sweep: a grid of runs over one cache, which of them are done, and their results.

`sweep_jobs.py` and `sweep_process.py` run them in processes; `sweep_record.py` has the record.
"""

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pipeline.axes import parse_axes
from pipeline.recipe import Recipe, load_recipe
from pipeline.run import by_class, check_evaluation
from pipeline.settings import SweepSettings
from pipeline.sweep_jobs import run_here, run_on_dask
from pipeline.sweep_process import Job
from pipeline.sweep_record import RUNS, SweepRecord, SweepRow, read_sweep
from student_train.evaluation.settings import EvalSettings
from student_train.figures import ZERO_SHOT
from student_train.runs.record import RESULTS, SETTINGS, read_settings
from student_train.training.run_identity import changed_settings
from student_train.training.settings import TrainSettings
from teacher_cache.build import build_cache
from teacher_cache.cores import usable_cores
from teacher_cache.errors import RppError, UsageError
from teacher_cache.files.lock_file import file_lock
from teacher_cache.files.places import absolute_place, local_path, same_place
from teacher_cache.progress import Counter, counting
from teacher_cache.settings import to_flat
from teacher_cache.stopping import stoppable
from teacher_cache.store.cache_store import CacheStore

LOCK = "sweep.lock"
FEATURES = "features"  # folder of features of frozen models that the runs share
LONGEST_NAME = 200  # characters; file systems take 255, and digest and seed follow
WAIT_SECONDS = 30.0  # for the runs of a killed sweep, which stop after their current step


@dataclass(frozen=True)
class Cell:
    """One run of the grid.

    Attributes:
        name: of its folder.
        settings: value of each axis.
    """

    name: str
    settings: dict[str, Any]
    train: TrainSettings
    job: Job


def run_sweep(
    recipe_path: str | os.PathLike[str],
    settings: SweepSettings,
    on_note: Callable[[str], None] = lambda line: None,
) -> SweepRecord:
    """Train and evaluate every run of the grid that is not done yet.

    Builds the cache if it is not finished; otherwise the teacher is not loaded. A failed run is a row with
    the reason; the next call tries it again.

    Returns:
        The content of `sweep.json`.

    Raises:
        UsageError: an invalid recipe, axis or folder; raised before the first run starts.
        RppError: stopped, or the connection to the Dask scheduler is lost. The next call continues.
    """
    recipe_path = local_path(recipe_path)
    out = settings.out or Path("sweeps") / recipe_path.stem
    axes = parse_axes(settings.set)
    recipe = load_recipe(recipe_path, {"out": str(out)})
    cells = make_cells(recipe_path, axes, settings, out)
    for evaluation in recipe.evals:
        check_evaluation(evaluation, recipe)
    for cell in cells:
        check_same_settings(cell.train, out)
    message = f"stopped; finished runs are kept in {out}: run the same command again to continue"
    with lock_sweep(out, settings.lock) as lock, stoppable(message):
        ensure_cache(recipe, settings.lock, on_note)
        record = SweepRecord(
            recipe=absolute_place(recipe_path),
            cache=absolute_place(recipe.train.cache),
            axes={name: list(dict.fromkeys(cell.settings[name] for cell in cells)) for name in axes},
            seeds=list(dict.fromkeys(cell.train.seed for cell in cells)),
            rows=[
                SweepRow(settings=cell.settings, seed=cell.train.seed, run=f"{RUNS}/{cell.name}")
                for cell in cells
            ],
        )
        processes = None if settings.scheduler else settings.jobs
        add_earlier_seconds(record, out)
        with counting("runs", len(cells)) as counter:
            progress = Progress(out, record, cells, zero_shot_job(recipe, out), on_note, counter, processes)
            if settings.scheduler is not None:
                run_on_dask(progress.todo, settings.scheduler, progress.finished)
            else:
                run_here(progress.todo, settings.jobs, progress.finished, lock)
    return record


class Progress:
    """Adds the results of jobs to the record, writes it each time, and counts finished runs.

    Attributes:
        todo: jobs without results, the frozen model's first.
    """

    def __init__(
        self,
        out: Path,
        record: SweepRecord,
        cells: Sequence[Cell],
        frozen: Job | None,
        on_note: Callable[[str], None],
        counter: Counter,
        processes: int | None,
    ) -> None:
        """Args:
        processes: how many run jobs; None if that is not known.
        """
        self._out, self._record, self._frozen = out, record, frozen
        self._on_note, self._counter = on_note, counter
        self._processes = processes
        self._started, self._before = time.monotonic(), (record.seconds, record.process_seconds)
        self._jobs = {cell.name: cell.job for cell in cells}
        self._rows = dict(zip(self._jobs, record.rows, strict=True))
        self.todo = {name: job for name, job in self._jobs.items() if not add_results(job, self._rows[name])}
        if frozen is not None and not add_zero_shot(frozen, record):
            self.todo = {ZERO_SHOT: frozen, **self.todo}
        record.write(out)
        counter.start_at(sum(row.state == "done" for row in record.rows))

    def finished(self, name: str, why: str | None) -> None:
        """Add the results of a job that has ended.

        Args:
            why: the reason if it failed.
        """
        if name == ZERO_SHOT:
            if why is None and self._frozen is not None:
                add_zero_shot(self._frozen, self._record)
            else:
                self._record.zero_shot_why = why
                self._on_note(f"the frozen model cannot be evaluated: {why}")
        elif why is None and add_results(self._jobs[name], self._rows[name]):
            self._counter(1)
        else:
            row = self._rows[name]
            row.state, row.why = "failed", why or "its results cannot be read"
            self._counter(0, failed=str(sum(one.state == "failed" for one in self._record.rows)))
            self._on_note(f"{row.run} failed: {row.why}")
        now = time.monotonic() - self._started
        seconds, process_seconds = self._before
        self._record.seconds = seconds + now
        if process_seconds is not None and self._processes is not None:
            self._record.process_seconds = process_seconds + self._processes * now
        else:
            self._record.process_seconds = None
        self._record.write(self._out)


def make_cells(path: Path, axes: dict[str, list[str]], settings: SweepSettings, out: Path) -> list[Cell]:
    """Return every run: the product of the axes, the first one changing slowest, and all seeds of each.

    Raises:
        UsageError: an invalid value, invalid combination of values, or a value given twice.
    """
    cells: dict[Path, Cell] = {}
    for values in product(*axes.values()):
        recipe = load_recipe(path, {**dict(zip(axes, values, strict=True)), "out": str(out)})
        flat = to_flat(recipe.train)
        chosen = {name: flat[name] for name in axes}
        for seed in range(recipe.train.seed, recipe.train.seed + settings.seeds):
            name = "".join(f"{axis}={quote(str(value), safe=' ')}," for axis, value in chosen.items())
            if len(name) > LONGEST_NAME:
                name = f"{name[:LONGEST_NAME]}..{hashlib.sha256(name.encode()).hexdigest()[:12]},"
            folder = out / RUNS / f"{name}seed={seed}"
            if folder in cells:
                raise UsageError(f"--set gives {', '.join(f'{a}={v}' for a, v in chosen.items())} twice")
            lock = settings.lock and recipe.train.lock
            update: dict[str, Any] = {"out": folder, "seed": seed, "resume": False, "lock": lock}
            if settings.jobs > 1 and recipe.train.workers is None:
                update["workers"] = max(1, usable_cores() // settings.jobs)
            train = recipe.train.model_copy(update=update)
            evals = evaluations_of(recipe, str(folder))
            log = out / "logs" / f"{folder.name}.log"
            job = Job(
                train=train,
                evals=evals,
                results=folder / RESULTS,
                features=out / FEATURES,
                log=log,
                folder=Path.cwd(),
            )
            cells[folder] = Cell(folder.name, chosen, train, job)
    return list(cells.values())


def evaluations_of(recipe: Recipe, student: str) -> tuple[EvalSettings, ...]:
    """Return the recipe's evaluations of its own run, for another student."""
    return tuple(
        by_class(evaluation).model_copy(update={"student": student})
        for evaluation in recipe.evals
        if evaluation.student == str(recipe.train.out)
    )


def zero_shot_job(recipe: Recipe, out: Path) -> Job | None:
    """Return the job that evaluates the frozen model, or None without evaluations."""
    evals = evaluations_of(recipe, ZERO_SHOT)
    if not evals:
        return None
    log = out / "logs" / f"{ZERO_SHOT}.log"
    return Job(
        train=None,
        evals=evals,
        results=out / f"{ZERO_SHOT}.json",
        features=out / FEATURES,
        log=log,
        folder=Path.cwd(),
    )


def add_results(job: Job, row: SweepRow) -> bool:
    """Copy the stored results of a run into its row; return whether there are any."""
    results = job.stored_results()
    if results is None:
        return False
    row.state, row.why, row.train = "done", None, results.train
    row.evals = [
        {name: v for name, v in found.items() if not name.startswith("by_class")} for found in results.evals
    ]
    return True


def add_zero_shot(job: Job, record: SweepRecord) -> bool:
    """Copy the stored results of the frozen model into the record; return whether there are any.

    `by_class` is kept: a report compares the classes of every run with it.
    """
    results = job.stored_results()
    if results is None:
        return False
    record.zero_shot, record.zero_shot_why = results.evals, None
    return True


def ensure_cache(recipe: Recipe, lock: bool, on_note: Callable[[str], None]) -> None:
    """Build the cache of the recipe unless it is finished; without a lock if the recipe or `lock` says so.

    Raises:
        UsageError, RppError: see `build_cache`.
    """
    if recipe.build is not None and same_place(recipe.train.cache, recipe.build.out):
        try:
            if not CacheStore.open(recipe.build.out).parts.missing():
                return
        except UsageError:
            pass  # there is no cache yet, or the build reports what is wrong with it
        build = recipe.build.model_copy(update={"lock": lock and recipe.build.lock})
        built = build_cache(build, on_note)
        on_note(f"cache {built.path}: {built.parts_computed} of {built.parts_total} parts computed now")


def check_same_settings(settings: TrainSettings, out: Path) -> None:
    """Check that a run in the folder, if there is one, was created with the same settings.

    Raises:
        UsageError: names the settings that differ.
    """
    folder = settings.out
    if folder is not None and (folder / SETTINGS).is_file():
        changed = changed_settings(read_settings(folder), settings)
        if changed:
            raise UsageError(
                f"the run {folder} was created with different settings ({'; '.join(changed)}); use the "
                f"stored settings or choose another --out than {out}"
            )


def add_earlier_seconds(record: SweepRecord, out: Path) -> None:
    """Add the seconds of earlier calls, if there is a readable record of them."""
    record.process_seconds = 0.0
    with suppress(UsageError):
        earlier = read_sweep(out)
        record.seconds, record.process_seconds = earlier.seconds, earlier.process_seconds


@contextmanager
def lock_sweep(out: Path, lock: bool = True) -> Iterator[list[int]]:
    """Lock the sweep's folder, so that two sweeps do not run the same grid.

    Args:
        lock: if false, nothing is locked.

    Yields:
        The lock's descriptor, which the runs get so that they lock it too; empty without a lock.

    Raises:
        UsageError: another sweep is at work in it, or it cannot be written.
    """
    busy = UsageError(
        f"another sweep is at work in {out}, or its last runs are; wait for it, stop it, or choose another "
        "--out"
    )
    descriptors = []
    with ExitStack() as held:
        try:
            (out / "logs").mkdir(parents=True, exist_ok=True)
            (out / RUNS).mkdir(exist_ok=True)
            if lock:
                descriptors.append(held.enter_context(file_lock(out / LOCK, busy, WAIT_SECONDS)))
        except OSError as error:
            raise UsageError(f"--out {out} cannot be written: {error.strerror}") from error
        yield descriptors


def check_all_done(record: SweepRecord) -> None:
    """Raises:
    RppError: a run failed; names the number and the first reason.
    """
    failed = [row for row in record.rows if row.state != "done"]
    if failed:
        raise RppError(f"{len(failed)} of {len(record.rows)} runs failed; the first: {failed[0].why}")
