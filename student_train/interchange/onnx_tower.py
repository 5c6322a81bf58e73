"""Export a student's image tower as an ONNX file, for programs without torch.

Traces the graph, writes it, and compares its features with the student's. Needs the extra `onnx`.

Shapes: B images, H height, W width, D embedding.
"""

import json
import logging
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from student_train.compat.onnxruntime import failures
from student_train.interchange.preflight import require_onnx
from student_train.interchange.settings import OnnxSettings
from student_train.model.stored import StoredStudent, read_student
from student_train.model.student import PromptedCLIP
from teacher_cache.errors import RppError, UsageError
from teacher_cache.files.atomic_write import atomic_write, make_folder, require_writable
from teacher_cache.views import ViewRenderer, normalise

PIXELS, FEATURES = "pixels", "image_features"
LARGEST_DIFFERENCE = 1e-4  # of any number of a unit feature
TRACED_BATCH, COMPARED_BATCHES = 2, (1, 3)  # different sizes: the graph must not depend on the traced one
# A file is one protobuf message of at most 2 GiB; larger weights go to a second file.
LARGEST_FILE = 3 * 2**29


@dataclass(frozen=True)
class OnnxFile:
    """An exported image tower.

    Attributes:
        file: the ONNX file.
        data: the file of its weights if they do not fit into `file`; otherwise None.
        max_difference: largest absolute difference between its features and the student's.
    """

    file: Path
    data: Path | None
    max_difference: float


def export_onnx(settings: OnnxSettings) -> OnnxFile:
    """Write a student's image tower, its prompts included, and compare it with the student.

    The graph's input is `pixels`, float32 [B, 3, H, W] of any B, normalised as the frozen model expects. Its
    output is `image_features`, float32 [B, D] of unit length. The file's metadata has what else a program
    needs (`metadata_of`).

    Raises:
        UsageError: packages are missing, there is no such student, or the file cannot be written there.
        RppError: the tower cannot be traced, its features differ by more than 1e-4, or the disk is full. No
            file is left.
    """
    require_onnx()
    out = settings.out
    if os.path.isdir(out):
        raise UsageError(f"--out {out} is a folder; give a file such as {out / 'image.onnx'}")
    make_folder(out.parent)
    require_writable(out)  # before tracing, which takes a minute
    stored = read_student(settings.student)
    student = PromptedCLIP.from_stored(stored, settings.model, settings.pretrained)
    tower = ImageTower(student).eval()
    graph = traced_graph(tower)
    graph.metadata_props.update(metadata_of(student, stored))
    data = out.with_name(f"{out.name}.data") if weights_size(student) > LARGEST_FILE else None
    try:
        with atomic_write(out) as temporary:
            if data is not None:
                out.unlink(missing_ok=True)  # an older file would read the new weights as its own
            try:
                import_module("onnxscript").ir.save(graph, temporary, external_data=data and data.name)
                difference = largest_difference(temporary, tower)
            except BaseException:
                if data is not None:
                    data.unlink(missing_ok=True)
                raise
    except OSError as error:
        raise RppError(f"{out} cannot be written: {error.strerror or error}") from error
    return OnnxFile(out, data, difference)


class ImageTower(nn.Module):
    """The module that is traced."""

    def __init__(self, student: PromptedCLIP) -> None:
        super().__init__()
        self.student = student

    def forward(self, pixels: Tensor) -> Tensor:
        """Return unit features [B, D] of normalised images [B, 3, H, W]."""
        return self.student.encode_image(pixels, normalize=True)


def random_pixels(student: PromptedCLIP, batch: int) -> Tensor:
    """Return normalised images of noise, [B, 3, H, W] float32; equal in every call."""
    preprocess = student.base.preprocess
    shape = (batch, 3, *ViewRenderer(preprocess).size)
    generator = torch.Generator().manual_seed(batch)
    pixels = torch.randint(256, shape, dtype=torch.uint8, generator=generator)
    return normalise(pixels, preprocess.mean, preprocess.std)


def traced_graph(tower: ImageTower) -> Any:
    """Return the tower as a model of `onnxscript.ir`, for any number of images.

    Raises:
        RppError: an operation cannot be traced or has no form in ONNX.
    """
    example = random_pixels(tower.student, TRACED_BATCH)
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                tower,
                (example,),
                input_names=[PIXELS],
                output_names=[FEATURES],
                dynamic_shapes={PIXELS: {0: torch.export.Dim("batch")}},
                dynamo=True,
                verbose=False,  # it prints to standard output, which a program may read
            )
    except torch.onnx.OnnxExporterError as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        raise RppError(
            f"the image tower of {tower.student.base.name} cannot be written as ONNX: {reason}"
        ) from error
    if program is None:
        raise RppError("torch.onnx.export gave no graph; install a newer torch")
    return program.model


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence ten lines of warnings about optimisations that were not made; the result is compared anyway."""
    log = logging.getLogger("onnxscript")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


def metadata_of(student: PromptedCLIP, stored: StoredStudent) -> dict[str, str]:
    """Return the metadata that a program needs beside the graph; lists are JSON.

    Returns:
        mean, std (of pixels from 0 to 1), image_size [H, W], interpolation, resize_mode (how open_clip makes
        an image that size), logit_scale (the factor s in logits = s · f·w), model, weights_digest (of the
        frozen model), student_digest (of the student's file).
    """
    preprocess, record = student.base.preprocess, stored.record.portable()
    return {
        "mean": json.dumps(list(preprocess.mean)),
        "std": json.dumps(list(preprocess.std)),
        "image_size": json.dumps(list(ViewRenderer(preprocess).size)),
        "interpolation": preprocess.interpolation,
        "resize_mode": preprocess.resize_mode,
        "logit_scale": json.dumps(float(student.logit_scale.exp())),
        "model": record.model,
        "weights_digest": record.weights_digest,
        "student_digest": stored.digest,
    }


def weights_size(student: PromptedCLIP) -> int:
    """Return the bytes of the tower and its prompts."""
    parts = [student.clip.visual, *(p for p in [student.tower_prompts("vision")] if p is not None)]
    return sum(tensor.nbytes for part in parts for tensor in part.state_dict().values())


def largest_difference(file: Path, tower: ImageTower) -> float:
    """Return the largest absolute difference between features by onnxruntime and by the tower.

    Raises:
        RppError: the file does not run, or differs by more than LARGEST_DIFFERENCE.
    """
    runtime = import_module("onnxruntime")
    images = [random_pixels(tower.student, batch) for batch in COMPARED_BATCHES]
    try:
        session = runtime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        features = [session.run([FEATURES], {PIXELS: pixels.numpy()})[0] for pixels in images]
    except failures(runtime) as error:
        reason = str(error).splitlines()[0]
        raise RppError(f"onnxruntime cannot run the graph ({reason}); nothing was written") from error
    largest = 0.0
    for pixels, found in zip(images, features, strict=True):
        with torch.no_grad():
            expected_BD = tower(pixels)
        difference = math.inf
        if found.shape == expected_BD.shape:
            difference = float((torch.from_numpy(found) - expected_BD).abs().max())
        if not difference <= LARGEST_DIFFERENCE:  # also if it is NaN
            raise RppError(
                f"the ONNX graph's features of {len(pixels)} images differ from the student's by "
                f"{difference:.2g}, more than {LARGEST_DIFFERENCE:.0e}; nothing was written. Try another "
                "version of torch or onnxscript"
            )
        largest = max(largest, difference)
    return largest
