"""A training step with cached soft labels, with none, and with the teacher online.

Student and teacher are whole open_clip models with random weights: seconds do not depend on weights.
Both towers of the student are prompted. Each kind of step does what the loop does with a batch: towers,
logits of both sides, loss, gradients, update. "Online" adds the teacher's image tower on the same pixels; its
class features are computed once. Reading and decoding images is the same for all three and
left out; reading the cached features is in.

The sweep is arithmetic on the measured parts: stage one runs the teacher once over all samples (its forward
pass, as measured here), then ten runs train from the cache; against ten runs with the teacher online.

    python benchmarks/cached_step.py --json
"""

import json
import tempfile
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import open_clip
import synthetic
import torch
import torch.nn.functional as F
import typer
from open_clip.transform import PreprocessCfg
from rich.console import Console
from timing import in_turn, machine, record

from student_train.data.join import Join
from student_train.model.settings import PromptSettings
from student_train.model.student import PromptedCLIP
from student_train.training.losses import StepLogits, TotalLoss
from student_train.training.settings import TrainSettings
from teacher_cache import open_cache
from teacher_cache.encodings import ClassHead
from teacher_cache.teacher.openclip import LoadedModel
from teacher_cache.teacher.teacher import AUTOCAST, choose_device

BAR = 1.05
RUNS = 10


def random_model(name: str, device: torch.device) -> LoadedModel:
    """An open_clip model with open_clip's own random initial weights."""
    torch.manual_seed(0)
    model = open_clip.create_model(name).eval().requires_grad_(False).to(device)
    config = open_clip.get_model_config(name)
    return LoadedModel(name, None, model, open_clip.get_tokenizer(name), PreprocessCfg(), config, "random")


def main(
    student: Annotated[str, typer.Option(help="open_clip model of the student")] = "ViT-B-16",
    teacher: Annotated[str, typer.Option(help="open_clip model of the teacher")] = "ViT-L-14",
    batch: Annotated[int, typer.Option(help="samples a step")] = 8,
    classes: Annotated[int, typer.Option(help="classes a step")] = 100,
    epochs: Annotated[int, typer.Option(help="epochs of each of the ten runs of the sweep")] = 5,
    rounds: Annotated[int, typer.Option(help="how often each step is timed")] = 7,
    precision: Annotated[str, typer.Option(help="of all towers: fp32, bf16 or fp16")] = "fp32",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")] = "auto",
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Time the three steps in turn and print their ratios."""
    where = choose_device(device)
    report = measure(student, teacher, batch, classes, epochs, rounds, where, AUTOCAST.get(precision))
    if as_json:
        print(json.dumps(report))
        return
    console = Console(soft_wrap=True, highlight=False)
    for name, times in report["times"].items():
        console.print(f"{name:24} {times['seconds']:8.3f} s   {times['cpu_seconds']:8.3f} CPU s")
    console.print(f"cached / none {report['cached_over_none']:.3f} (bar {BAR})")
    console.print(f"online / cached {report['online_over_cached']:.2f} a run")
    console.print(
        f"{RUNS} runs of {epochs} epochs online / stage one and {RUNS} cached runs "
        f"{report['sweep_online_over_cached']:.2f}; one run {report['one_run_online_over_cached']:.2f}"
    )


def measure(
    student_name: str,
    teacher_name: str,
    batch: int,
    classes: int,
    epochs: int,
    rounds: int,
    device: torch.device,
    half: torch.dtype | None,
) -> dict[str, Any]:
    """Median times and what follows from them."""
    autocast = torch.autocast(device.type, dtype=half, enabled=half is not None)
    student = PromptedCLIP(random_model(student_name, device), PromptSettings())
    teacher = random_model(teacher_name, device).model
    embedding = int(open_clip.get_model_config(teacher_name)["embed_dim"])
    head = ClassHead(F.normalize(torch.randn(classes, embedding), dim=-1).to(device), 100.0)
    learnable = [parameter for parameter in student.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(learnable, lr=0.002, momentum=0.9)
    tokens = student.tokenize_names([f"{name} {i}" for i, name in enumerate(["thing"] * classes)])
    pixels = torch.randn(batch, 3, 224, 224, device=device)
    targets = torch.randint(classes, (batch,), device=device)

    with tempfile.TemporaryDirectory() as folder_name:
        folder = Path(folder_name)
        model = synthetic.write_model(folder / "model", embedding)
        cache = open_cache(synthetic.write_cache(folder / "c.zarr", model, 65_536, "imagenet-1k"))
        join = Join(cache, np.arange(len(cache)), batch, 0, student_features=cache, reader="blocks")
        batches = join.batches(0, join.steps_per_epoch)

        def step(kind: str) -> None:
            with autocast:
                features_BD = student.encode_image(pixels, normalize=True)
                class_features_CD = student.encode_text(tokens, normalize=True)
            logits_BC = ClassHead(class_features_CD, 100.0).logits(features_BD)
            teacher_logits_BC = logits_BC
            if kind == "cached":
                stored = {name: values.to(device) for name, values in next(batches).teacher.items()}
                teacher_logits_BC = cache.encoding.logits(stored, head)
            elif kind == "online":
                with torch.inference_mode(), autocast:
                    said_BD = F.normalize(teacher.encode_image(pixels), dim=-1)
                teacher_logits_BC = head.logits(said_BD.float().clone())
            settings = TrainSettings(cache="none", soft_weight=0.0 if kind == "none" else 1.0)
            loss = TotalLoss(settings)(StepLogits(logits_BC, teacher_logits_BC, targets))["loss"]
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()

        @torch.inference_mode()
        def teach() -> None:
            with autocast:
                teacher.encode_image(pixels)

        kinds = ("none", "cached", "online")
        work = {kind: (lambda kind=kind: step(kind)) for kind in kinds}
        times = in_turn({**work, "teacher alone": teach}, rounds)

    none, cached, online, alone = (times[name].seconds for name in (*kinds, "teacher alone"))
    return {
        "student": student_name,
        "teacher": teacher_name,
        "batch": batch,
        "classes": classes,
        "precision": str(half or torch.float32),
        "times": record(times),
        "cached_over_none": cached / none,
        "cached_over_none_cpu": times["cached"].cpu_seconds / times["none"].cpu_seconds,
        "online_over_cached": online / cached,
        "one_run_online_over_cached": epochs * online / (alone + epochs * cached),
        "sweep_online_over_cached": RUNS * epochs * online / (alone + RUNS * epochs * cached),
        "epochs": epochs,
        "bar": BAR,
        "holds": cached <= BAR * none,
        "machine": machine(),
    }


if __name__ == "__main__":
    typer.run(main)
