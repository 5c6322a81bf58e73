"""Everything that only a GPU can tell, in one call of at most 8 minutes on one card.

Results come first: features and gradients on the card in each precision and under each plan of the text
tower, against float32 on the CPU. Then what the machine can do at these models' shapes, and how near training
steps and builds come to it. Models are those of open_clip with random weights, class names are all of
imagenet-22k, images are JPEGs of 500 x 375 pixels made here.

A section that fails does not end the others, and one that the rest of the time is too short for is skipped;
both are in the record with their reason. Wrong results and failed sections are printed first, and the exit
code is 1. `--out` has all finished sections at any time.

    python benchmarks/gpu.py --out gpu.json --markdown
    python benchmarks/gpu.py --device cpu --quick
"""

import gc
import io
import json
import multiprocessing
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Any

import open_clip
import torch
import typer
from build_overhead import photo, write_photos
from full_softmax import begin_memory, peak_memory
from gpu_measures import flops_of, kernels_of, nvidia_smi, sampled, seconds_of, synchronise, waits_of
from PIL import Image
from plain_text_tower import encode_plainly, with_placeholders
from rich.console import Console
from step_operations import plan_peaks
from synthetic import write_cache, write_random
from text_tower import GRADIENT_BAR
from timing import machine
from torch import Tensor
from torch.nn import functional as F

from student_train.data.join import Join
from student_train.model import towers
from student_train.model.settings import PromptSettings
from student_train.model.student import PromptedCLIP
from student_train.model.text_plan import TextPlan, plan_texts
from student_train.training.distributed import joined_processes
from student_train.training.loop import Run
from student_train.training.losses import StepLogits, TotalLoss
from student_train.training.settings import TrainSettings
from teacher_cache.build import compute_missing, load_requested, open_or_create
from teacher_cache.classes.vocabulary import Vocabulary, load_vocabulary
from teacher_cache.command_settings import BuildSettings
from teacher_cache.cores import usable_cores
from teacher_cache.encodings import ClassHead
from teacher_cache.images.index import index_images
from teacher_cache.store.cache_store import CacheStore
from teacher_cache.teacher.openclip import load_model
from teacher_cache.teacher.teacher import AUTOCAST, Teacher, choose_device
from teacher_cache.teacher.text_towers import text_parts
from teacher_cache.views import normalise

Record = dict[str, Any]

EPOCH_ROWS = 14_197_122  # ImageNet-21K, winter 2021
IMAGE_SIZE = (500, 375)  # width and height of a common ImageNet file
LOSS_SCALE = 2**10  # keeps float16 gradients from underflowing
# Largest ‖a - b‖ / ‖b‖ against float32 on the CPU. An H100 had 1e-4 with convolutions in TF32 (the default of
# torch), 1.2e-3 in fp16 and 1e-2 in bf16 (docs/benchmarks.md).
BOUNDS = {"fp32": GRADIENT_BAR, "tf32 convolutions": 1e-3, "fp16": 1e-2, "bf16": 5e-2}


TEXT = PromptSettings(towers="text")
# Settings that sections turn on or off
COMPILED, IN_THREADS, ON_DEVICE = {"compile": True}, {"decode_processes": 0}, {"decode_on_device": True}


class SkippedError(Exception):
    """A section cannot run here; the message says why."""


class OverTimeError(Exception):
    """A section took more time than there was."""


# --- what is measured -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scale:
    """How much is measured.

    Attributes:
        student: open_clip name or configuration.
        teachers: the same of each teacher that builds.
        names: number of class names; None: all of imagenet-22k.
        rows: of the cache without images.
        batches: samples of a step with text prompts, one section each.
        both_batch: samples of a step with prompts in both towers.
        sampled: classes of a step that samples them.
        checked: names whose features and gradients are compared.
        pictures: images that are compared.
        seconds: time that a figure is measured for.
        build_seconds: the same of a build.
        shard: images in a tar file.
        shards: most tar files.
        memories: what the text tower may use, beside all that is free.
    """

    student: str | Record = "ViT-B-16"
    teachers: Mapping[str, str | Record] = field(
        default_factory=lambda: {"vit_b_16": "ViT-B-16", "vit_l_14": "ViT-L-14"}
    )
    names: int | None = None
    rows: int = 65_536
    batches: tuple[int, ...] = (256, 4096)
    both_batch: int = 256
    sampled: int = 1000
    checked: int = 64
    pictures: int = 8
    seconds: float = 4.0
    build_seconds: float = 20.0
    shard: int = 4096
    shards: int = 12
    memories: tuple[int, ...] = (24 * 10**9, 12 * 10**9, 6 * 10**9)


SMALL: Record = {
    "embed_dim": 48,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "layers": 3, "width": 64, "head_width": 32},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "layers": 3, "width": 64, "heads": 2},
}
QUICK = Scale(
    student=SMALL,
    teachers={"vit_b_16": SMALL, "vit_l_14": SMALL | {"embed_dim": 32}},
    names=80,
    rows=256,
    batches=(16, 32),
    both_batch=8,
    sampled=20,
    checked=8,
    pictures=2,
    seconds=0.05,
    build_seconds=0.01,
    shard=24,
    shards=2,
    memories=(10**6,),
)


class Bench:
    """What sections share: inputs, made when the first section needs them, and figures so far."""

    def __init__(self, scale: Scale, device: torch.device, folder: Path) -> None:
        self.scale, self.device, self.folder = scale, device, folder
        self.found: dict[str, Record] = {}

    def autocast(self, precision: str) -> torch.autocast:
        """Autocast on the device."""
        dtype = AUTOCAST.get(precision)
        return torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None)

    @cached_property
    def classes(self) -> str:
        """The names: of a known vocabulary, or the first of them in a file."""
        if self.scale.names is None:
            return "imagenet-22k"
        path = self.folder / "names.txt"
        path.write_text("\n".join(load_vocabulary("imagenet-22k").names[: self.scale.names]) + "\n")
        return str(path)

    @cached_property
    def names(self) -> list[str]:
        return list(load_vocabulary(self.classes).names)

    def model(self, config: str | Record) -> str:
        """The folder of a model with random weights."""
        name = config if isinstance(config, str) else f"embedding-{config['embed_dim']}"
        folder = self.folder / name
        return str(folder if folder.exists() else write_random(folder, config))

    def student(self) -> PromptedCLIP:
        """A student with prompts in both towers, on the CPU."""
        return PromptedCLIP(load_model(self.model(self.scale.student)), PromptSettings(prompt_depth=None))

    @cached_property
    def cache(self) -> str:
        """A cache with random features of the student's model, without images."""
        model = Path(self.model(self.scale.student))
        path = self.folder / "synthetic.zarr"
        return str(write_cache(path, model, self.scale.rows, self.classes, device=str(self.device)))

    def images(self, wanted: int) -> str:
        """Tar files of about so many images, as an image source."""
        count = max(1, min(self.scale.shards, -(-wanted // self.scale.shard)))
        for number in range(count):
            path = self.folder / f"photos-{number:02d}.tar"
            if not path.exists():
                part = path.with_suffix(".part")
                first = number * self.scale.shard
                width, height = IMAGE_SIZE
                write_photos(part, self.scale.shard, len(self.names), 64, first, width=width, height=height)
                part.rename(path)
        return str(self.folder / (f"photos-{{00..{count - 1:02d}}}.tar" if count > 1 else "photos-00.tar"))

    def ceiling(self) -> float | None:
        """The largest rate of half-precision products that was measured, in FLOP/s."""
        rates = self.found.get("ceilings", {}).get("matmul_bf16_tflop_per_s", {})
        return 1e12 * max(rates.values()) if rates else None

    def floor(self, flops: float) -> float | None:
        """Seconds that this many operations take at the ceiling."""
        ceiling = self.ceiling()
        return flops / ceiling if ceiling else None


# --- the machine ------------------------------------------------------------------------------------------


def decoding(bench: Bench) -> Record:
    """Pillow's rate of decoding and resizing in bare processes. They fork before CUDA starts."""
    seconds, cores = min(2.0, bench.scale.seconds), usable_cores()
    content = photo(0, *IMAGE_SIZE)
    one = decoded_in(seconds, content)
    with multiprocessing.get_context("fork").Pool(cores) as pool:
        counts = pool.starmap(decoded_in, [(seconds, content)] * cores)
    return {
        "jpeg_decode_resize_images_per_s_one_process": round(one / seconds, 1),
        "jpeg_decode_resize_images_per_s_process_per_core": round(sum(counts) / seconds, 1),
        "cores": cores,
        "jpeg_bytes": len(content),
    }


def decoded_in(seconds: float, content: bytes) -> int:
    """How often one process decodes and resizes an image in this time."""
    count, end = 0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        image = Image.open(io.BytesIO(content)).convert("RGB")
        image.resize((299, 224), Image.Resampling.BICUBIC).crop((37, 0, 261, 224)).tobytes()
        count += 1
    return count


def describe(bench: Bench) -> Record:
    """The card, its driver and clocks, and the software."""
    found = machine() | {"usable_cores": usable_cores(), "python": sys.version.split()[0]}
    found["open_clip"] = open_clip.__version__
    if bench.device.type == "cuda":
        card = torch.cuda.get_device_properties(bench.device)
        found |= {
            "gpu_memory_gib": round(card.total_memory / 2**30, 1),
            "gpu_multiprocessors": card.multi_processor_count,
            "cuda": torch.version.cuda,
        }
    fields = ("driver_version", "clocks.max.sm", "clocks.max.mem", "power.limit")
    if (process := nvidia_smi(fields, bench.device)) is not None:
        values = process.communicate()[0].strip().split(", ")
        found |= dict(zip(fields, values, strict=True)) if len(values) == len(fields) else {}
    return found


def ceilings(bench: Bench) -> Record:
    """What the device reaches in products and attention at the models' shapes, in copies and transfers."""
    scale, device = bench.scale, bench.device
    shapes = model_shapes(scale)
    found: Record = {}
    kinds = {"bf16": torch.bfloat16, "fp32": torch.float32, "tf32": torch.float32}
    for kind, dtype in kinds.items():
        rates = found[f"matmul_{kind}_tflop_per_s"] = {}
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high" if kind == "tf32" else "highest")
        try:
            for name, (batch, _, rows, _, width) in shapes.items():
                x_RW = torch.randn(batch * rows, width, device=device, dtype=dtype)
                weight_WV = torch.randn(width, 4 * width, device=device, dtype=dtype)
                seconds = seconds_of(lambda x=x_RW, w=weight_WV: x @ w, device)
                rates[name] = round(8 * batch * rows * width**2 / seconds / 1e12, 3)
                del x_RW, weight_WV
        finally:
            torch.set_float32_matmul_precision(before)
    attention = found["attention_bf16_tflop_per_s"] = {}
    for name, (batch, heads, rows, keys, width) in shapes.items():
        q = torch.randn(batch, heads, rows, width // heads, device=device, dtype=torch.bfloat16)
        k = torch.randn(batch, heads, keys, width // heads, device=device, dtype=torch.bfloat16)
        mask = torch.zeros(batch, 1, rows, -(-keys // 8) * 8, device=device, dtype=torch.bfloat16)
        chosen = mask[..., :keys] if name == "text" else None
        seconds = seconds_of(partial(F.scaled_dot_product_attention, q, k, k, attn_mask=chosen), device)
        attention[name] = round(4 * batch * rows * keys * width / seconds / 1e12, 3)
    elements = 2**28 if device.type == "cuda" else 2**20
    x, y = (torch.empty(elements, device=device) for _ in range(2))
    found["memory_read_write_gb_per_s"] = round(
        8 * elements / seconds_of(lambda: y.copy_(x), device) / 1e9, 1
    )
    found["python_launch_us"] = round(1e6 * seconds_of(lambda v=x[:1]: v.add_(1), device, calls=2000), 2)
    if device.type == "cuda":
        for name, pinned in (("pinned", True), ("pageable", False)):
            host = torch.empty(2**26, pin_memory=pinned)
            copy = partial(x[: len(host)].copy_, host, non_blocking=True)
            found[f"host_to_device_{name}_gb_per_s"] = round(
                4 * len(host) / seconds_of(copy, device) / 1e9, 2
            )
    return found


def model_shapes(scale: Scale) -> dict[str, tuple[int, int, int, int, int]]:
    """Batch, heads, rows, keys and width of attention in each tower: texts in packs of 32 rows, with SOT and
    4 prompts before them; images with 4 prompts behind them."""
    names = scale.names or 21_841
    text = config_of(scale.student)["text_cfg"]
    packs = -(-18 * names // 5 // 32)  # 3.6 rows a name
    found = {"text": (packs, text["heads"], 32, 37, text["width"])}
    for name, teacher in scale.teachers.items():
        vision = config_of(teacher)["vision_cfg"]
        rows = 1 + (vision["image_size"] // vision["patch_size"]) ** 2
        heads = vision["width"] // vision.get("head_width", 64)
        found[name] = (scale.both_batch, heads, rows, rows + 4, vision["width"])
    return found


def config_of(model: str | Record) -> Record:
    found: Record = open_clip.get_model_config(model) if isinstance(model, str) else model
    return found


# --- results ----------------------------------------------------------------------------------------------


def results(bench: Bench) -> Record:
    """Compare the device with float32 on the CPU; `wrong` counts what exceeds its bound."""
    checks = []
    for name, config in bench.scale.teachers.items():
        checks += teacher_checks(bench, name, bench.model(config))
    checks += text_checks(bench)
    checks += both_checks(bench)
    checks += run_checks(bench)
    wrong = sum("holds" in check and not check["holds"] for check in checks)
    return {"wrong": wrong, "checked": len(checks), "checks": checks}


def check(what: str, precision: str, exact: Tensor, compute: Callable[[], Tensor]) -> Record:
    """Compare a result with the exact one."""
    try:
        return compared(what, precision, exact, compute())
    except torch.OutOfMemoryError as error:
        return {"what": what, "precision": precision, "skipped": str(error).partition("\n")[0]}
    except RuntimeError as error:  # such as a kernel that does not take these shapes
        return {"what": what, "precision": precision, "error": str(error), "holds": False}


def compared(what: str, precision: str, exact: Tensor, values: Tensor, bound: float | None = None) -> Record:
    """The relative error of values; `bound` is that of the precision unless it is given."""
    exact, values = (x.detach().cpu().double() for x in (exact, values))
    error = float((values - exact).norm() / exact.norm())
    bound = BOUNDS[precision] if bound is None else bound
    return {
        "what": what,
        "precision": precision,
        "relative_error": error,
        "bound": bound,
        "holds": error <= bound,
    }


@contextmanager
def exact_convolutions(precision: str) -> Iterator[None]:
    """Turn TF32 off in convolutions, unless it is what is compared."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = precision != "fp32"
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def teacher_checks(bench: Bench, name: str, model: str) -> list[Record]:
    """Image features and class features of a teacher."""
    teacher = Teacher(load_model(model), torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    shape = (bench.scale.pictures, 3, *teacher.renderer.size)
    pixels = torch.randint(256, shape, dtype=torch.uint8, generator=generator)
    vocabulary = Vocabulary(chosen_names(bench), None, ("a photo of a {}.",))
    images_BD, classes_CD = teacher.image_features(pixels), teacher.class_features(vocabulary)
    checks = []
    for precision in BOUNDS:
        half = precision if precision in AUTOCAST else "fp32"
        there = Teacher(teacher.loaded, bench.device, half)
        with exact_convolutions(precision):
            images = partial(there.image_features, pixels)
            checks.append(check(f"{name}: teacher's image features", precision, images_BD, images))
        if precision in ("fp32", *AUTOCAST):
            classes = partial(there.class_features, vocabulary)
            checks.append(check(f"{name}: teacher's class features", precision, classes_CD, classes))
    return checks


def chosen_places(bench: Bench) -> list[int]:
    """Places of the names that are compared, spread over all."""
    return torch.linspace(0, len(bench.names) - 1, bench.scale.checked).long().tolist()


def chosen_names(bench: Bench) -> list[str]:
    return [bench.names[place] for place in chosen_places(bench)]


def text_checks(bench: Bench) -> list[Record]:
    """Text features and prompt gradients of all names in one step, against the plain tower over 77 positions.

    Only some names have a gradient; then the plain tower needs only these.
    """
    student, places = bench.student(), chosen_places(bench)
    prompts = student.tower_prompts("text")
    assert prompts is not None
    tokens_CT = student.tokenize_names(bench.names)
    plain_CD = encode_plainly(
        text_parts(student.clip), prompts, with_placeholders(tokens_CT[places], prompts.length)
    )
    upstream_CD = torch.randn(plain_CD.shape, generator=torch.Generator().manual_seed(1))
    plain_CD.backward(upstream_CD)
    exact = gradients(student)
    student = student.to(bench.device)
    texts = student.pack_texts(tokens_CT)
    packs = len(texts.ids)
    pieces, blocks = min(8, packs), len(text_parts(student.clip).blocks)
    plans = {
        "all kept": TextPlan(1, 0, 0, 0),
        "in chunks": TextPlan(pieces, 0, 0, 0),
        "recomputed": TextPlan(pieces, pieces, -(-blocks // 3), 0),
        "partly recomputed": TextPlan(pieces, pieces // 2, 1, 0),
        "planned": None,
    }
    checks = []
    for precision in ("fp32", "fp16", "bf16"):
        for name, plan in plans.items():
            what = f"text tower, {len(bench.names):,} names, {name}"
            step = partial(text_step, bench, student, texts, plan, precision, places, upstream_CD)
            checks.append(check(f"{what}: features", precision, plain_CD.detach(), step))
            if "skipped" not in checks[-1]:
                what_follows = partial(gradients, student)
                checks.append(check(f"{what}: prompt gradients", precision, exact, what_follows))
    return checks


def text_step(
    bench: Bench,
    student: PromptedCLIP,
    texts: Any,
    plan: TextPlan | None,
    precision: str,
    places: list[int],
    upstream_CD: Tensor,
) -> Tensor:
    """Features of the compared names after a forward and backward pass over all."""
    student.zero_grad(set_to_none=True)
    with bench.autocast(precision):
        features_CD = towers.encode_text(
            text_parts(student.clip), student.tower_prompts("text"), texts, plan
        )[places]
    features_CD.backward(upstream_CD.to(bench.device) * LOSS_SCALE)
    for parameter in student.prompts.parameters():
        if parameter.grad is not None:
            parameter.grad /= LOSS_SCALE
    return features_CD


def gradients(student: PromptedCLIP) -> Tensor:
    """All gradients of prompts in one vector; zeros where there are none."""
    parameters = student.prompts.parameters()
    return torch.cat(
        [(torch.zeros_like(p) if p.grad is None else p.grad).flatten().cpu() for p in parameters]
    )


def both_checks(bench: Bench) -> list[Record]:
    """Image features, and gradients of a step's loss in the prompts of both towers."""
    student, generator = bench.student(), torch.Generator().manual_seed(2)
    names, pictures = chosen_names(bench), bench.scale.pictures
    preprocess, (height, width) = student.base.preprocess, student.clip.visual.image_size
    pixels = torch.randint(256, (pictures, 3, height, width), dtype=torch.uint8, generator=generator)
    teacher_BC = 5 * torch.randn(pictures, len(names), generator=generator)
    targets_B = torch.randint(len(names), (pictures,), generator=generator)
    tokens_CT = student.tokenize_names(names)

    def step(device: torch.device, precision: str) -> Tensor:
        dtype = AUTOCAST.get(precision)
        texts = student.pack_texts(tokens_CT)
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            images = normalise(pixels.to(device), preprocess.mean, preprocess.std)
            features_BD = student.encode_image(images, normalize=True)
            classes_CD = student.encode_text(texts, normalize=True)
        logits_BC = ClassHead(classes_CD, 20.0).logits(features_BD)
        step_logits = StepLogits(logits_BC, teacher_BC.to(device), targets_B.to(device))
        loss = TotalLoss(TrainSettings(cache="none"))(step_logits)["loss"]
        (loss * LOSS_SCALE).backward()
        return features_BD.float()

    exact_BD = step(torch.device("cpu"), "fp32").detach()
    exact = gradients(student)
    student = student.to(bench.device)
    checks = []
    for precision in BOUNDS:
        student.zero_grad(set_to_none=True)
        with exact_convolutions(precision):
            compute = partial(step, bench.device, precision if precision in AUTOCAST else "fp32")
            checks.append(check("both towers: image features", precision, exact_BD, compute))
        what_follows = partial(gradients, student)
        checks.append(check("both towers: prompt gradients", precision, exact, what_follows))
    return checks


def run_checks(bench: Bench) -> list[Record]:
    """Losses and gradient norms of a run's first steps: all that a run does, copies and kept weights too."""
    sizes = {"batch_size": bench.scale.pictures, "classes_per_step": bench.scale.checked}

    def figures(device: torch.device, precision: str) -> Tensor:
        with steps_of(bench, bench.cache, True, device, precision, **sizes) as steps:
            steps.take(3)
            return torch.tensor([float(x) for figures in steps.figures for x in figures])

    exact = figures(torch.device("cpu"), "fp32")
    kinds = ("tf32 convolutions", "bf16")  # in fp16 the first steps find the loss's scale
    return [
        check(
            "losses and gradient norms of a run",
            kind,
            exact,
            partial(figures, bench.device, kind if kind in AUTOCAST else "fp32"),
        )
        for kind in kinds
    ]


# --- training steps ---------------------------------------------------------------------------------------


class Steps:
    """The steps of a run, one by one, as the loop takes them; `waited` has the seconds without data."""

    def __init__(self, run: Run, batches: Iterator[Any], pixels: Tensor | None) -> None:
        self.run, self._batches, self._pixels = run, batches, pixels
        self.number, self.waited = 0, 0.0
        self.figures: list[tuple[Tensor, Tensor]] = []  # loss and gradient norm of each step

    def __call__(self) -> None:
        """Take a step."""
        started = time.perf_counter()
        batch = next(self._batches)
        self.waited += time.perf_counter() - started
        if self._pixels is not None:
            batch = replace(batch, student_features=None, pixels=self._pixels)
        figures = self.run.train_step(batch, self.number, False)
        self.figures.append((figures["loss"], figures["gradient_norm"]))
        self.number += 1

    def take(self, number: int) -> None:
        """Take some steps."""
        for _ in range(number):
            self()


@contextmanager
def steps_of(
    bench: Bench,
    cache: str,
    from_memory: bool = False,
    device: torch.device | None = None,
    precision: str = "bf16",
    **chosen: Any,
) -> Iterator[Steps]:
    """A run's steps.

    Args:
        from_memory: whether images are random pixels in page-locked memory rather than those of the cache.
        chosen: settings of the run.
    """
    name = "-".join(str(value) for value in chosen.values() if not isinstance(value, PromptSettings))
    settings = TrainSettings(
        cache=cache,
        out=bench.folder / "runs" / name,
        device=str(device or bench.device),
        precision=precision,
        epochs=1_000_000,
        max_steps=1_000_000,
        log=("none",),
        **chosen,
    )
    with joined_processes(settings.device) as (processes, device):
        run = Run(settings, processes, device)
        pixels = None
        if from_memory:
            # labels and the teacher's logits are the cache's, as in a run with images
            run.join = Join(
                run.cache,
                run.join.rows,
                settings.batch_size,
                settings.seed,
                student_features=run.cache,
                device=device,
            )
            shape = (settings.batch_size, 3, *run.student.clip.visual.image_size)
            generator = torch.Generator().manual_seed(3)
            pixels = torch.randint(256, shape, dtype=torch.uint8, generator=generator)
            pixels = pixels.pin_memory() if device.type == "cuda" else pixels
        with closing(run.batches(0, run.total_steps)) as batches:
            yield Steps(run, batches, pixels)
        run.folder.close()


def measure_steps(bench: Bench, steps: Steps, plain: Record | None) -> Record:
    """Figures of steps.

    Args:
        plain: those of the same steps without `compile`, whose operations cannot be counted and whose loss is
            compared; None if these are the plain ones.
    """
    device, batch_size = bench.device, steps.run.join.batch_size
    before = begin_memory(device)
    started = time.perf_counter()
    steps.take(3)
    synchronise(device)
    first_seconds = time.perf_counter() - started
    peak = peak_memory(device) - before
    started = time.perf_counter()
    steps.take(2)
    synchronise(device)
    number = int(max(3, min(200, bench.scale.seconds / ((time.perf_counter() - started) / 2))))
    steps.waited = 0.0
    with sampled(device) as samples:
        started, busy = time.perf_counter(), time.thread_time()
        steps.take(number)
        launched = time.thread_time() - busy
        synchronise(device)
        seconds = (time.perf_counter() - started) / number
    waited = steps.waited / number
    kernels = kernels_of(lambda: steps.take(3), device)
    tflop = plain["tflop_per_step"] if plain else flops_of(steps) / 1e12
    floor = bench.floor(1e12 * tflop)
    plan = steps.run.plan
    found: Record = {
        "ms_per_step": 1e3 * seconds,
        "samples_per_s": batch_size / seconds,
        "batch_size": batch_size,
        "epoch_of_14_197_122_rows_minutes": EPOCH_ROWS / batch_size * seconds / 60,
        "waiting_for_data_share": waited / seconds,
        "python_thread_ms_per_step": 1e3 * launched / number,
        "kernel_ms_per_step": 1e3 * kernels.seconds / 3 if kernels else None,
        "kernels_per_step": kernels.count / 3 if kernels else None,
        "gpu_busy_share": kernels.seconds / 3 / seconds if kernels else None,
        "tflop_per_step": tflop,
        "share_of_floor": floor / seconds if floor else None,
        "peak_gib_above_before": peak / 2**30,
        "plan_peak_gib": plan.peak_bytes / 2**30 if plan else None,
        "first_3_steps_seconds": first_seconds,
        "steps_measured": number,
    }
    found = rounded(found) | samples | {"plan": str(plan), "first_loss": float(steps.figures[0][0])}
    if plain:
        losses = (torch.tensor(record["first_loss"]) for record in (plain, found))
        found["checks"] = [compared("loss of the first step, against the plain one", "bf16", *losses)]
    return found


def rounded(found: Record) -> Record:
    """Floats with four digits."""
    return {key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in found.items()}


def text_steps(bench: Bench, number: int, **chosen: Any) -> Record:
    """Steps with text prompts over all names, at one of the batch sizes."""
    plain = plain_section(bench, ("all_names_batch_256", "all_names_batch_4096")[number], chosen)
    sizes = {"batch_size": bench.scale.batches[number]}
    with steps_of(bench, bench.cache, prompts=TEXT, **sizes, **chosen) as steps:
        return measure_steps(bench, steps, plain)


def sampled_steps(bench: Bench, **chosen: Any) -> Record:
    """Steps with text prompts over sampled names."""
    plain = plain_section(bench, "sampled_names", chosen)
    sizes = {"batch_size": bench.scale.batches[0], "classes_per_step": bench.scale.sampled}
    with steps_of(bench, bench.cache, prompts=TEXT, **sizes, **chosen) as steps:
        return measure_steps(bench, steps, plain)


def both_steps(bench: Bench, **chosen: Any) -> Record:
    """Steps with prompts in both towers and sampled names, of pixels in memory."""
    plain = plain_section(bench, "both_towers_memory", chosen)
    sizes = {"batch_size": bench.scale.both_batch, "classes_per_step": bench.scale.sampled}
    with steps_of(bench, bench.cache, from_memory=True, **sizes, **chosen) as steps:
        return measure_steps(bench, steps, plain)


def both_jpeg_steps(bench: Bench) -> Record:
    """The same of the JPEGs of a build."""
    if "build_vit_b_16" not in bench.found:
        raise SkippedError("needs the cache of the section build_vit_b_16")
    sizes = {"batch_size": bench.scale.both_batch, "classes_per_step": bench.scale.sampled}
    with steps_of(bench, cache_path(bench, "vit_b_16"), **sizes) as steps:
        return measure_steps(bench, steps, None)


def plain_section(bench: Bench, section: str, chosen: Record) -> Record | None:
    """The figures of the section without settings of its own; None if `chosen` is empty."""
    if chosen and section not in bench.found:
        raise SkippedError(f"needs the section {section}")
    return bench.found[section] if chosen else None


def plans(bench: Bench) -> Record:
    """Predicted and measured peak of the text tower's plans for several memories."""
    student = bench.student().to(bench.device)
    texts = student.pack_texts(student.tokenize_names(bench.names))
    parts, prompts = text_parts(student.clip), student.tower_prompts("text")
    with bench.autocast("bf16"):
        plans = [plan_texts(parts, texts, memory) for memory in (None, *bench.scale.memories)]
        return {"plans": plan_peaks(parts, prompts, texts, plans)}


def waits(bench: Bench) -> Record:
    """Lines that wait for the device during three steps; the first steps are not counted."""
    kinds = {"all_names": {"prompts": TEXT}, "both_towers": {"classes_per_step": bench.scale.sampled}}
    found: Record = {}
    for name, chosen in kinds.items():
        both = name == "both_towers"
        batch_size = bench.scale.both_batch
        with steps_of(bench, bench.cache, from_memory=both, batch_size=batch_size, **chosen) as steps:
            steps.take(2)
            with waits_of(bench.device) as places:
                steps.take(3)
            found[name] = {
                "waits_per_step": sum(places.values()) / 3,
                "of_3_steps": dict(places.most_common()),
            }
    return found


# --- builds -----------------------------------------------------------------------------------------------


def build(bench: Bench, name: str, **chosen: Any) -> Record:
    """A cache's images per second, and what each part of the machine did."""
    device, plain = bench.device, plain_section(bench, f"build_{name}", chosen)
    settings = BuildSettings(
        images=bench.images(wanted_images(bench, name)),
        classes=bench.classes,
        out=cache_path(bench, name, *chosen),
        teacher=bench.model(bench.scale.teachers[name]),
        device=str(device),
        precision="bf16",
        **chosen,
    )
    started = time.perf_counter()
    teacher = Teacher(load_requested(settings, print_remark), device, settings.precision)
    load_seconds = time.perf_counter() - started
    compile_seconds = teacher.compile(settings.batch_size) if chosen == COMPILED else None
    vocabulary = load_vocabulary(settings.classes)
    samples, _ = index_images(settings.images, vocabulary)
    started = time.perf_counter()
    store = open_or_create(settings, teacher, vocabulary, samples)
    names_seconds = time.perf_counter() - started
    before = begin_memory(device)
    with sampled(device) as utilisation:
        started, busy = time.perf_counter(), time.process_time()
        compute_missing(store, settings, teacher)
        busy = time.process_time() - busy
        seconds = time.perf_counter() - started
    peak = peak_memory(device) - before
    stages: Counter[str] = Counter()
    for record in store.parts.records():
        stages.update(record.seconds)

    shape = (settings.batch_size, *teacher.renderer.size, 3)
    pixels = torch.zeros(shape, dtype=torch.uint8, pin_memory=device.type == "cuda").permute(0, 3, 1, 2)
    forward, batches = partial(teacher.image_features, pixels), 10
    gflop = plain["gflop_per_image"] if plain else flops_of(forward) / settings.batch_size / 1e9
    kernels = kernels_of(lambda: [forward() for _ in range(batches)], device)
    kernel_seconds = kernels.seconds / (batches * settings.batch_size) if kernels else None
    rate, cores, floor = len(samples) / seconds, usable_cores(), bench.floor(1e9 * gflop)
    found: Record = {
        "images_per_s": rate,
        "images_per_s_per_core": rate / cores,
        "main_process_cpu_ms_per_image": 1e3 * busy / len(samples),
        "waiting_for_pixels_share": stages["wait"] / stages["wall"],
        "kernel_us_per_image": 1e6 * kernel_seconds if kernel_seconds else None,
        "gpu_busy_share": kernel_seconds * rate if kernel_seconds else None,
        "gflop_per_image": gflop,
        "share_of_floor": floor * rate if floor else None,
        "peak_gib_above_before": peak / 2**30,
        "names_per_s": len(vocabulary) / names_seconds,
        "load_seconds": load_seconds,
        "compile_seconds": compile_seconds,
        "build_seconds": seconds,
        "images": len(samples),
        "cores": cores,
        **{f"stage_{stage}_seconds": taken for stage, taken in stages.items()},
    }
    found = rounded(found) | utilisation
    if plain:
        ours, theirs = (stored_features(path) for path in (settings.out, cache_path(bench, name)))
        bound = None if chosen.keys() != IN_THREADS.keys() else 0.0
        what = "image features, against those of the plain build"
        found["checks"] = [compared(what, "bf16", theirs, ours, bound)]
    return found


def cache_path(bench: Bench, name: str, *variant: str) -> str:
    return str(bench.folder / "-".join([name, *variant])) + ".zarr"


def stored_features(path: str) -> Tensor:
    """All image features of a cache."""
    return torch.from_numpy(CacheStore.open(path).parts.array("image_features")[...])


def print_remark(remark: str) -> None:
    print(remark, file=sys.stderr)


def wanted_images(bench: Bench, name: str) -> int:
    """Enough images for the time of a build at the rate that decoding and the device allow."""
    decoded = bench.found.get("decoding", {}).get("jpeg_decode_resize_images_per_s_process_per_core", 800.0)
    _, _, rows, _, width = model_shapes(bench.scale)[name]
    layers = config_of(bench.scale.teachers[name])["vision_cfg"]["layers"]
    forward = 24 * layers * rows * width**2  # 12 W² weights a block, two operations each
    ceiling = bench.ceiling()
    rate = min(decoded, ceiling / forward) if ceiling else decoded
    return round(rate * bench.scale.build_seconds)


# --- sections ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Section:
    """A part of the record.

    Attributes:
        work: returns its figures.
        expected: seconds that it takes on an H100 with 16 cores; it is skipped if fewer are left.
        settings: settings that it changes; it is skipped if they do not exist here.
        kind: the settings class that has them.
    """

    work: Callable[..., Record]
    expected: float
    settings: Record = field(default_factory=dict)
    kind: type[TrainSettings] | type[BuildSettings] = TrainSettings

    def run(self, bench: Bench) -> Record:
        """Its figures.

        Raises:
            SkippedError: it cannot run here.
        """
        for name, value in self.settings.items():
            if name not in self.kind.model_fields:
                raise SkippedError(f"this version has no setting {name}")
            if bench.device.type != "cuda" and value:
                raise SkippedError(f"{name} is measured on a GPU only")
        return self.work(bench, **self.settings)


# Results first; then plain settings, so that variants are what a short time leaves out.
SECTIONS = {
    "decoding": Section(decoding, 5),  # before CUDA starts: it forks
    "machine": Section(describe, 5),
    "results": Section(results, 60),
    "ceilings": Section(ceilings, 15),
    "all_names_batch_256": Section(partial(text_steps, number=0), 20),
    "all_names_batch_4096": Section(partial(text_steps, number=1), 15),
    "sampled_names": Section(sampled_steps, 15),
    "both_towers_memory": Section(both_steps, 20),
    "waits": Section(waits, 15),
    "plans": Section(plans, 15),
    "build_vit_b_16": Section(partial(build, name="vit_b_16"), 60),
    "both_towers_jpegs": Section(both_jpeg_steps, 25),
    "build_vit_l_14": Section(partial(build, name="vit_l_14"), 60),
    "all_names_batch_256_compiled": Section(partial(text_steps, number=0), 40, COMPILED),
    "both_towers_memory_compiled": Section(both_steps, 40, COMPILED),
    "build_vit_b_16_threads": Section(partial(build, name="vit_b_16"), 40, IN_THREADS, BuildSettings),
    "build_vit_b_16_compiled": Section(partial(build, name="vit_b_16"), 60, COMPILED, BuildSettings),
    "build_vit_b_16_decode_on_device": Section(partial(build, name="vit_b_16"), 40, ON_DEVICE, BuildSettings),
    "sampled_names_compiled": Section(sampled_steps, 40, COMPILED),
}


def run_sections(bench: Bench, sections: Mapping[str, Section], end: float, out: Path | None) -> Record:
    """Run the sections until `end`, a time of `time.monotonic`; write the record after each.

    Returns:
        `failures`, first because they matter most; `skipped`, each with its reason; the sections' figures;
        and `seconds` of each.
    """
    failures: list[str] = []
    skipped: dict[str, str] = {}
    seconds: dict[str, float] = {}
    record: Record = {"failures": failures, "skipped": skipped, "sections": bench.found, "seconds": seconds}
    for name, section in sections.items():
        started, left = time.monotonic(), end - time.monotonic()
        try:
            if left < section.expected:
                raise SkippedError(
                    f"takes about {section.expected:.0f} s, and {max(0.0, left):.0f} s are left"
                )
            with at_most(left):
                bench.found[name] = section.run(bench)
            failures += wrong_results(name, bench.found[name])
        except SkippedError as reason:
            skipped[name] = str(reason)
        except Exception as error:  # the other sections still tell something
            traceback.print_exc()
            failures.append(f"{name}: {type(error).__name__}: {error}")
        seconds[name] = round(time.monotonic() - started, 1)
        print(f"{name}: {skipped.get(name, f'{seconds[name]} s')}", file=sys.stderr, flush=True)
        gc.collect()
        if bench.device.type == "cuda":
            torch.cuda.empty_cache()
        if out is not None:
            part = out.with_name(f"{out.name}.part")
            part.write_text(json.dumps(record, indent=1) + "\n")
            part.replace(out)
    return record


def wrong_results(section: str, found: Record) -> list[str]:
    """A line for each result of a section that exceeds its bound."""
    lines = []
    for checked in found.get("checks", ()):
        if not checked.get("holds", True):
            error = f"relative error {checked.get('relative_error')}, at most {checked.get('bound')} expected"
            what = f"{checked['what']} in {checked['precision']}"
            lines.append(f"{section}: {what}: {checked.get('error', error)}")
    return lines


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Raise an `OverTimeError` in the block after this time."""

    def end(number: int, frame: Any) -> None:
        raise OverTimeError(f"not finished after {seconds:.0f} s, which was all the time left")

    handler = signal.signal(signal.SIGALRM, end)
    timer = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, *timer)
        signal.signal(signal.SIGALRM, handler)


# --- the record in Markdown -------------------------------------------------------------------------------

STEP_COLUMNS = {
    "ms_per_step": "ms a step",
    "samples_per_s": "samples/s",
    "kernels_per_step": "kernels",
    "gpu_busy_share": "GPU busy",
    "waiting_for_data_share": "waiting for data",
    "python_thread_ms_per_step": "Python, ms",
    "share_of_floor": "of the floor",
    "peak_gib_above_before": "peak, GiB",
    "epoch_of_14_197_122_rows_minutes": "epoch, minutes",
}
BUILD_COLUMNS = {
    "images_per_s": "images/s",
    "images_per_s_per_core": "a core",
    "gpu_busy_share": "GPU busy",
    "waiting_for_pixels_share": "waiting for pixels",
    "main_process_cpu_ms_per_image": "main process, ms an image",
    "share_of_floor": "of the floor",
    "peak_gib_above_before": "peak, GiB",
    "names_per_s": "names/s",
}
PLAN_COLUMNS = {
    "plan": "plan",
    "predicted_gib": "predicted, GiB",
    "measured_gib": "measured, GiB",
    "predicted_over_measured": "ratio",
    "tflop": "TFLOP",
}


def markdown(record: Record) -> str:
    """The record as tables for docs/benchmarks.md; failures first."""
    sections: Record = record["sections"]
    lines = [f"**Failed: {failure}**" for failure in record["failures"]]
    about = sections.get("machine", {}) | sections.get("decoding", {})
    lines += ["", ", ".join(f"{key} {value}" for key, value in about.items()), ""]
    if "results" in sections:
        found = sections["results"]
        lines += [f"{found['checked']} results checked, {found['wrong']} wrong.", ""]
    steps = {name: found for name, found in sections.items() if "ms_per_step" in found}
    builds = {name: found for name, found in sections.items() if "images_per_s" in found}
    lines += table(steps, STEP_COLUMNS) + table(builds, BUILD_COLUMNS)
    if "plans" in sections:
        lines += table(dict(enumerate(sections["plans"]["plans"], 1)), PLAN_COLUMNS)
    for name, found in sections.get("waits", {}).items():
        lines += [f"{name}: {found['waits_per_step']:.1f} waits a step: {found['of_3_steps']}", ""]
    rates = sections.get("ceilings", {})
    lines += [f"{key}: {value}  " for key, value in rates.items()] + [""]
    lines += [f"{name} skipped: {reason}  " for name, reason in record["skipped"].items()]
    return "\n".join(lines)


def table(rows: Mapping[Any, Record], columns: Mapping[str, str]) -> list[str]:
    """Lines of a Markdown table with these columns."""
    if not rows:
        return []
    lines = [f"| | {' | '.join(columns.values())} |", "|---" * (len(columns) + 1) + "|"]
    for name, found in rows.items():
        cells = (cell(key, found.get(key)) for key in columns)
        lines.append(f"| {str(name).replace('_', ' ')} | {' | '.join(cells)} |")
    return [*lines, ""]


def cell(key: str, value: Any) -> str:
    if not isinstance(value, float):
        return "" if value is None else str(value)
    return f"{100 * value:.0f} %" if "share" in key else f"{value:,.4g}" if value < 1000 else f"{value:,.0f}"


def main(
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")] = "auto",
    quick: Annotated[bool, typer.Option(help="small models and inputs: does every section run?")] = False,
    minutes: Annotated[float, typer.Option(help="time of all sections together")] = 8.0,
    only: Annotated[list[str] | None, typer.Option(help=f"one of {', '.join(SECTIONS)}; repeatable")] = None,
    out: Annotated[Path | None, typer.Option(help="JSON file, updated after each section")] = None,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="print tables")] = False,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Run the sections and print what they found."""
    end = time.monotonic() + 60 * minutes
    if unknown := set(only or ()) - set(SECTIONS):
        raise typer.BadParameter(f"no section {', '.join(sorted(unknown))}", param_hint="--only")
    sections = {name: section for name, section in SECTIONS.items() if not only or name in only}
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(QUICK if quick else Scale(), choose_device(device), Path(folder))
        record = run_sections(bench, sections, end, out)
    if as_json:
        print(json.dumps(record))
    elif as_markdown:
        print(markdown(record))
    else:
        Console().print(record)
    if record["failures"]:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
