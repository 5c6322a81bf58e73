"""One exact softmax step over all 21,841 names of imagenet-22k, text prompts only.

A step: class features of all names, logits of random image features, hard and soft loss, backward. It is
compared with the same step over 1,000 names on all 77 positions (`plain_text_tower.py`), in one process and
in turn; medians over the rounds. A softmax needs every class feature before its gradient, so the yardstick
either keeps all activations (about 20 GB) or computes some again; `--yardstick` says how:

    recompute   keeps what goes into the blocks: fits any machine that runs the full step
    keep        keeps everything
    known       is given the gradient of the class features and runs in chunks that keep everything: the
                arithmetic of `keep` in little memory

Memory is counted above the model's weights: on a GPU by torch, on a CPU as the peak of the resident set.

    python benchmarks/full_softmax.py --json
    python benchmarks/full_softmax.py --yardstick known
"""

import gc
import json
import os
import statistics
import time
from pathlib import Path
from typing import Annotated, Literal

import torch
import typer
from plain_text_tower import encode_plainly, tokens_of_names, tower_with_prompts, with_placeholders
from rich.console import Console
from torch import Tensor
from torch.nn import functional as F

from student_train.model.packing import pack_texts
from student_train.model.towers import encode_text
from student_train.training.losses import StepLogits, TotalLoss
from student_train.training.settings import TrainSettings
from teacher_cache.encodings import ClassHead
from teacher_cache.teacher.teacher import choose_device

SCALE = 100.0


def resident_bytes(key: Literal["VmRSS", "VmHWM"]) -> int:
    """Memory of this process now, or its peak since `forget_peak` (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(key))


def begin_memory(device: torch.device) -> int:
    """Bytes in use now; the peak counts from here."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    Path("/proc/self/clear_refs").write_text("5")
    return resident_bytes("VmRSS")


def peak_memory(device: torch.device) -> int:
    """Largest number of bytes in use since `begin_memory`."""
    return torch.cuda.max_memory_allocated() if device.type == "cuda" else resident_bytes("VmHWM")


class Batch:
    """Random image features with hard labels, and a random teacher's logits."""

    def __init__(self, size: int, classes: int, width: int, device: torch.device) -> None:
        generator = torch.Generator().manual_seed(2)

        def unit(rows: int) -> Tensor:
            return F.normalize(torch.randn(rows, width, generator=generator), dim=-1).to(device)

        self.features_BD = unit(size)
        self.targets_B = torch.randint(classes, (size,), generator=generator).to(device)
        self.teacher_logits_BC = ClassHead(unit(classes), SCALE).logits(unit(size))

    def loss(self, class_features_CD: Tensor) -> Tensor:
        logits_BC = ClassHead(F.normalize(class_features_CD, dim=-1), SCALE).logits(self.features_BD)
        return TotalLoss(TrainSettings(cache="none"))(
            StepLogits(logits_BC, self.teacher_logits_BC, self.targets_B)
        )["loss"]


def main(
    names: Annotated[int | None, typer.Option(help="random classes of the full step; unset: all")] = None,
    plain_names: Annotated[int, typer.Option(help="classes of the yardstick")] = 1000,
    yardstick: Annotated[str, typer.Option(help="recompute, keep or known")] = "recompute",
    model: Annotated[str, typer.Option(help="an open_clip model; its weights are random")] = "ViT-B-16",
    length: Annotated[int, typer.Option(help="prompt length n")] = 4,
    depth: Annotated[int, typer.Option(help="prompt depth J")] = 9,
    batch_size: Annotated[int, typer.Option(help="image features a step")] = 32,
    rounds: Annotated[int, typer.Option(help="how often each is timed")] = 3,
    chunk: Annotated[int, typer.Option(help="classes that the yardstick runs together")] = 32,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")] = "auto",
    threads: Annotated[int | None, typer.Option(help="torch threads; unset: as torch chooses")] = None,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Time both, and print the ratio and the memory of the full step."""
    if yardstick not in ("recompute", "keep", "known"):
        raise typer.BadParameter(f"{yardstick} is none of recompute, keep, known", param_hint="--yardstick")
    if threads:
        torch.set_num_threads(threads)
    where = choose_device(device)
    parts, prompts = tower_with_prompts(model, length, depth, where)
    tokens_CT = tokens_of_names(model, "imagenet-22k", names)
    placed_CT = with_placeholders(tokens_of_names(model, "imagenet-22k", plain_names), length).to(where)
    with torch.no_grad():
        width = encode_plainly(parts, prompts, placed_CT[:1]).shape[1]

    def synchronised() -> tuple[float, float]:
        if where.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter(), time.process_time()

    plain_batch = Batch(batch_size, len(placed_CT), width, where)
    with torch.no_grad():
        known_CD = torch.cat([encode_plainly(parts, prompts, piece) for piece in placed_CT.split(chunk)])
    before = begin_memory(where)
    packed = pack_texts(parts, tokens_CT, length).to(where)
    batch = Batch(batch_size, len(tokens_CT), width, where)

    def full() -> None:
        batch.loss(encode_text(parts, prompts, packed)).backward()

    def plain() -> None:
        if yardstick != "known":
            recompute = yardstick == "recompute"
            pieces = [encode_plainly(parts, prompts, piece, recompute) for piece in placed_CT.split(chunk)]
            plain_batch.loss(torch.cat(pieces)).backward()
            return
        leaf_CD = known_CD.clone().requires_grad_()
        plain_batch.loss(leaf_CD).backward()
        for piece, upstream in zip(placed_CT.split(chunk), leaf_CD.grad.split(chunk), strict=True):
            encode_plainly(parts, prompts, piece).backward(upstream)

    seconds: dict[str, list[float]] = {"full": [], "plain": []}
    cpu_seconds: dict[str, list[float]] = {"full": [], "plain": []}
    peak: int | None = None
    for number in range(rounds):
        order = [("full", full), ("plain", plain)]
        for name, run in order if number % 2 == 0 else reversed(order):
            prompts.zero_grad(set_to_none=True)
            wall, cpu = synchronised()
            run()
            wall_after, cpu_after = synchronised()
            seconds[name].append(wall_after - wall)
            cpu_seconds[name].append(cpu_after - cpu)
            if peak is None:  # of the very first step, a full one
                peak = peak_memory(where) - before

    median = {name: statistics.median(values) for name, values in seconds.items()}
    cpu_median = {name: statistics.median(values) for name, values in cpu_seconds.items()}
    found = {
        "ratio": round(median["full"] / median["plain"], 3),
        "seconds_full": round(median["full"], 3),
        "seconds_plain": round(median["plain"], 3),
        "ratio_cpu_seconds": round(cpu_median["full"] / cpu_median["plain"], 3),
        "cpu_seconds_full": round(cpu_median["full"], 3),
        "cpu_seconds_plain": round(cpu_median["plain"], 3),
        "yardstick": yardstick,
        "peak_bytes_above_weights": peak,
        "names": len(tokens_CT),
        "rows_full": packed.ids.numel(),
        "names_plain": len(placed_CT),
        "rows_plain": placed_CT.numel(),
        "model": model,
        "prompt_length": length,
        "prompt_depth": depth,
        "batch_size": batch_size,
        "device": torch.cuda.get_device_name(where) if where.type == "cuda" else "cpu",
        "torch_threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0],
        "all_seconds": {name: [round(value, 3) for value in values] for name, values in seconds.items()},
    }
    if as_json:
        print(json.dumps(found))
    else:
        Console().print(found)


if __name__ == "__main__":
    typer.run(main)
