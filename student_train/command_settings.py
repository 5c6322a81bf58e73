"""What stage two's other commands can be told: the settings of evaluation, prediction, import and export.

Those of a training are in `settings.py`. What the commands do with them is in `evaluation.py`, `datasets.py`,
`feature_models.py`, `prediction.py`, `published.py`, `classifier.py`, `huggingface.py` and `onnx_tower.py`.
Nothing here takes time to import. A description that ends in `[default: ...]` says in words what happens
without the option.
"""

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from student_train.evaluators import EVALUATORS
from student_train.settings import ClassSubset
from teacher_cache.command_settings import Duplicates, Lemma, Precision
from teacher_cache.images.decode import MAX_PIXELS, MOST_PIXELS
from teacher_cache.settings import LARGEST_FACTOR, MOST_PROCESSES, Panels, Place

Format = Literal["auto", "folder", "tars", "parquet", "list", "coop", "clip-benchmark", "cache"]

NAMES = ("classes", "lemma", "duplicates")
MODEL = ("cache", "model", "pretrained")


class DataOptions(BaseModel):
    """As which classes images are looked at."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Format = Field(default="auto", description="layout of the data set")
    split: str = Field(default="test", description="part of a data set in CoOp's or CLIP_benchmark's layout")
    classes: str | None = Field(
        default=None, description="class names: a known name or a file [default: the data set's own]"
    )
    templates: str | None = Field(
        default=None,
        description="one text with {} for the class name, a file of such texts, imagenet or imagenet-simple "
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
    """Which images are looked at, and as which classes."""

    images: str = Field(
        description="an image source, CoOp's split_zhou_*.json, CLIP_benchmark's folder, or a cache"
    )


class ModelOptions(BaseModel):
    """Where models are, and how they run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cache: Place | None = Field(
        default=None,
        description="cache whose model and templates --student zero-shot means, and whose teacher agreement "
        "compares with [default: the cache of the run]",
    )
    model: str | None = Field(
        default=None, description="where the frozen model is now [default: where it was at training]"
    )
    pretrained: str | None = Field(
        default=None,
        description="pretrained tag or weights file of the frozen model now [default: as at training]",
    )
    precision: Precision = Field(default="fp32", description="autocast precision")
    device: str = Field(default="auto", description="auto, cpu, cuda or cuda:N")


class ModelSettings(ModelOptions):
    """Which model looks at images."""

    student: str = Field(
        description="a run's folder, one in Hugging Face's layout, or zero-shot for the cache's frozen model"
    )


class ClassSettings(BaseModel):
    """Which classes a model is to know."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    classes: str = Field(description="class names: a known name or a file")
    lemma: Lemma = Field(default="first", description="which of a synset's names to use")
    duplicates: Duplicates = Field(default="lemma", description="what to do with names that occur twice")


class ModelWithClasses(ModelSettings, ClassSettings):
    """Which model looks at images, and which classes it is to know."""


def _known(metric: str) -> str:
    if metric not in EVALUATORS:
        raise ValueError(f"is none of {', '.join(EVALUATORS)}")
    return metric


class EvalOptions(ModelOptions, DataOptions):
    """All of an evaluation but the model and the images."""

    PANELS: ClassVar[Panels] = {
        "Data": (*DataOptions.model_fields, "max_pixels"),
        "Model": MODEL,
        "Figures": ("metrics", "temperature"),
        "Compute": ("precision", "device", "batch_size", "threads"),
    }

    metrics: tuple[Annotated[str, AfterValidator(_known)], ...] = Field(
        default=("accuracy", "calibration"),
        description="what to measure: " + ", ".join(EVALUATORS) + "; may be repeated",
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
    """Settings of an evaluation: a model and a data set."""


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


class ImportSettings(BaseModel):
    """Settings of an import."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    PANELS: ClassVar[Panels] = {"Model": ("model", "pretrained"), "Output": ("out",)}

    out: Path = Field(description="folder for the student; rpp eval and rpp-train --init read it")
    model: str = Field(description="open_clip model that the prompts were trained on")
    pretrained: str | None = Field(
        default=None, description="its pretrained tag or weights file [default: a model folder has its own]"
    )


class ClassifierSettings(ModelWithClasses):
    """Settings of an export of class features."""

    PANELS: ClassVar[Panels] = {
        "Data": NAMES,
        "Model": ("student", *MODEL),
        "Compute": ("precision", "device"),
        "Output": ("out",),
    }

    out: Path = Field(description="folder for the files")


class HuggingFaceSettings(BaseModel):
    """Settings of an export in Hugging Face's layout."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    PANELS: ClassVar[Panels] = {"Model": ("student",), "Output": ("out", "results")}

    student: Path = Field(description="a run's folder, or a student's file; its frozen model is not needed")
    out: Path = Field(description="folder for config.json, model.safetensors and README.md")
    results: Path | None = Field(
        default=None,
        description="figures for the model card, as rpp eval --json printed them [default: results.json of "
        "rpp run, if it is in the run's folder]",
    )


class OnnxSettings(BaseModel):
    """Settings of an export of the image tower."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    PANELS: ClassVar[Panels] = {"Model": ("student", "model", "pretrained"), "Output": ("out",)}

    student: Path = Field(
        description="a run's folder, one in Hugging Face's layout, or a student's file; not zero-shot, which "
        "is open_clip's own model"
    )
    out: Path = Field(description="the ONNX file, image.onnx for example")
    model: str | None = Field(
        default=None, description="where the frozen model is now [default: where it was at training]"
    )
    pretrained: str | None = Field(
        default=None,
        description="pretrained tag or weights file of the frozen model now [default: as at training]",
    )
