"""Settings of `build`, `extend`, `render` and `relabel`, the commands of stage one.

The files of these names use them. Nothing here takes time to import. A description that ends in
`[default: ...]` describes what happens without the option.
"""

from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from teacher_cache.classes.templates import DEFAULT_TEMPLATE, TEMPLATE_SETS
from teacher_cache.classes.vocabulary import Duplicates, Lemma
from teacher_cache.conventions import ConventionOptions
from teacher_cache.encodings import EncodingSettings
from teacher_cache.errors import UsageError
from teacher_cache.images.decode import MAX_PIXELS, MOST_PIXELS
from teacher_cache.images.statements import LabelChoice
from teacher_cache.settings import MOST_PROCESSES, Device, Panels, Place, PlaceOrText

Precision = Literal["fp32", "bf16", "fp16"]
Codec = Literal["jpeg95", "png", "webp-lossless"]  # as in images/view_codecs.py
Pixels = Literal["none", Codec]
Processes = Annotated[int, Field(ge=1, le=MOST_PROCESSES)]

LABELS = (
    "which label counts where those of one sample contradict one another; auto refuses them, first takes the "
    "first of list, column, cls, json, folder, name, shard"
)
Lock = Annotated[
    bool,
    Field(
        description="lock the output; with --no-lock, make sure yourself that no other process writes there "
        "[default: --lock]"
    ),
]
COMPUTE = (
    "device",
    "compile",
    "batch_size",
    "workers",
    "threads",
    "decode_processes",
    "torch_threads",
    "scheduler",
    "dashboard",
    "strict",
    "lock",
)
DASHBOARD_PORT = 8787  # of Dask's dashboard, where no port is given


class ViewPolicy(BaseModel):
    """The number of views of a sample, and how random views are drawn."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    views: int = Field(default=1, ge=1, le=1024, description="views per image; view 0 is the evaluation view")
    view_seed: int = Field(default=0, ge=0, le=2**128 - 1, description="seed of the random crops")
    view_scale_min: float = Field(
        default=0.08, gt=0, le=1, description="smallest area of a random crop, as a share of the image"
    )
    view_flip: float = Field(default=0.5, ge=0, le=1, description="probability of a horizontal flip")


class ComputeSettings(BaseModel):
    """How parts are computed. Nothing here changes the content of a cache."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    device: Device = Field(default="auto", description="auto, cpu, cuda or cuda:N")
    compile: bool = Field(
        default=False,
        description="compile the teacher's image encoder with torch.compile, which takes up to a minute in "
        "each worker and needs a C++ compiler; features differ by rounding [default: --no-compile]",
    )
    batch_size: int = Field(default=64, ge=1, description="images per forward pass, one view of each")
    workers: Processes | None = Field(
        default=None, description="local worker processes [default: one per CUDA device; on a CPU one]"
    )
    threads: Processes | None = Field(
        default=None,
        description="threads per worker that read and decode images [default: its cores, at most 16]",
    )
    decode_processes: int | None = Field(
        default=None,
        ge=0,
        le=MOST_PROCESSES,
        description="processes per worker that read and decode images in place of --threads; 0 decodes in "
        "threads [default: with CUDA the worker's cores, at most 64, unless --threads is given or the images "
        "are in Parquet files; else 0]",
    )
    torch_threads: Processes | None = Field(
        default=None, description="CPU threads of a worker's forward pass [default: its cores]"
    )
    scheduler: str | None = Field(
        default=None,
        description="address of a running Dask scheduler, tcp://HOST:PORT [default: workers on this machine]",
    )
    dashboard: Annotated[int, Field(ge=0, le=65535)] | bool = Field(
        default=False,
        description=f"show Dask's dashboard on 127.0.0.1, port {DASHBOARD_PORT} or PORT (0: any free one); "
        "with --scheduler, print the address of the scheduler's [default: off]",
        json_schema_extra={"metavar": "[PORT]"},
    )
    strict: bool = Field(default=False, description="stop at the first unreadable image")
    lock: Lock = True

    @model_validator(mode="after")
    def _one_place(self) -> "ComputeSettings":
        if self.scheduler and self.workers:
            raise UsageError("--workers starts workers on this machine: leave it out, or --scheduler")
        if self.threads and self.decode_processes:
            raise UsageError("--decode-processes decode in place of --threads: leave one of the two out")
        if self.scheduler and not isinstance(self.dashboard, bool):
            raise UsageError(
                f"--dashboard {self.dashboard}: the scheduler at {self.scheduler} chose the port of its "
                "dashboard; leave out the port, or --scheduler"
            )
        return self

    @property
    def dashboard_port(self) -> int | None:
        """Port of the dashboard of workers on this machine, 0 for any free one; None without a dashboard."""
        if self.dashboard is False or self.scheduler:
            return None
        return DASHBOARD_PORT if self.dashboard is True else self.dashboard


class BuildSettings(ComputeSettings, EncodingSettings, ConventionOptions):
    """Settings of stage one."""

    PANELS: ClassVar[Panels] = {
        "Data": (
            "images",
            "labels",
            "classes",
            "templates",
            "lemma",
            "duplicates",
            "max_pixels",
            "decode_on_device",
        ),
        "Teacher": ("teacher", "pretrained", "precision", *ConventionOptions.model_fields),
        "Views": tuple(ViewPolicy.model_fields),
        "Cache": ("out", *EncodingSettings.model_fields, "pixels", "part_size"),
        "Compute": COMPUTE,
    }

    images: Place = Field(
        description="tar shards ('a/{00..99}.tar'), Parquet files or an image folder; a path or a URL"
    )
    labels: LabelChoice = Field(default="auto", description=LABELS)
    classes: Place = Field(
        description="class names: imagenet-21k or a similar known name, or a .txt, .csv or .json file"
    )
    out: Place = Field(description="folder or URL of the cache to create or to resume")
    teacher: Place = Field(description="open_clip model name, or a folder with open_clip_config.json")
    pretrained: Place | None = Field(
        default=None, description="pretrained tag or weights file [default: a model folder has its own]"
    )
    templates: PlaceOrText = Field(
        default=DEFAULT_TEMPLATE,
        description="one text with {} for the class name, a file of such texts, "
        f"{' or '.join(TEMPLATE_SETS)}",
    )
    lemma: Lemma = Field(default="first", description="which of a synset's names to use")
    duplicates: Duplicates = Field(default="lemma", description="what to do with names that occur twice")
    view_policy: ViewPolicy = ViewPolicy()
    max_pixels: int = Field(
        default=MAX_PIXELS,
        ge=1,
        le=MOST_PIXELS,
        description="pixels per image; a larger image counts as unreadable and is never decoded",
    )
    decode_on_device: bool = Field(
        default=False,
        description="decode JPEG images with nvJPEG on the CUDA device; the teacher then sees slightly other "
        "pixels than a student, and the cache records how much its features differ "
        "[default: off]",
    )
    precision: Precision = Field(default="fp32", description="autocast precision of the teacher")
    pixels: Pixels = Field(
        default="none",
        description="codec of the views' pixels, for training without the original images: jpeg95 is small, "
        "png and webp-lossless are exact; the teacher sees what is stored",
    )
    part_size: int = Field(
        default=8192,
        ge=1,
        description="samples per part, above 1024 in steps of 1024; a kill loses at most one part",
    )

    @model_validator(mode="after")
    def _one_decoder(self) -> "BuildSettings":
        if self.decode_on_device and self.decode_processes:
            raise UsageError(
                "--decode-on-device decodes in place of --decode-processes: leave one of the two out"
            )
        return self


class ExtendSettings(ComputeSettings):
    """Settings of another pass: the number of views, and what does not change the result."""

    PANELS: ClassVar[Panels] = {
        "Cache": ("views", "images", "teacher", "pretrained"),
        "Compute": COMPUTE,
    }

    views: int = Field(ge=1, le=1024, description="views per image that the cache is to have")
    images: Place | None = Field(
        default=None, description="where the images are now [default: where the build found them]"
    )
    teacher: Place | None = Field(
        default=None, description="where the cache's teacher is now [default: where it was]"
    )
    pretrained: Place | None = Field(default=None, description="its weights file now [default: where it was]")


class RenderSettings(BaseModel):
    """Settings of `rpp-cache render`."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    PANELS: ClassVar[Panels] = {
        "Cache": ("pixels", "images"),
        "Comparison": ("check", "teacher", "pretrained", "device"),
        "Compute": ("threads", "lock"),
    }

    pixels: Codec = Field(
        default="jpeg95", description="codec of the views: jpeg95 is small, png and webp-lossless are exact"
    )
    images: Place | None = Field(
        default=None, description="where the images are now [default: where the build found them]"
    )
    check: int = Field(
        default=0,
        ge=0,
        description="images whose features from stored and from exact pixels are compared with the teacher",
    )
    teacher: Place | None = Field(
        default=None, description="where the cache's teacher is now [default: where it was]"
    )
    pretrained: Place | None = Field(default=None, description="its weights file now [default: where it was]")
    device: Device = Field(default="auto", description="auto, cpu, cuda or cuda:N")
    threads: Processes | None = Field(
        default=None, description="threads that read, render and encode [default: the cores]"
    )
    lock: Lock = True


class RelabelSettings(BaseModel):
    """Settings of another vocabulary."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    PANELS: ClassVar[Panels] = {
        "Vocabulary": ("name", "classes", "templates", "lemma", "duplicates"),
        "Teacher": ("teacher", "pretrained", "device"),
        "Output": ("lock",),
    }

    name: str = Field(description="name of the vocabulary in this cache")
    classes: Place = Field(
        description="class names: imagenet-21k or a similar known name, or a .txt, .csv or .json file"
    )
    templates: PlaceOrText | None = Field(
        default=None,
        description="one text with {} for the class name, a file of such texts, "
        f"{' or '.join(TEMPLATE_SETS)} "
        "[default: those of the build]",
    )
    lemma: Lemma = Field(default="first", description="which of a synset's names to use")
    duplicates: Duplicates = Field(default="lemma", description="what to do with names that occur twice")
    teacher: Place | None = Field(
        default=None, description="where the cache's teacher is now [default: where it was]"
    )
    pretrained: Place | None = Field(default=None, description="its weights file now [default: where it was]")
    device: Device = Field(default="auto", description="auto, cpu, cuda or cuda:N")
    lock: Lock = True
