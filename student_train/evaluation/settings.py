"""Settings of evaluation and prediction. Imports nothing slow.

A description that ends in `[default: ...]` describes the default in words.
"""

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

from student_train.data.settings import ClassSubset
from student_train.figures import METRICS
from teacher_cache.classes.templates import TEMPLATE_SETS
from teacher_cache.classes.vocabulary import Duplicates, Lemma
from teacher_cache.command_settings import LABELS, Precision
from teacher_cache.images.decode import MAX_PIXELS, MOST_PIXELS
from teacher_cache.images.sources import SOURCES
from teacher_cache.images.statements import LabelChoice
from teacher_cache.settings import (
    LARGEST_FACTOR,
    MOST_PROCESSES,
    Device,
    OneOrMore,
    Panels,
    Place,
    PlaceOrText,
)

if TYPE_CHECKING:
    Format = str
else:
    Format = Literal["auto", *SOURCES, "coop", "clip-benchmark", "cache"]

NAMES = ("classes", "lemma", "duplicates")
MODEL = ("cache", "model", "pretrained", "weights_like")


class DataOptions(BaseModel):
    """Layout and classes of a data set."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Format = Field(default="auto", description="layout of the data set")
    split: str = Field(default="test", description="part of a data set in CoOp's or CLIP_benchmark's layout")
    labels: LabelChoice = Field(default="auto", description=LABELS)
    classes: Place | None = Field(
        default=None, description="class names: a known name or a file [default: the data set's own]"
    )
    templates: PlaceOrText | None = Field(
        default=None,
        description="one text with {} for the class name, a file of such texts, "
        f"{' or '.join(TEMPLATE_SETS)} "
        "[default: the data set's, else those that the model was trained with]",
    )
    lemma: Lemma = Field(default="first", description="which of a synset's names to use")
    duplicates: Duplicates = Field(default="lemma", description="what to do with names that occur twice")
    class_subset: ClassSubset | Literal["present"] = Field(
        default="all",
        description="classes to choose among: all, base (the first half), new (the second) or present (those "
        "with images)",
    )


class DataSettings(DataOptions):
    """A data set: its images, layout and classes."""

    images: Place = Field(
        description="an image source, CoOp's split_zhou_*.json, a folder of CLIP_benchmark, or a cache"
    )


class FrozenModelPlace(BaseModel):
    """Where the frozen model of a student is now."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: Place | None = Field(
        default=None, description="where the frozen model is now [default: where it was at training]"
    )
    pretrained: Place | None = Field(
        default=None,
        description="pretrained tag or weights file of the frozen model now [default: as at training]",
    )


class ModelOptions(FrozenModelPlace):
    """Where models are, and how they run."""

    cache: Place | None = Field(
        default=None,
        description="cache with the model and templates of --student zero-shot and the teacher of agreement "
        "[default: the cache of the run]",
    )
    weights_like: str | None = Field(
        default=None,
        description="pretrained tag of the model whose conventions (QuickGELU, preprocessing) the weights "
        "file of --student zero-shot:MODEL:FILE has [default: recognised by the file, or those of all tags "
        "if they agree]",
    )
    precision: Precision = Field(default="fp32", description="autocast precision")
    device: Device = Field(default="auto", description="auto, cpu, cuda or cuda:N")


class ModelSettings(ModelOptions):
    """A model to evaluate or to predict with."""

    student: Place = Field(
        description="a run's folder, one in Hugging Face's layout, zero-shot for the cache's frozen model, "
        "or zero-shot:MODEL:PRETRAINED (zero-shot:MODEL if it is a folder) for another one"
    )


class ClassSettings(BaseModel):
    """Classes to choose among."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    classes: Place = Field(description="class names: a known name or a file")
    lemma: Lemma = Field(default="first", description="which of a synset's names to use")
    duplicates: Duplicates = Field(default="lemma", description="what to do with names that occur twice")


class ModelWithClasses(ModelSettings, ClassSettings):
    """A model and the classes to choose among."""


def _known(metric: str) -> str:
    if metric not in METRICS:
        known = {"known": ", ".join(METRICS)}
        raise PydanticCustomError("unknown_metric", "unknown metric; choose from {known}", known)
    return metric


class EvalOptions(ModelOptions, DataOptions):
    """Options of an evaluation, without the model and the images."""

    PANELS: ClassVar[Panels] = {
        "Data": (*DataOptions.model_fields, "max_pixels"),
        "Model": MODEL,
        "Figures": ("metrics", "temperature"),
        "Compute": ("precision", "device", "batch_size", "threads"),
    }

    metrics: Annotated[tuple[Annotated[str, AfterValidator(_known)], ...], OneOrMore] = Field(
        default=("accuracy", "calibration"),
        description="what to measure: " + ", ".join(METRICS) + "; may be repeated",
    )
    temperature: float = Field(
        default=1.0,
        gt=0,
        le=LARGEST_FACTOR,
        description="temperature T of the soft labels that agreement compares",
    )
    batch_size: int = Field(default=64, ge=1, description="images per forward pass")
    max_pixels: int = Field(
        default=MAX_PIXELS,
        ge=1,
        le=MOST_PIXELS,
        description="pixels per image; a larger image is left out as unreadable",
    )
    threads: int | None = Field(
        default=None,
        ge=1,
        le=MOST_PROCESSES,
        description="threads that decode images [default: the cores that may be used, at most 16]",
    )


class EvalSettings(EvalOptions, ModelSettings, DataSettings):
    """Settings of an evaluation of one model on one data set."""


class PredictSettings(ModelWithClasses):
    """Settings of a prediction."""

    PANELS: ClassVar[Panels] = {
        "Data": (*NAMES, "max_pixels"),
        "Model": ("student", *MODEL),
        "Compute": ("precision", "device"),
        "Output": ("top",),
    }

    top: int = Field(default=5, ge=1, description="likeliest classes to show per picture")
    max_pixels: int = Field(
        default=MAX_PIXELS,
        ge=1,
        le=MOST_PIXELS,
        description="pixels per picture; a larger picture is refused",
    )
