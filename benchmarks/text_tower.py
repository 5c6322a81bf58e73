"""The text tower on the shared prefix against the same prompts over all 77 positions, forward and backward.

Both get the same classes, prompts and output gradients, in one process and in turn; the yardstick
(`plain_text_tower.py`) runs in chunks of classes, so that it needs no recomputation and fits memory. Features
and prompt gradients of both are compared in the same run, which fails where they differ (in float32). Medians
over the rounds. CPU seconds are of all threads together; they mean more than seconds on a busy machine.

    python benchmarks/text_tower.py --json
    python benchmarks/text_tower.py --depth 12 --names 4000
"""

import json
import os
import statistics
import time
from collections.abc import Callable
from typing import Annotated

import torch
import typer
from plain_text_tower import encode_plainly, tokens_of_names, tower_with_prompts, with_placeholders
from rich.console import Console
from torch import Tensor

from student_train.model.packing import pack_texts
from student_train.model.towers import encode_text
from teacher_cache.teacher.teacher import AUTOCAST, choose_device

# Largest difference of a feature, relative to the features' spread over the classes, and of prompt gradients.
FORWARD_BAR, GRADIENT_BAR = 1e-4, 1e-4


def measured(run: Callable[[], Tensor], device: torch.device) -> tuple[float, float, int | None, Tensor]:
    """Seconds, CPU seconds of the process, peak bytes on a GPU above what was there, and the result."""
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    started, cpu_started = time.perf_counter(), time.process_time()
    result = run()
    if cuda:
        torch.cuda.synchronize()
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
    return seconds, cpu_seconds, torch.cuda.max_memory_allocated() - before if cuda else None, result


def main(
    names: Annotated[int, typer.Option(help="random classes of imagenet-22k")] = 1000,
    model: Annotated[str, typer.Option(help="an open_clip model; its weights are random")] = "ViT-B-16",
    length: Annotated[int, typer.Option(help="prompt length n")] = 4,
    depth: Annotated[int, typer.Option(help="prompt depth J")] = 9,
    rounds: Annotated[int, typer.Option(help="how often each is timed")] = 3,
    chunk: Annotated[int, typer.Option(help="classes that the yardstick runs together")] = 32,
    precision: Annotated[str, typer.Option(help="fp32, or autocast of both to bf16 or fp16")] = "fp32",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")] = "auto",
    threads: Annotated[int | None, typer.Option(help="torch threads; unset: as torch chooses")] = None,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Time both, compare their results and print the ratio."""
    if threads:
        torch.set_num_threads(threads)
    where = choose_device(device)
    autocast = torch.autocast(where.type, dtype=AUTOCAST.get(precision), enabled=precision != "fp32")
    parts, prompts = tower_with_prompts(model, length, depth, where)
    tokens_CT = tokens_of_names(model, "imagenet-22k", names)
    packed = pack_texts(parts, tokens_CT, length).to(where)
    placed_CT = with_placeholders(tokens_CT, length).to(where)
    with torch.no_grad():
        features_CD = encode_text(parts, prompts, packed)
    upstream_CD = torch.randn(features_CD.shape, generator=torch.Generator().manual_seed(1)).to(where)

    def shared() -> Tensor:
        with autocast:
            features_CD = encode_text(parts, prompts, packed)
        features_CD.backward(upstream_CD)
        return features_CD.detach()

    def plain() -> Tensor:
        pieces = []
        for tokens, upstream in zip(placed_CT.split(chunk), upstream_CD.split(chunk), strict=True):
            with autocast:
                features = encode_plainly(parts, prompts, tokens)
            features.backward(upstream.to(features.dtype))
            pieces.append(features.detach())
        return torch.cat(pieces)

    def gradients() -> list[Tensor]:
        found = [p.grad for p in prompts.parameters() if p.grad is not None]
        prompts.zero_grad(set_to_none=True)
        return found

    seconds: dict[str, list[float]] = {"shared": [], "plain": []}
    cpu_seconds: dict[str, list[float]] = {"shared": [], "plain": []}
    peaks: dict[str, int | None] = {}
    results: dict[str, tuple[Tensor, list[Tensor]]] = {}
    shared(), gradients()  # the first pass of a model is slower
    for number in range(rounds):
        order = [("shared", shared), ("plain", plain)]
        for name, run in order if number % 2 == 0 else reversed(order):
            wall, cpu, peaks[name], features_CD = measured(run, where)
            seconds[name].append(wall)
            cpu_seconds[name].append(cpu)
            results[name] = features_CD, gradients()

    (ours, our_gradients), (theirs, their_gradients) = results["shared"], results["plain"]
    forward_error = float((ours - theirs).abs().max() / theirs.std(dim=0).mean())
    gradient_error = max(
        float((a - b).norm() / b.norm())
        for a, b in zip(our_gradients, their_gradients, strict=True)
        if b.any()
    )
    median = {name: statistics.median(values) for name, values in seconds.items()}
    cpu_median = {name: statistics.median(values) for name, values in cpu_seconds.items()}
    found = {
        "ratio": round(median["plain"] / median["shared"], 2),
        "seconds_shared": round(median["shared"], 4),
        "seconds_plain": round(median["plain"], 4),
        "ratio_cpu_seconds": round(cpu_median["plain"] / cpu_median["shared"], 2),
        "cpu_seconds_shared": round(cpu_median["shared"], 4),
        "cpu_seconds_plain": round(cpu_median["plain"], 4),
        "peak_bytes_shared": peaks["shared"],
        "peak_bytes_plain": peaks["plain"],
        "forward_error": forward_error,
        "gradient_error": gradient_error,
        "equal": forward_error <= FORWARD_BAR and gradient_error <= GRADIENT_BAR,
        "names": names,
        "rows_shared": packed.ids.numel(),
        "rows_plain": placed_CT.numel(),
        "model": model,
        "prompt_length": length,
        "prompt_depth": depth,
        "precision": precision,
        "device": torch.cuda.get_device_name(where) if where.type == "cuda" else "cpu",
        "torch_threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0],
        "all_seconds": {name: [round(value, 4) for value in values] for name, values in seconds.items()},
    }
    if as_json:
        print(json.dumps(found))
    else:
        Console().print(found)
    if not found["equal"] and precision == "fp32":  # rounding differs where half precision rounds
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
