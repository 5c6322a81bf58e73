"""Errors of logits, loss and prompt gradients with a text tower in half precision, and the time saved.

One step of the hard and soft loss under each autocast precision against float32, for the same prompts,
classes and image features: class features with noise, so that the softmax is neither flat nor decided. The
weights should be trained ones; the default is the demo's student.

    python benchmarks/precision.py --json
    python benchmarks/precision.py --model ViT-B-16 --pretrained openai --classes imagenet-1k
"""

import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from torch import Tensor
from torch.nn import functional as F

from pipeline.demo.clips import STUDENT, unpack_clip
from student_train.model.settings import PromptSettings
from student_train.model.student import PromptedCLIP
from student_train.training.losses import StepLogits, TotalLoss
from student_train.training.settings import TrainSettings
from teacher_cache.classes.vocabulary import load_vocabulary
from teacher_cache.encodings import ClassHead
from teacher_cache.teacher.openclip import load_model
from teacher_cache.teacher.teacher import AUTOCAST, choose_device

DEMO = Path(__file__).parents[1] / "pipeline" / "demo"


def main(
    model: Annotated[
        str | None, typer.Option(help="an open_clip model or a folder [default: the demo's student]")
    ] = None,
    pretrained: Annotated[str | None, typer.Option(help="its tag or weights file")] = None,
    classes: Annotated[str, typer.Option(help="a vocabulary")] = str(DEMO / "pictures" / "classes.txt"),
    batch_size: Annotated[int, typer.Option(help="image features a step")] = 64,
    noise: Annotated[float, typer.Option(help="length of the noise on unit image features")] = 1.0,
    rounds: Annotated[int, typer.Option(help="how often each is timed")] = 5,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")] = "auto",
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Run a step in each precision and print what differs."""
    where = choose_device(device)
    with tempfile.TemporaryDirectory() as folder:
        base = load_model(model or str(unpack_clip(STUDENT, Path(folder))), pretrained, where)
    student = PromptedCLIP(base, PromptSettings(towers="text")).to(where)
    texts = student.pack_texts(student.tokenize_names(load_vocabulary(classes).names))
    scale = float(student.logit_scale.exp())
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        class_features_CD = student.encode_text(texts, normalize=True)
    targets_B = torch.randint(len(class_features_CD), (batch_size,), generator=generator).to(where)

    def near_their_class() -> Tensor:
        noise_BD = F.normalize(
            torch.randn(batch_size, class_features_CD.shape[1], generator=generator), dim=-1
        )
        return F.normalize(class_features_CD[targets_B] + noise * noise_BD.to(where), dim=-1)

    images_BD = near_their_class()
    teacher_logits_BC = ClassHead(class_features_CD, scale).logits(near_their_class())

    def step(precision: str) -> tuple[Tensor, Tensor, Tensor]:
        student.zero_grad(set_to_none=True)
        with torch.autocast(where.type, dtype=AUTOCAST.get(precision), enabled=precision != "fp32"):
            class_features_CD = student.encode_text(texts, normalize=True)
        logits_BC = ClassHead(class_features_CD, scale).logits(images_BD)
        loss = TotalLoss(TrainSettings(cache="none"))(StepLogits(logits_BC, teacher_logits_BC, targets_B))[
            "loss"
        ]
        (loss * 2**10).backward()  # as a gradient scaler does, for fp16
        gradients = [p.grad.flatten() / 2**10 for p in student.prompts.parameters() if p.grad is not None]
        return logits_BC.detach(), loss.detach(), torch.cat(gradients)

    seconds: dict[str, list[float]] = {name: [] for name in ("fp32", *AUTOCAST)}
    results: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
    for _ in range(rounds):
        for name, values in seconds.items():
            started = time.perf_counter()
            results[name] = step(name)
            results[name][1].item()  # waits for a GPU
            values.append(time.perf_counter() - started)

    logits_BC, loss, gradient = results["fp32"]
    found: dict[str, Any] = {
        "loss": round(float(loss), 4),
        "classes": len(class_features_CD),
        "logit_scale": round(scale, 2),
        "device": torch.cuda.get_device_name(where) if where.type == "cuda" else "cpu",
    }
    for name, (half_logits_BC, half_loss, half_gradient) in results.items():
        found[name] = {
            "seconds": round(statistics.median(seconds[name]), 4),
            "logit_difference_largest": float((half_logits_BC - logits_BC).abs().max()),
            "loss_difference": float(half_loss - loss),
            "gradient_relative_error": float((half_gradient - gradient).norm() / gradient.norm()),
            "gradient_cosine": float(F.cosine_similarity(half_gradient, gradient, dim=0)),
        }
    if as_json:
        print(json.dumps(found))
    else:
        Console().print(found)


if __name__ == "__main__":
    typer.run(main)
