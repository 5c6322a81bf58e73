"""What a run is: its settings, what it writes down of itself, and when another may continue it."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator

from student_train.metric_logs import LogName
from student_train.order import ClassSubset
from student_train.prompts import PromptSettings
from student_train.readers import ReaderName
from student_train.run_record import FREE_ON_RESUME, MAY_MOVE, RUN_FORMAT
from student_train.stored import StoredStudent
from student_train.student import PromptedCLIP
from teacher_cache.distribution import rpp_version
from teacher_cache.errors import UsageError
from teacher_cache.openclip import LoadedModel
from teacher_cache.options import LARGEST_FACTOR, MOST_PROCESSES, Place
from teacher_cache.softlabels import TeacherCache
from teacher_cache.teacher import Precision

LARGEST_SEED = 2**63 - 1  # twice a seed is the largest that torch takes


class TrainSettings(BaseModel):
    """Settings of stage two."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    cache: Place = Field(description="a finished cache of rpp-cache build")
    vocabulary: str | None = Field(
        default=None, description="a vocabulary that was added to the cache [default: that of its build]"
    )
    out: Path | None = Field(default=None, description="the run's folder [default: runs/CACHE-DATE]")
    resume: bool = Field(default=False, description="go on with the run in --out")
    student: str | None = Field(default=None, description="open_clip model [default: the teacher's]")
    pretrained: str | None = Field(default=None, description="its pretrained tag or weights file")
    images: str | None = Field(default=None, description="image source [default: where the cache found them]")
    student_features: Place | None = Field(
        default=None, description="a cache made by the student's own model over the same samples and views"
    )
    prompts: PromptSettings = PromptSettings()
    init: Path | None = Field(
        default=None,
        description="a run, or its student.safetensors, whose prompts this one starts from; images and "
        "classes may be others, the frozen model and the prompt options may not",
    )
    freeze: Literal["text", "vision"] | None = Field(
        default=None, description="prompts of --init that stay as they are, while the other tower's learn"
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
    class_subset: ClassSubset = Field(default="all", description="train on all, base or new classes")
    shots: int | None = Field(default=None, ge=1, description="samples a class [default: all]")
    epochs: int = Field(default=5, ge=1, description="passes over the samples")
    max_steps: int | None = Field(default=None, ge=1, description="stop the schedule at this step")
    batch_size: int = Field(default=256, ge=1, description="samples a step, of all processes together")
    optimizer: Literal["sgd", "adamw"] = Field(default="sgd", description="sgd has momentum 0.9")
    lr: float = Field(default=0.002, gt=0, le=LARGEST_FACTOR, description="peak learning rate")
    weight_decay: float = Field(
        default=5e-4, ge=0, le=LARGEST_FACTOR, description="weight decay of the prompts"
    )
    warmup: float = Field(default=0.05, ge=0, lt=1, description="share of the steps with linear warm-up")
    clip_norm: float = Field(
        default=1.0, ge=0, le=LARGEST_FACTOR, description="largest gradient norm; 0 does not clip"
    )
    precision: Precision = Field(default="fp32", description="autocast precision of the towers")
    seed: int = Field(default=0, ge=0, le=LARGEST_SEED, description="prompts, order, views, sampled classes")
    device: str = Field(default="auto", description="auto, cpu, cuda or cuda:N")
    reader: ReaderName = Field(
        default="auto",
        description="how stored arrays are read: held in memory, or by blocks [auto: memory where a quarter "
        "of what is free suffices]; the result is the same",
    )
    workers: int | None = Field(
        default=None,
        ge=0,
        le=MOST_PROCESSES,
        description="processes that decode images, for each GPU; 0: none beside the training process "
        "[default: the cores that the run may use, shared among its GPUs, at most 16]",
    )
    log_every: int = Field(default=10, ge=1, description="steps between two lines of metrics.jsonl")
    checkpoint_every: int = Field(default=500, ge=1, description="steps between two checkpoints")
    log: tuple[LogName, ...] = Field(
        default=("auto",),
        description="where metrics are shown beside metrics.jsonl: tensorboard (event files in the run's "
        "folder), wandb, none; auto: tensorboard if it is installed; may be repeated",
    )

    @model_validator(mode="after")
    def _something_learns(self) -> "TrainSettings":
        if self.freeze and self.init is None:
            raise UsageError(
                f"--freeze {self.freeze} keeps prompts that are random: start from a run, --init RUN"
            )
        if self.freeze and self.prompts.towers != "both":
            raise UsageError(
                f"--freeze {self.freeze} leaves the other tower's prompts to learn: it needs --towers both, "
                f"not {self.prompts.towers}"
            )
        return self


def describe_run(
    settings: TrainSettings,
    cache: TeacherCache,
    student: PromptedCLIP,
    mode: str,
    processes: int,
    samples_per_step: int,
    init: StoredStudent | None = None,
) -> dict[str, Any]:
    """What `settings.json` holds: everything that decides the run's result."""
    return {
        "format_version": RUN_FORMAT,
        "settings": settings.model_dump(mode="json"),
        "cache": asdict(cache.header),
        "student": {
            "model": student.base.name,
            "pretrained": student.base.pretrained,
            "weights_digest": student.base.digest,
            "config": student.base.config,
        },
        "templates": list(cache.vocabulary.templates),
        "mode": mode,
        "init": None if init is None else init.digest,
        "processes": processes,
        "samples_per_step": samples_per_step,
        "never_read": student.describe_dead(),
        "software": f"rpp {rpp_version()}, torch {torch.__version__}",
    }


def check_same_run(
    settings: TrainSettings,
    out: Path,
    record: dict[str, Any],
    cache: TeacherCache,
    base: LoadedModel,
    init: str | None,
) -> None:
    """Refuse to continue a run with settings, a cache or a model that would change its result.

    Args:
        record: what the run wrote down of itself.
        base: the student's frozen model now; where it lies does not matter.
        init: digest of the prompts that the run starts from now, or, behind a checkpoint, then.

    Raises:
        UsageError: what differs.
    """
    changed = changed_settings(record, settings)
    now_cache = asdict(cache.header)
    weights_now = now_cache["teacher"]["weights_digest"]  # not where the teacher lies
    compared = [
        ("cache weights", record["cache"].get("teacher", {}).get("weights_digest"), weights_now),
        ("student weights", record["student"].get("weights_digest"), base.digest),
        ("prompts of --init", record.get("init"), init),
        ("student config", record["student"].get("config"), base.config),
    ]
    for name in ("sample_table_digest", "vocabulary_digest", "view_policy"):
        compared.append((f"cache {name}", record["cache"].get(name), now_cache[name]))
    changed += [f"{name}: {there} there, {now} now" for name, there, now in compared if there != now]
    if changed:
        raise UsageError(f"the run {out} was begun otherwise ({'; '.join(changed)})")


def changed_settings(record: dict[str, Any], settings: TrainSettings) -> list[str]:
    """What is asked otherwise than a run has it, of the settings that decide its result by their value; and
    settings of the run's that are not known here, of another version of rpp."""
    asked = settings.model_dump(mode="json")
    changed = [
        f"{name}: {record['settings'].get(name)} there, {value} asked"
        for name, value in asked.items()
        if name not in FREE_ON_RESUME | MAY_MOVE and record["settings"].get(name) != value
    ]
    unknown = {name: value for name, value in record["settings"].items() if name not in asked}
    return changed + [f"{name}: {value} there, not known to this rpp" for name, value in unknown.items()]
