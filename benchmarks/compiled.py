"""What torch.compile gains on this machine: the teacher's image encoder, and a step of the text tower.

Uncompiled and compiled runs alternate in one process. Inductor needs a C++ compiler on a CPU.

    python benchmarks/compiled.py --json
"""

import json
import statistics
import time
from collections.abc import Callable
from typing import Annotated, Any

import open_clip
import torch
import typer
from plain_text_tower import tokens_of_names
from rich.console import Console

from student_train.model import towers
from student_train.model.packing import pack_texts
from student_train.model.prompts import INIT_STD, Prompts
from student_train.model.settings import PromptSettings
from teacher_cache.compat.dynamo import CompileClock, require_compiler
from teacher_cache.teacher.compiled import compile_blocks
from teacher_cache.teacher.frozen_copy import frozen_copy
from teacher_cache.teacher.text_towers import text_parts

DEPTH, LENGTH = 9, 4


def compared(plain: Callable[[], Any], compiled: Callable[[], Any], rounds: int) -> dict[str, float]:
    """Median seconds of both, run in turn, after one call of each that compiles."""
    clock = CompileClock()
    seconds: dict[str, list[float]] = {"plain": [], "compiled": []}
    for number in range(rounds + 1):
        for name, run in (("plain", plain), ("compiled", compiled)):
            started = time.perf_counter()
            run()
            if number:
                seconds[name].append(time.perf_counter() - started)
    found = {name: statistics.median(values) for name, values in seconds.items()}
    return {**found, "ratio": found["plain"] / found["compiled"], "compile_seconds": clock.seconds}


def main(
    model: Annotated[str, typer.Option(help="an open_clip model, with random weights")] = "ViT-B-32",
    names: Annotated[int, typer.Option(help="class names of the text step")] = 100,
    batch: Annotated[int, typer.Option(help="images of the teacher's batch")] = 16,
    rounds: Annotated[int, typer.Option(help="measurements of each")] = 5,
    measure: Annotated[list[str], typer.Option(help="teacher, text-step")] = ["teacher", "text-step"],  # noqa: B006
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Measure and print."""
    torch.manual_seed(0)
    device = torch.device("cpu")
    require_compiler(device)
    clip = open_clip.create_model(model, load_weights=False).eval().requires_grad_(False)
    encoder = frozen_copy(clip.visual, device)
    compile_blocks(encoder)
    images = torch.randn(batch, 3, *clip.visual.image_size)
    parts = text_parts(clip)
    settings = PromptSettings(towers="text", prompt_depth=DEPTH, prompt_length=LENGTH)
    first_nW = INIT_STD * torch.randn(LENGTH, parts.positional_embedding.shape[1])
    prompts = Prompts(settings, DEPTH, first_nW, torch.Generator().manual_seed(0))
    texts = pack_texts(parts, tokens_of_names(model, "imagenet-22k", names), LENGTH)

    def teach(tower: Any) -> Callable[[], Any]:
        return torch.inference_mode()(lambda: tower(images))

    def step(compiles: bool) -> Callable[[], Any]:
        return lambda: towers.encode_text(parts, prompts, texts, compile_blocks=compiles).sum().backward()

    pairs = {"teacher": (teach(clip.visual), teach(encoder)), "text-step": (step(False), step(True))}
    found: dict[str, Any] = {name: compared(*pairs[name], rounds) for name in measure}
    found |= {"model": model, "threads": torch.get_num_threads(), "torch": torch.__version__}
    if as_json:
        print(json.dumps(found))
    else:
        Console().print(found)


if __name__ == "__main__":
    typer.run(main)
