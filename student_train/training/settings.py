"""The settings of `rpp-train`.

Nothing here takes time to import. A description that ends in `[default: ...]` describes in words what happens
without the option.
"""

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from student_train.data.settings import ClassSubset, PixelSource, ReaderName
from student_train.model.settings import PromptSettings, Tower
from student_train.training.optimizers import OPTIMIZERS
from teacher_cache.command_settings import Lock, Precision
from teacher_cache.conventions import WEIGHTS_LIKE
from teacher_cache.errors import UsageError
from teacher_cache.settings import (
    LARGEST_FACTOR,
    MOST_PROCESSES,
    Device,
    LocalPlace,
    OneOrMore,
    Panels,
    Place,
    Size,
)

if TYPE_CHECKING:
    OptimizerName = str
else:
    OptimizerName = Literal[tuple(OPTIMIZERS)]
LogName = Literal["auto", "tensorboard", "wandb", "none"]

LARGEST_SEED = 2**63 - 1  # twice a seed is the largest that torch takes


class TrainSettings(BaseModel):
    """Settings of stage two."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    PANELS: ClassVar[Panels] = {
        "Data": (
            *("cache", "vocabulary", "images", "pixels", "student_features"),
            *("class_subset", "shots", "classes_per_step", "reader"),
        ),
        "Prompts": ("student", "pretrained", "weights_like", *PromptSettings.model_fields, "init", "freeze"),
        "Loss": ("soft_weight", "temperature"),
        "Optimisation": (
            *("epochs", "max_steps", "batch_size", "optimizer", "lr", "weight_decay"),
            *("warmup", "clip_norm", "seed"),
        ),
        "Compute": ("precision", "device", "compile", "text_memory", "workers"),
        "Output": ("out", "resume", "log_every", "checkpoint_every", "log", "lock"),
    }

    cache: Place = Field(description="folder or URL of a finished cache of rpp-cache build")
    vocabulary: str | None = Field(
        default=None, description="vocabulary that was added to the cache [default: that of its build]"
    )
    out: LocalPlace | None = Field(default=None, description="folder of the run [default: runs/CACHE-DATE]")
    resume: bool = Field(default=False, description="resume the run in --out")
    student: Place | None = Field(
        default=None, description="open_clip model of the student [default: the teacher's]"
    )
    pretrained: Place | None = Field(
        default=None, description="pretrained tag or weights file of --student [default: the teacher's]"
    )
    weights_like: str | None = WEIGHTS_LIKE
    images: Place | None = Field(
        default=None, description="image source [default: where the cache found its images]"
    )
    pixels: PixelSource = Field(
        default="auto",
        description="read the original images, or the views that rpp-cache render stored in the cache; auto "
        "reads rendered views that the student can use, unless --images is given",
    )
    student_features: Place | None = Field(
        default=None,
        description="cache made by the student's own model over the same samples and views; then no image is "
        "read [default: --cache, if its teacher is that model]",
    )
    prompts: PromptSettings = PromptSettings()
    init: LocalPlace | None = Field(
        default=None,
        description="run, or its student.safetensors, whose prompts this run starts from; the frozen model "
        "and the prompt options must be equal, images and classes may differ [default: new prompts]",
    )
    freeze: Literal["text", "vision"] | None = Field(
        default=None,
        description="tower whose prompts from --init do not learn [default: both towers learn]",
    )
    soft_weight: float = Field(
        default=1.0, ge=0, le=LARGEST_FACTOR, description="weight λ of the soft-label loss"
    )
    temperature: float = Field(
        default=1.0, gt=0, le=LARGEST_FACTOR, description="temperature T of the soft labels"
    )
    classes_per_step: Literal["all"] | Annotated[int, Field(ge=2)] = Field(
        default="all", description="classes in each step's softmax: all, or a number of sampled ones"
    )
    class_subset: ClassSubset = Field(
        default="all", description="classes to train on: all, base (the first half) or new (the second)"
    )
    shots: int | None = Field(default=None, ge=1, description="samples per class [default: all]")
    epochs: int = Field(default=5, ge=1, description="passes over the samples")
    max_steps: int | None = Field(
        default=None, ge=1, description="steps after which the schedule ends [default: those of --epochs]"
    )
    batch_size: int = Field(default=256, ge=1, description="samples per step, of all processes together")
    optimizer: OptimizerName = Field(default="sgd", description="sgd has momentum 0.9")
    lr: float = Field(default=0.002, gt=0, le=LARGEST_FACTOR, description="peak learning rate")
    weight_decay: float = Field(
        default=5e-4, ge=0, le=LARGEST_FACTOR, description="weight decay of the prompts"
    )
    warmup: float = Field(default=0.05, ge=0, lt=1, description="share of the steps with linear warm-up")
    clip_norm: float = Field(
        default=1.0, ge=0, le=LARGEST_FACTOR, description="largest gradient norm; 0 turns clipping off"
    )
    precision: Precision = Field(default="fp32", description="autocast precision of the towers")
    seed: int = Field(
        default=0, ge=0, le=LARGEST_SEED, description="seed of prompts, order, views and sampled classes"
    )
    device: Device = Field(default="auto", description="auto, cpu, cuda or cuda:N")
    compile: bool = Field(
        default=False,
        description="compile the towers' blocks with torch.compile, which takes a minute or more before the "
        "first step and needs a C++ compiler; results differ by rounding [default: --no-compile]",
    )
    reader: ReaderName = Field(
        default="auto",
        description="how stored arrays are read: kept in memory, or by blocks; auto keeps them if a quarter "
        "of the free memory suffices; the result is the same",
    )
    text_memory: Size | None = Field(
        default=None,
        description="memory for activations of the text tower, such as 8GB; what does not fit is computed "
        "again in the backward pass [default: what is free on the GPU; 2.5GiB on a CPU]",
    )
    workers: int | None = Field(
        default=None,
        ge=0,
        le=MOST_PROCESSES,
        description="processes per GPU that decode images; 0 decodes in the training process [default: the "
        "cores that the run may use, shared among its GPUs, at most 16]",
    )
    log_every: int = Field(default=10, ge=1, description="steps between two lines of metrics.jsonl")
    checkpoint_every: int = Field(default=500, ge=1, description="steps between two checkpoints")
    log: Annotated[tuple[LogName, ...], OneOrMore] = Field(
        default=("auto",),
        description="where metrics go beside metrics.jsonl: tensorboard (event files in the run's folder), "
        "wandb or none; auto means tensorboard if it is installed; may be repeated",
    )
    lock: Lock = True

    @model_validator(mode="after")
    def _check_pixels(self) -> "TrainSettings":
        if self.pixels == "rendered" and self.images is not None:
            raise UsageError("--pixels rendered reads no original image: leave out --images")
        return self

    @model_validator(mode="after")
    def _check_freeze(self) -> "TrainSettings":
        if self.freeze and self.init is None:
            raise UsageError(
                f"--freeze {self.freeze} would keep random prompts: start from a run, --init RUN"
            )
        if self.freeze and self.prompts.towers != "both":
            raise UsageError(
                f"--freeze {self.freeze} needs --towers both, not {self.prompts.towers}: the prompts of the "
                "other tower learn"
            )
        other: Tower = "text" if self.freeze == "vision" else "vision"
        if self.freeze and not self.prompts.has_prompts(other):
            raise UsageError(
                f"--freeze {self.freeze} leaves nothing to learn: the {other} tower has prompt depth 0"
            )
        return self
