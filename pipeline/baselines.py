"""Frozen models beside the runs of a recipe: the students' own, and teachers that are other models."""

from collections.abc import Hashable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from student_train.evaluation.frozen_names import frozen_name
from student_train.evaluation.settings import EvalSettings
from student_train.figures import TEACHER, ZERO_SHOT
from student_train.training.settings import TrainSettings
from teacher_cache.conventions import recorded_conventions
from teacher_cache.errors import UsageError
from teacher_cache.model_names import (
    LOCAL_DIR,
    canonical_model_name,
    canonical_pretrained,
    portable_model,
    portable_pretrained,
)
from teacher_cache.store.cache_store import CacheStore


@dataclass(frozen=True)
class Trained:
    """Settings of runs, and their evaluations, whose `cache` is that of the table or of the runs."""

    train: TrainSettings
    evals: tuple[EvalSettings, ...]


@dataclass(frozen=True)
class Baseline:
    """A frozen model beside runs.

    Attributes:
        name: `zero-shot` or `teacher`; with its model or its cache in parentheses if there are several.
        evals: the evaluations of the runs, for this model.
        runs: indices of the runs whose student it is; none for a teacher.
    """

    name: str
    evals: tuple[EvalSettings, ...]
    runs: tuple[int, ...] = ()


def baselines(runs: Sequence[Trained], evals: Sequence[EvalSettings]) -> list[Baseline]:
    """Return the frozen models of the students in the order of the runs, then teachers that are none of them.

    Call it when all caches are built: their headers name the teachers.

    Args:
        evals: the evaluations, whose `cache` is that of the table or of [train].
    """
    if not evals:
        return []
    caches = Caches([*(run.train.cache for run in runs), *(one.cache for run in runs for one in run.evals)])
    students: dict[Hashable, list[int]] = {}
    for number, run in enumerate(runs):
        students.setdefault(caches.student(run.train), []).append(number)
    teachers: dict[Hashable, str] = {}
    for cache in (one.cache for run in runs for one in run.evals):
        if cache is not None and caches.teacher(cache) not in students:
            teachers.setdefault(caches.teacher(cache), cache)
    labels = [caches.label(runs[numbers[0]].train) for numbers in students.values()]
    found: list[Baseline] = []
    for numbers, label in zip(students.values(), labels, strict=True):
        # a student that no setting names is loaded as its cache records it
        unnamed = (runs[number] for number in numbers if not _is_named(runs[number].train))
        run = next(unnamed, runs[numbers[0]])
        name = ZERO_SHOT if len(students) == 1 else f"{ZERO_SHOT} ({label})"
        if labels.count(label) > 1:
            name = f"{ZERO_SHOT} ({label}, {len(found) + 1})"
        frozen = [_frozen_student(run.train, *pair, caches) for pair in zip(run.evals, evals, strict=True)]
        found.append(Baseline(name, tuple(frozen), tuple(numbers)))
    for teacher, cache in teachers.items():
        name = TEACHER if len(teachers) == 1 else f"{TEACHER} ({cache})"
        found.append(Baseline(name, tuple(_frozen_teacher(one, teacher, cache, caches) for one in evals)))
    return found


class Caches:
    """The teachers that caches record. Each cache is opened once."""

    def __init__(self, caches: Iterable[str | None]) -> None:
        self._teachers: dict[str, dict[str, Any] | None] = {}
        for cache in caches:
            if cache is not None:
                self.record(cache)

    def record(self, cache: str) -> dict[str, Any] | None:
        """Return the record of a cache's teacher; None if the cache cannot be read."""
        if cache not in self._teachers:
            self._teachers[cache] = None
            with suppress(UsageError):
                self._teachers[cache] = CacheStore.open(cache).header.teacher
        return self._teachers[cache]

    def teacher(self, cache: str) -> Hashable:
        """Return what identifies the model of a cache's teacher: weights and conventions."""
        record = self.record(cache)
        if record is None:
            return cache
        conventions = recorded_conventions(record)
        return record["weights_digest"], repr(conventions and conventions.fields)

    def student(self, train: TrainSettings) -> Hashable:
        """Return what identifies the frozen model of a student: equal to a teacher's if it is that model."""
        if not _is_named(train):
            return self.teacher(train.cache)
        named = self.named(train)
        for cache, record in self._teachers.items():
            if record is not None and train.weights_like is None:
                stated = "--" in str(record.get("conventions_from") or "")  # an option
                if named == (record["model"], record.get("pretrained")) and not stated:
                    return self.teacher(cache)
        return *named, train.weights_like

    def named(self, train: TrainSettings) -> tuple[str, str | None]:
        """Return canonical model and weights of a student that the settings name."""
        model = train.student or (self.record(train.cache) or {}).get("model") or ""
        return canonical_model_name(model), canonical_pretrained(train.pretrained)

    def label(self, train: TrainSettings) -> str:
        """Return a short name of a student's frozen model."""
        record = self.record(train.cache) or {}
        teacher = str(record.get("model") or train.cache), record.get("pretrained")
        model, pretrained = self.named(train) if _is_named(train) else teacher
        weights = portable_pretrained(pretrained)
        return portable_model(model).removeprefix(LOCAL_DIR) + (f", {weights}" if weights else "")


def _is_named(train: TrainSettings) -> bool:
    return train.student is not None or train.pretrained is not None


def _frozen_student(
    train: TrainSettings, own: EvalSettings, shared: EvalSettings, caches: Caches
) -> EvalSettings:
    """Return an evaluation of the frozen model of a student.

    Args:
        own: the evaluation of its runs.
        shared: the same one with the cache of its table or of [train].
    """
    if _is_named(train):
        model, pretrained = caches.named(train)
        update = {"student": frozen_name(model, pretrained), "cache": shared.cache, "model": None}
        # `weights_like` is for a weights file, and [train] refuses it otherwise
        return own.model_copy(update=update | {"pretrained": None, "weights_like": train.weights_like})
    for cache in (shared.cache, own.cache):
        if cache is not None and caches.teacher(cache) == caches.teacher(train.cache):
            return _zero_shot(own, cache)
    # the evaluation compares with another teacher, which --student zero-shot would take for the student
    metrics = tuple(metric for metric in own.metrics if metric != "agreement")
    return _zero_shot(own, train.cache).model_copy(update={"metrics": metrics})


def _frozen_teacher(shared: EvalSettings, teacher: Hashable, cache: str, caches: Caches) -> EvalSettings:
    # its templates are those of the evaluation's cache, if that has the same teacher
    same = shared.cache is not None and caches.teacher(shared.cache) == teacher
    # --model and --pretrained name the place of the student's model
    update = {"model": None, "pretrained": None}
    return _zero_shot(shared, shared.cache if same else cache).model_copy(update=update)


def _zero_shot(settings: EvalSettings, cache: str | None) -> EvalSettings:
    # an [[eval]] of another student, zero-shot:MODEL:FILE, may state the conventions of its file
    return settings.model_copy(update={"student": ZERO_SHOT, "cache": cache, "weights_like": None})


def as_baseline(name: str, settings: EvalSettings, found: dict[str, Any]) -> dict[str, Any]:
    """Return results of a frozen model under the name of its baseline.

    `frozen` is a model that is not the teacher, as `--student` takes it. Results of earlier versions, which
    evaluated the teacher in place of any student's model, do not have it.
    """
    frozen = {} if settings.student == ZERO_SHOT else {"frozen": settings.student}
    return found | {"student": name} | frozen
