"""Settings of imports and exports. Importing this module is fast.

A description that ends in `[default: ...]` says in words what happens without the option.
"""

from typing import ClassVar

from pydantic import BaseModel, ConfigDict, Field

from student_train.evaluation.settings import MODEL, NAMES, FrozenModelPlace, ModelWithClasses
from teacher_cache.conventions import WEIGHTS_LIKE
from teacher_cache.settings import LocalPlace, Panels, Place


class ImportSettings(BaseModel):
    """Settings of an import."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    PANELS: ClassVar[Panels] = {
        "Model": ("model", "pretrained", "weights_like"),
        "Prompts": ("fixed_words",),
        "Output": ("out",),
    }

    out: LocalPlace = Field(description="folder for the student; rpp eval and rpp-train --init read it")
    model: Place = Field(description="open_clip model that the prompts were trained on")
    pretrained: Place | None = Field(
        default=None, description="its pretrained tag or weights file [default: a model folder has its own]"
    )
    weights_like: str | None = WEIGHTS_LIKE
    fixed_words: str | None = Field(
        default=None,
        description="words between the prompts and each class name, where CTX_INIT had more words than N_CTX "
        "[default: those in the checkpoint's token_suffix]",
    )


class ClassifierSettings(ModelWithClasses):
    """Settings of an export of class features."""

    PANELS: ClassVar[Panels] = {
        "Data": NAMES,
        "Model": ("student", *MODEL),
        "Compute": ("precision", "device"),
        "Output": ("out",),
    }

    out: LocalPlace = Field(description="folder for the files")


class HuggingFaceSettings(BaseModel):
    """Settings of an export in Hugging Face's layout."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    PANELS: ClassVar[Panels] = {"Model": ("student",), "Output": ("out", "results")}

    student: LocalPlace = Field(
        description="a run's folder, or a student's file; its frozen model is not needed"
    )
    out: LocalPlace = Field(description="folder for config.json, model.safetensors and README.md")
    results: LocalPlace | None = Field(
        default=None,
        description="figures for the model card, as rpp eval --json printed them [default: results.json of "
        "rpp run, if it is in the run's folder]",
    )


class OnnxSettings(FrozenModelPlace):
    """Settings of an export of the image tower."""

    PANELS: ClassVar[Panels] = {"Model": ("student", "model", "pretrained"), "Output": ("out",)}

    student: LocalPlace = Field(
        description="a run's folder, one in Hugging Face's layout, or a student's file; not zero-shot, which "
        "is open_clip's own model"
    )
    out: LocalPlace = Field(description="the ONNX file, image.onnx for example")
