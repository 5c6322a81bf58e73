"""A sweep: a grid of runs over one cache or several, which of them are done, and their results.

`sweep_jobs.py` and `sweep_process.py` run them in processes; `sweep_record.py` has the record.
"""

import hashlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pipeline.axes import parse_axes
from pipeline.baselines import Baseline, Trained, as_baseline, baselines
from pipeline.recipe import Recipe, Row, load_recipe
from pipeline.run import build_one, by_class, check_evaluation, is_new_cache
from pipeline.settings import SweepSettings
from pipeline.sweep_jobs import run_here, run_on_dask
from pipeline.sweep_process import Job
from pipeline.sweep_record import RUNS, SweepRecord, SweepRow, read_sweep
from student_train.evaluation.settings import EvalSettings
from student_train.figures import TEACHER, ZERO_SHOT
from student_train.runs.record import RESULTS, SETTINGS, read_settings
from student_train.training.run_identity import changed_settings
from student_train.training.settings import TrainSettings
from teacher_cache.build import is_built
from teacher_cache.cores import usable_cores
from teacher_cache.errors import RppError, UsageError
from teacher_cache.files.lock_file import file_lock
from teacher_cache.files.places import absolute_place, local_path
from teacher_cache.preflight import require_model
from teacher_cache.progress import Counter, counting
from teacher_cache.settings import to_flat
from teacher_cache.stopping import stoppable
from teacher_cache.store.presence import require_cache

LOCK = "sweep.lock"
ROW = "row"  # the axis of a recipe's rows
FEATURES = "features"  # folder of features of frozen models that the runs share
LONGEST_NAME = 200  # characters; file systems take 255, and digest and seed follow
WAIT_SECONDS = 30.0  # for the runs of a killed sweep, which stop after their current step


@dataclass(frozen=True)
class Cell:
    """One run of the grid.

    Attributes:
        name: of its folder.
        settings: value of each axis.
        shared_evals: its evaluations with the cache of their table or of [train], not that of its row.
    """

    name: str
    settings: dict[str, Any]
    train: TrainSettings
    job: Job
    shared_evals: tuple[EvalSettings, ...]


def run_sweep(
    recipe_path: str | os.PathLike[str],
    settings: SweepSettings,
    on_note: Callable[[str], None] = lambda line: None,
) -> SweepRecord:
    """Train and evaluate every run of the grid that is not done yet.

    Builds the recipe's caches if they are not finished; otherwise their teachers are not loaded. A failed run
    is a row with the reason; the next call tries it again.

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
    check_rows(recipe)
    for cell in cells:
        check_same_settings(cell.train, out)
    message = f"stopped; finished runs are kept in {out}: run the same command again to continue"
    with lock_sweep(out, settings.lock) as lock, stoppable(message):
        ensure_caches(recipe, settings.lock, on_note)
        frozen = baselines([Trained(cell.train, cell.job.evals) for cell in cells], cells[0].shared_evals)
        own = {number: model.name for model in frozen for number in model.runs}
        record = SweepRecord(
            recipe=absolute_place(recipe_path),
            cache=absolute_place(recipe.train.cache),
            eval_caches=sorted({str(one.cache) for cell in cells for one in cell.job.evals}),
            axes={name: list(dict.fromkeys(c.settings[name] for c in cells)) for name in cells[0].settings},
            row_settings={row.name: row.settings for row in recipe.rows},
            seeds=list(dict.fromkeys(cell.train.seed for cell in cells)),
            rows=[
                SweepRow(
                    settings=cell.settings,
                    seed=cell.train.seed,
                    run=f"{RUNS}/{cell.name}",
                    zero_shot=own.get(number, ZERO_SHOT),
                )
                for number, cell in enumerate(cells)
            ],
        )
        jobs = jobs_of(settings, recipe)
        processes = None if settings.scheduler else jobs
        add_earlier_seconds(record, out)
        with counting("runs", len(cells)) as counter:
            of_models = {model.name: baseline_job(model, out) for model in frozen}
            progress = Progress(out, record, cells, of_models, on_note, counter, processes)
            if settings.scheduler is not None:
                run_on_dask(progress.todo, settings.scheduler, progress.finished)
            else:
                run_here(progress.todo, jobs, progress.finished, lock)
    return record


class Progress:
    """Adds the results of jobs to the record, writes it each time, and counts finished runs.

    Attributes:
        todo: jobs without results, those of frozen models first.
    """

    def __init__(
        self,
        out: Path,
        record: SweepRecord,
        cells: Sequence[Cell],
        frozen: Mapping[str, Job],
        on_note: Callable[[str], None],
        counter: Counter,
        processes: int | None,
    ) -> None:
        """Args:
        frozen: jobs that evaluate frozen models, by name.
        processes: how many run jobs; None if that is not known.
        """
        self._out, self._record, self._frozen = out, record, frozen
        self._on_note, self._counter = on_note, counter
        self._processes = processes
        self._started, self._before = time.monotonic(), (record.seconds, record.process_seconds)
        self._jobs = {cell.name: cell.job for cell in cells}
        self._rows = dict(zip(self._jobs, record.rows, strict=True))
        self.todo = {name: job for name, job in self._jobs.items() if not add_results(job, self._rows[name])}
        self._whys: dict[str, str] = {}
        missing = self._add_baselines()
        self.todo = {**missing, **self.todo}
        record.write(out)
        counter.start_at(sum(row.state == "done" for row in record.rows))

    def finished(self, name: str, why: str | None) -> None:
        """Add the results of a job that has ended.

        Args:
            why: the reason if it failed.
        """
        if name in self._frozen:
            if why is not None:
                self._whys[name] = why
                what = "frozen model" if name == ZERO_SHOT else f"frozen model '{name}'"
                self._on_note(f"the {what} cannot be evaluated: {why}")
            self._add_baselines()
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

    def _add_baselines(self) -> dict[str, Job]:
        """Copy the stored results of frozen models into the record; return the jobs without any.

        `by_class` is kept: a report compares the classes of every run with it.
        """
        found: dict[str, list[dict[str, Any]]] = {}
        for name, job in self._frozen.items():
            if (results := job.stored_results()) is not None:
                named = zip(job.evals, results.evals, strict=True)
                found[name] = [as_baseline(name, *pair) for pair in named]
        of_kind: dict[str, tuple[list[dict[str, Any]], str | None]] = {}
        for kind in (ZERO_SHOT, TEACHER):
            names = [name for name in self._frozen if name.startswith(kind)]
            whys = [f"{name}: {self._whys[name]}" for name in names if name in self._whys]
            if len(names) == 1 and whys:
                whys = [self._whys[names[0]]]
            of_kind[kind] = [one for name in names for one in found.get(name, [])], "; ".join(whys) or None
        self._record.zero_shot, self._record.zero_shot_why = of_kind[ZERO_SHOT]
        self._record.teacher, self._record.teacher_why = of_kind[TEACHER]
        return {name: job for name, job in self._frozen.items() if name not in found}


def make_cells(path: Path, axes: dict[str, list[str]], settings: SweepSettings, out: Path) -> list[Cell]:
    """Return every run: the recipe's rows, the product of the axes, the first one changing slowest, and all
    seeds of each.

    Raises:
        UsageError: an invalid value, invalid combination of values, a value given twice, or an axis that a
            row sets.
    """
    cells: dict[Path, Cell] = {}
    check_axes(load_recipe(path, {"out": str(out)}).rows, axes)
    points = [
        load_recipe(path, {**dict(zip(axes, values, strict=True)), "out": str(out)})
        for values in product(*axes.values())
    ]
    rows = range(len(points[0].rows)) or [None]
    for number, recipe in ((number, recipe) for number in rows for recipe in points):
        row = None if number is None else recipe.rows[number]
        point = recipe.train if row is None else row.train
        flat = to_flat(point)
        chosen = ({} if row is None else {ROW: row.name}) | {name: flat[name] for name in axes}
        shared = evaluations_of(recipe.evals, recipe, recipe.train.out)
        for seed in range(point.seed, point.seed + (settings.seeds or recipe.seeds or 1)):
            folder = out / RUNS / f"{settings_name(chosen)}seed={seed}"
            if folder in cells:
                raise UsageError(f"--set gives {', '.join(f'{a}={v}' for a, v in chosen.items())} twice")
            lock = settings.lock and point.lock
            update: dict[str, Any] = {"out": folder, "seed": seed, "resume": False, "lock": lock}
            if (jobs := jobs_of(settings, recipe)) > 1 and point.workers is None:
                update["workers"] = max(1, usable_cores() // jobs)
            train = point.model_copy(update=update)
            job = Job(
                train=train,
                evals=evaluations_of(recipe.evals if row is None else row.evals, recipe, folder),
                results=folder / RESULTS,
                features=out / FEATURES,
                log=out / "logs" / f"{folder.name}.log",
                folder=Path.cwd(),
            )
            cells[folder] = Cell(folder.name, chosen, train, job, shared)
    return list(cells.values())


def check_axes(rows: Sequence[Row], axes: Iterable[str]) -> None:
    """Check that no row sets an axis, which would have one value only in its runs.

    Raises:
        UsageError: names the row.
    """
    for axis in axes:
        setting = [row.name for row in rows if axis in row.settings]
        if setting:
            raise UsageError(
                f"--set train.{axis}: the row '{setting[0]}' sets {axis} itself; remove it from the row, or "
                "leave out this --set"
            )


def settings_name(settings: Mapping[str, Any]) -> str:
    """Return values of axes as the beginning of a folder's name."""
    name = "".join(f"{axis}={quote(str(value), safe=' ')}," for axis, value in settings.items())
    if len(name) > LONGEST_NAME:
        return f"{name[:LONGEST_NAME]}..{hashlib.sha256(name.encode()).hexdigest()[:12]},"
    return name


def jobs_of(settings: SweepSettings, recipe: Recipe) -> int:
    """Return how many runs are trained at a time."""
    return settings.jobs or recipe.jobs or 1


def evaluations_of(
    evals: Sequence[EvalSettings], recipe: Recipe, student: Path | None
) -> tuple[EvalSettings, ...]:
    """Return the evaluations of the recipe's own run, for another student."""
    return tuple(
        by_class(evaluation).model_copy(update={"student": str(student)})
        for evaluation in evals
        if evaluation.student == str(recipe.train.out)
    )


def baseline_job(model: Baseline, out: Path) -> Job:
    """Return the job that evaluates a frozen model."""
    name = model.name if model.name in (ZERO_SHOT, TEACHER) else quote(model.name, safe=" (),")
    if len(name) > LONGEST_NAME:
        name = f"{name[:LONGEST_NAME]}..{hashlib.sha256(name.encode()).hexdigest()[:12]}"
    return Job(
        train=None,
        evals=model.evals,
        results=out / f"{name}.json",
        features=out / FEATURES,
        log=out / "logs" / f"{name}.log",
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


def ensure_caches(recipe: Recipe, lock: bool, on_note: Callable[[str], None]) -> None:
    """Build the caches of the recipe that are not finished; without a lock if the recipe or `lock` says so.

    Raises:
        UsageError, RppError: see `build_cache`, which refuses a finished cache with other settings.
    """
    for build in recipe.builds:
        if not is_built(build):
            build_one(build.model_copy(update={"lock": lock and build.lock}), on_note)


def check_rows(recipe: Recipe) -> None:
    """Check that the caches and the models of rows exist, before the first run starts.

    Raises:
        UsageError: names the row.
    """
    for row in recipe.rows:
        try:
            for cache in (row.train.cache, row.train.student_features):
                if cache is not None and not is_new_cache(cache, recipe):
                    require_cache(cache)
            if row.train.student is not None:
                require_model(row.train.student, row.train.pretrained)
        except UsageError as error:
            raise UsageError(f"the row '{row.name}': {error}") from error


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
