"""Count the tensor operations of a training step: each is a kernel on a GPU, and Python's work before it.

A step is the forward pass of both towers as needed, logits, hard and soft loss, backward pass, and the
optimizer's step with clipping. The model is as deep as `--model` but narrow, so that a CPU runs it in
seconds; the text tower's plan is that of the full model in `--memory`. Operations that only view memory
are not counted: they start nothing on a GPU. `dispatched` counts them too.

    python benchmarks/step_operations.py --json --memory 80GB
    python benchmarks/step_operations.py --json --memory 80GB --precision bf16
    python benchmarks/step_operations.py --json --memory 80GB --precision bf16 --float32-weights

In half precision the counts are those of a CPU's autocast, which casts no norms, with the attention of CUDA.
"""

import copy
import json
from collections import Counter
from typing import Annotated, Any

import open_clip
import torch
import typer
from open_clip.model import CLIP
from plain_text_tower import tokens_of_names
from rich.console import Console
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from student_train.model import towers
from student_train.model.packing import pack_texts
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
from teacher_cache.teacher.text_towers import text_parts

WIDTH, HEADS, EMBEDDING = 16, 2, 16
DEPTH, LENGTH = 9, 4
BATCH = 8


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
        returns = func._schema.returns
        if not any(value.alias_info is not None and not value.alias_info.is_write for value in returns):
            self.names[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def narrow_model(model: str) -> Any:
    """A CLIP with the depth of an open_clip model, and few numbers in each row."""
    config = copy.deepcopy(open_clip.get_model_config(model))
    config["text_cfg"] |= {"width": WIDTH, "heads": HEADS}
    config["vision_cfg"] |= {"width": WIDTH, "head_width": WIDTH // HEADS}
    towers_of = {name: config[name] for name in ("vision_cfg", "text_cfg")}
    return (
        CLIP(EMBEDDING, **towers_of, quick_gelu=config.get("quick_gelu", False)).eval().requires_grad_(False)
    )


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
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Count and print."""
    torch.manual_seed(0)
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
