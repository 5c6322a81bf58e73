"""Count the tensor operations of a training step: each is a kernel on a GPU, and Python's work before it.

A step is the forward pass of both towers as needed, logits, hard and soft loss, backward pass, and the
optimizer's step with clipping. The model is as deep as `--model` but narrow, so that a CPU runs it in
seconds; the text tower's plan is that of the full model in `--memory`. Operations that only view memory
are not counted: they start nothing on a GPU. `dispatched` counts them too.

`--plan-peaks` prints instead, for GPUs with several sizes of memory, the predicted peak of the text tower's
plan, and that of the tensors that are alive in its forward and backward pass; and the floating-point
operations of its products. The model is the full one in float32, with fake tensors: nothing is computed.

    python benchmarks/step_operations.py --json --memory 80GB
    python benchmarks/step_operations.py --json --memory 80GB --precision bf16
    python benchmarks/step_operations.py --json --memory 80GB --precision bf16 --float32-weights
    python benchmarks/step_operations.py --json --plan-peaks

In half precision the counts are those of a CPU's autocast, which casts no norms, with the attention of CUDA.
"""

import copy
import json
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Annotated, Any

import open_clip
import torch
import typer
from gpu_measures import flops_of
from open_clip.model import CLIP
from plain_text_tower import tokens_of_names
from rich.console import Console
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from student_train.model import towers
from student_train.model.packing import PackedTexts, pack_texts
from student_train.model.prompts import INIT_STD, Prompts
from student_train.model.settings import PromptSettings
from student_train.model.text_plan import CPU_MEMORY, TextPlan, plan_texts
from student_train.training.losses import StepLogits, TotalLoss
from student_train.training.optimizer import PromptOptimizer
from student_train.training.settings import TrainSettings
from teacher_cache.encodings import ClassHead
from teacher_cache.settings import bytes_of
from teacher_cache.teacher.frozen_copy import frozen_copy
from teacher_cache.teacher.teacher import AUTOCAST
from teacher_cache.teacher.text_towers import TextParts, text_parts

WIDTH, HEADS, EMBEDDING = 16, 2, 16
DEPTH, LENGTH = 9, 4
BATCH = 8
MEMORIES = ("80GB", "16GB", "8GB", "4GB")  # of which the plans of `--plan-peaks` are made


def autocast(dtype: torch.dtype | None) -> torch.autocast:
    """Autocast to half precision, or none."""
    return torch.autocast("cpu", dtype=dtype, enabled=dtype is not None)


class Operations(TorchDispatchMode):
    """Counts the operations that reach torch's dispatcher."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()
        self.dispatched = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.dispatched += 1
        returns, name = func._schema.returns, func.overloadpacket.__name__
        views = any(value.alias_info is not None and not value.alias_info.is_write for value in returns)
        if not views and name != "_unsafe_view":  # a view that its schema does not declare
            self.names[name] += 1
        return func(*args, **(kwargs or {}))


class LiveBytes(TorchDispatchMode):
    """Measures the bytes of tensors that operations make and that are alive.

    Attributes:
        peak: the largest number of bytes so far.
    """

    def __init__(self, inputs: Iterable[Tensor]) -> None:
        """Args:
        inputs: tensors that are not counted.
        """
        super().__init__()
        self.now = self.peak = 0
        self._alive: dict[int, Any] = {x.untyped_storage()._cdata: x for x in inputs}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_iter(out):
            if isinstance(tensor, Tensor):
                self._note(tensor.untyped_storage())
        return out

    def _note(self, storage: torch.UntypedStorage) -> None:
        number, size = storage._cdata, storage.nbytes()
        if number in self._alive:
            return

        def freed(_: object) -> None:
            self.now -= size
            del self._alive[number]

        self._alive[number] = weakref.ref(storage, freed)
        self.now += size
        self.peak = max(self.peak, self.now)


def peak_of(work: Callable[[], Any], inputs: Iterable[Tensor], device: torch.device) -> int:
    """Largest number of bytes in use during a call, above what is in use before: on a GPU as its allocator
    counts, elsewhere of tensors."""
    if device.type != "cuda":
        with LiveBytes(inputs) as live:
            work()
        return live.peak
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    work()
    return torch.cuda.max_memory_allocated(device) - before


def plan_peaks(
    parts: TextParts, prompts: Prompts, texts: PackedTexts, plans: Iterable[TextPlan]
) -> list[dict[str, Any]]:
    """The predicted and the measured peak of the text tower's forward and backward pass under each plan, and
    under the current autocast."""
    device = parts.positional_embedding.device
    modules = (parts.token_embedding, *parts.blocks, parts.ln_final, prompts)
    known = [parameter for module in modules for parameter in module.parameters()]
    known += [value for value in vars(texts).values() if isinstance(value, Tensor)]
    upstream = torch.ones((), device=device)
    found = []
    for plan in plans:

        def work(plan: TextPlan = plan) -> None:
            features_CD = towers.encode_text(parts, prompts, texts, plan)
            with torch.autocast(device.type, enabled=False):  # as in a step
                features_CD.backward(upstream.expand_as(features_CD))

        peak = peak_of(work, [*known, upstream], device)
        flops = flops_of(work)
        prompts.zero_grad(set_to_none=True)
        found.append(
            {
                "plan": str(plan),
                "tflop": round(flops / 1e12, 3),
                "predicted_gib": round(plan.peak_bytes / 2**30, 4),
                "measured_gib": round(peak / 2**30, 4),
                "predicted_over_measured": round(plan.peak_bytes / peak, 3),
            }
        )
    return found


def full_peaks(
    model: str, memories: Sequence[str] = MEMORIES, names: int | None = None
) -> list[dict[str, Any]]:
    """`plan_peaks` of a full model in the memory of several GPUs; `names` None: all."""
    tokens_CT = tokens_of_names(model, "imagenet-22k", names)
    plans = [full_plan(model, tokens_CT, bytes_of(memory)) for memory in memories]
    with FakeTensorMode() as mode:
        parts = text_parts(clip_of(open_clip.get_model_config(model)))
        settings = PromptSettings(towers="text", prompt_length=LENGTH)
        first_nW = torch.zeros(LENGTH, parts.positional_embedding.shape[1])
        prompts = Prompts(settings, min(DEPTH, len(parts.blocks)), first_nW, torch.Generator())
    real = pack_texts(text_parts(narrow_model(model)), tokens_CT, LENGTH)
    tensors = {n: mode.from_tensor(x) for n, x in vars(real).items() if isinstance(x, Tensor)}
    with mode:
        found = plan_peaks(parts, prompts, replace(real, **tensors), plans)
    return [{"memory": memory, **peaks} for memory, peaks in zip(memories, found, strict=True)]


def narrow_model(model: str) -> Any:
    """A CLIP with the depth of an open_clip model, and few numbers in each row."""
    config = copy.deepcopy(open_clip.get_model_config(model))
    config["text_cfg"] |= {"width": WIDTH, "heads": HEADS}
    config["vision_cfg"] |= {"width": WIDTH, "head_width": WIDTH // HEADS}
    return clip_of(config | {"embed_dim": EMBEDDING})


def clip_of(config: dict[str, Any]) -> Any:
    """A frozen CLIP with random weights."""
    chosen = {name: config[name] for name in ("embed_dim", "vision_cfg", "text_cfg")}
    return CLIP(**chosen, quick_gelu=config.get("quick_gelu", False)).eval().requires_grad_(False)


def new_prompts(tower: str, depth: int) -> Prompts:
    """Random prompts of a narrow tower."""
    settings = PromptSettings(towers=tower, prompt_depth=depth, prompt_length=LENGTH)
    return Prompts(settings, depth, INIT_STD * torch.randn(LENGTH, WIDTH), torch.Generator().manual_seed(0))


class Step:
    """A step over some classes."""

    def __init__(
        self,
        clip: Any,
        model: str,
        names: int | None,
        memory: int | None,
        vision: bool,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.clip, self.parts, self.dtype = clip, text_parts(clip), dtype
        tokens_CT = tokens_of_names(model, "imagenet-22k", names)
        self.texts = pack_texts(self.parts, tokens_CT, LENGTH)
        self.text = new_prompts("text", min(DEPTH, len(self.parts.blocks)))
        blocks = len(clip.visual.transformer.resblocks)
        self.vision = new_prompts("vision", min(DEPTH, blocks)) if vision else None
        self.images = torch.randn(BATCH, 3, *clip.visual.image_size)
        self.image_features = torch.randn(BATCH, EMBEDDING)
        self.teacher_BC = torch.randn(BATCH, len(tokens_CT))
        self.targets_B = torch.randint(len(tokens_CT), (BATCH,))
        self.plan = full_plan(model, tokens_CT, memory)
        settings = TrainSettings(cache="none")
        modules = [self.text, *([self.vision] if self.vision is not None else [])]
        parameters = [parameter for module in modules for parameter in module.parameters()]
        self.loss = TotalLoss(settings)
        self.optimizer = PromptOptimizer(settings, parameters, torch.device("cpu"), total_steps=10)

    def __call__(self) -> None:
        """Take the step."""
        features_BD = self.image_features
        with autocast(self.dtype):
            if self.vision is not None:
                features_BD = towers.encode_image(self.clip.visual, self.vision, self.images)
            classes_CD = towers.encode_text(self.parts, self.text, self.texts, self.plan)
        normalize = torch.nn.functional.normalize
        logits_BC = ClassHead(normalize(classes_CD, dim=-1), 100.0).logits(normalize(features_BD, dim=-1))
        loss = self.loss(StepLogits(logits_BC, self.teacher_BC, self.targets_B))["loss"]
        self.optimizer.backward(loss, step=0)
        self.optimizer.step()

    def count(self) -> dict[str, Any]:
        """The operations of the second step, in which the optimizer has its state."""
        self()
        with Operations() as operations:
            self()
        return {
            "operations": sum(operations.names.values()),
            "dispatched": operations.dispatched,
            "plan": str(self.plan),
            "most": dict(operations.names.most_common(8)),
        }


def full_plan(model: str, tokens_CT: Tensor, memory: int | None) -> TextPlan:
    """The plan of the full model: on a GPU with `memory`, or on a CPU."""
    device = torch.device("cpu" if memory is None else "meta")
    full = open_clip.create_model(model, load_weights=False, device=device)
    parts = text_parts(full)
    return plan_texts(parts, pack_texts(parts, tokens_CT, LENGTH), CPU_MEMORY if memory is None else memory)


def count_teacher(clip: Any, dtype: torch.dtype | None = None) -> dict[str, Any]:
    """The operations of the teacher's forward pass over a batch of images."""
    images = torch.randn(BATCH, 3, *clip.visual.image_size)
    # in inference mode autocast's casts do not reach the dispatcher
    with torch.no_grad(), autocast(dtype), Operations() as operations:
        clip.encode_image(images, normalize=True)
    return {
        "operations": sum(operations.names.values()),
        "dispatched": operations.dispatched,
        "most": dict(operations.names.most_common(8)),
    }


def main(
    model: Annotated[str, typer.Option(help="an open_clip model; it gives depth and memory")] = "ViT-B-16",
    memory: Annotated[
        str | None, typer.Option(help="memory of a GPU for the text tower [default: as on a CPU]")
    ] = None,
    precision: Annotated[str, typer.Option(help="fp32, or bf16 or fp16 for autocast")] = "fp32",
    float32_weights: Annotated[
        bool, typer.Option("--float32-weights", help="leave it to autocast to cast frozen weights")
    ] = False,
    peaks: Annotated[bool, typer.Option("--plan-peaks", help="memory of plans instead")] = False,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Count and print."""
    torch.manual_seed(0)
    if peaks:
        measured = {"plan_peaks": full_peaks(model), "model": model, "torch": torch.__version__}
        print(json.dumps(measured)) if as_json else Console().print(measured)
        return
    clip = narrow_model(model)
    limit = None if memory is None else bytes_of(memory)
    if dtype := AUTOCAST.get(precision):
        torch.backends.mha.set_fastpath_enabled(False)
    if dtype and not float32_weights:
        clip = frozen_copy(clip, torch.device("cpu"), dtype, [clip.visual, text_parts(clip).blocks])
    found = {
        "all_names": Step(clip, model, None, limit, False, dtype).count(),
        "sampled_1000": Step(clip, model, 1000, limit, False, dtype).count(),
        "both_towers": Step(clip, model, 1000, limit, True, dtype).count(),
        "teacher_forward": count_teacher(clip, dtype),
    }
    counts = {name: step["operations"] for name, step in found.items()}
    options = {"model": model, "memory": memory, "precision": precision, "float32_weights": float32_weights}
    record = {**counts, "details": found, **options, "torch": torch.__version__}
    if as_json:
        print(json.dumps(record))
    else:
        Console().print(record)


if __name__ == "__main__":
    typer.run(main)
