"""Models for evaluation, students and frozen ones: images or names in, unit features out.

Shapes: B batch, C classes, D embedding.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from student_train.evaluation.frozen_names import frozen_name, named_frozen_model
from student_train.evaluation.preflight import check_weights_like, zero_shot_without_cache
from student_train.evaluation.settings import ModelSettings, ModelWithClasses
from student_train.figures import ZERO_SHOT
from student_train.model.named_model import load_named_model
from student_train.model.stored import read_provenance
from student_train.model.student import PromptedCLIP, load_student
from student_train.runs.record import SETTINGS, read_settings
from teacher_cache.classes.templates import DEFAULT_TEMPLATE
from teacher_cache.classes.vocabulary import Vocabulary, load_vocabulary
from teacher_cache.command_settings import Precision
from teacher_cache.conventions import ConventionOptions, Conventions, recorded_conventions
from teacher_cache.errors import UsageError
from teacher_cache.store.cache_store import CacheStore
from teacher_cache.teacher.openclip import LoadedModel, load_model
from teacher_cache.teacher.teacher import Teacher, choose_device


class StudentFeatures(Teacher):
    """A student with the interface of `Teacher`. Without text prompts, it reads names in templates."""

    def __init__(self, student: PromptedCLIP, device: torch.device, precision: Precision = "fp32") -> None:
        super().__init__(student.base, device, precision)
        self.student = self.model = student.to(device).eval()

    @property
    def has_image_prompts(self) -> bool:
        """Whether image features differ from the frozen model's."""
        return "vision" in self.student.prompts

    @property
    def image_tower(self) -> str:
        """A name that is equal for models with equal image features."""
        prompted = f" with the prompts of {id(self.student)}" if self.has_image_prompts else ""
        return super().image_tower + prompted

    @torch.inference_mode()
    def class_features(self, vocabulary: Vocabulary, classes_per_batch: int = 256) -> Tensor:
        """Return unit class features [C, D] float32 on the CPU."""
        if "text" not in self.student.prompts:
            return super().class_features(vocabulary, classes_per_batch)
        return self.student.class_features(vocabulary.names).float().cpu()


@dataclass(frozen=True)
class LoadedFeatureModel:
    """A model to evaluate.

    Attributes:
        name: the student as requested.
        model: the model.
        templates: templates for class names, if the data set has none.
    """

    name: str
    model: Teacher
    templates: tuple[str, ...]


@dataclass
class FeatureModels:
    """Loads models; a frozen model or teacher that several share is loaded once."""

    _loaded: dict[tuple[str, str | None, str], LoadedModel] = field(default_factory=dict)
    _teachers: dict[tuple[str, str, str, tuple[str, ...]], LoadedFeatureModel] = field(default_factory=dict)

    def load(self, settings: ModelSettings) -> LoadedFeatureModel:
        """Load the model of the settings.

        Raises:
            UsageError: no such run, cache, model or device, or the weights of the frozen model have changed.
        """
        device = choose_device(settings.device)
        if settings.student == ZERO_SHOT:
            return self._zero_shot(settings)
        if named := named_frozen_model(settings.student):
            return self._named(*named, settings)
        student = load_student(settings.student, settings.model, settings.pretrained, load=self._load)
        trained = student.provenance
        return LoadedFeatureModel(
            settings.student,
            StudentFeatures(student, device, settings.precision),
            tuple(trained["templates"]) if trained else (DEFAULT_TEMPLATE,),
        )

    def teacher_of(self, settings: ModelSettings) -> LoadedFeatureModel:
        """Load the teacher to compare a model with.

        It is the teacher of --cache, or of the cache that the run was trained on, or else the student's own
        frozen model.

        Raises:
            UsageError: it cannot be loaded, or its weights have changed.
        """
        if settings.cache is not None or settings.student == ZERO_SHOT:
            return self._zero_shot(settings)
        device = choose_device(settings.device)
        if named_frozen_model(settings.student):
            raise UsageError(
                f"--metrics agreement of --student {settings.student} needs --cache, with the teacher to "
                "compare it with"
            )
        if os.path.isfile(Path(settings.student) / SETTINGS):  # a run has the teacher's path
            record = read_settings(Path(settings.student))
            return self._recorded(record["cache"]["teacher"], settings, tuple(record["templates"]))
        if trained := read_provenance(Path(settings.student)):
            return self._recorded(trained["teacher"], settings, tuple(trained["templates"]))
        student = load_student(settings.student, settings.model, settings.pretrained, load=self._load)
        frozen = Teacher(student.base, device, settings.precision)
        return LoadedFeatureModel(ZERO_SHOT, frozen, (DEFAULT_TEMPLATE,))

    def _zero_shot(self, settings: ModelSettings) -> LoadedFeatureModel:
        if settings.cache is None:
            raise zero_shot_without_cache()
        store = CacheStore.open(settings.cache)
        return self._recorded(store.header.teacher, settings, store.vocabulary().templates)

    def _named(self, model: str, pretrained: str | None, settings: ModelSettings) -> LoadedFeatureModel:
        """Load a frozen model by its name, with the templates of the cache if there is one."""
        teacher: dict[str, Any] | None = None
        templates: tuple[str, ...] = (DEFAULT_TEMPLATE,)
        if settings.cache is not None:
            store = CacheStore.open(settings.cache)
            teacher, templates = store.header.teacher, store.vocabulary().templates
        loaded = load_named_model(model, pretrained, settings.weights_like, teacher, load=self._load)
        frozen = Teacher(loaded, choose_device(settings.device), settings.precision)
        return LoadedFeatureModel(settings.student, frozen, templates)

    def _recorded(
        self, teacher: dict[str, Any], settings: ModelSettings, templates: tuple[str, ...]
    ) -> LoadedFeatureModel:
        """Load the teacher of a cache from its path of today."""
        digest, conventions = teacher["weights_digest"], recorded_conventions(teacher)
        loaded = next(
            (
                known
                for known in self._loaded.values()
                if known.digest == digest
                and (conventions is None or known.conventions.fields == conventions.fields)
            ),
            None,
        )
        if loaded is None:
            # --model and --pretrained are for the student's own frozen model, which may be another one
            own = settings.student == ZERO_SHOT
            model, pretrained = (settings.model, settings.pretrained) if own else (None, None)
            if model is None:
                model, pretrained = teacher["model"], pretrained or teacher.get("pretrained")
            try:
                loaded = self._load(model, pretrained, conventions=conventions)
            except UsageError as error:
                if not own:
                    raise
                raise UsageError(
                    f"the cache's teacher: {error}; if it moved, name its new place with --model (and "
                    "--pretrained)"
                ) from error
        if loaded.digest != digest:
            cache = f"the cache {settings.cache}" if settings.cache else "the run's cache"
            raise UsageError(f"{loaded.name} has weights {loaded.digest} now, {cache} was made with {digest}")
        key = (repr(loaded.preprocess), digest, settings.precision, templates)
        if key not in self._teachers:
            frozen = Teacher(loaded, choose_device(settings.device), settings.precision)
            self._teachers[key] = LoadedFeatureModel(ZERO_SHOT, frozen, templates)
        return self._teachers[key]

    def _load(
        self,
        name: str,
        pretrained: str | None,
        device: torch.device | str = "cpu",
        conventions: ConventionOptions | Conventions | None = None,
    ) -> LoadedModel:
        fields = conventions.fields if isinstance(conventions, Conventions) else conventions
        key = (name, pretrained, repr(fields))
        if key not in self._loaded:
            self._loaded[key] = load_model(name, pretrained, device, conventions)
        return self._loaded[key]


def teacher_notes(models: Sequence[LoadedFeatureModel]) -> list[str]:
    """Return a note for each student beside `zero-shot` whose frozen model is not that of `zero-shot`."""
    teachers = [one.model.loaded for one in models if one.name == ZERO_SHOT]
    students = [one for one in models if isinstance(one.model, StudentFeatures)]
    return [
        f"zero-shot is the cache's teacher, {teacher.name}, not the frozen model of {one.name}; to evaluate "
        f"that model, use --student {frozen_name(base.name, base.pretrained)}"
        for teacher in teachers
        for one in students
        if (base := one.model.loaded).digest != teacher.digest
    ]


def load_with_classes(settings: ModelWithClasses) -> tuple[Teacher, Vocabulary]:
    """Load a model and the classes, with the model's templates."""
    check_weights_like([settings.student], settings)
    loaded = FeatureModels().load(settings)
    names = load_vocabulary(settings.classes, lemma=settings.lemma, duplicates=settings.duplicates)
    return loaded.model, Vocabulary(names.names, names.ids, loaded.templates)
