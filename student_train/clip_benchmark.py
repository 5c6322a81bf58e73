"""CLIP_benchmark with students: `python -m student_train.clip_benchmark eval --model_type rpp --model RUN`.

Takes the arguments of `clip_benchmark`, which provides data sets, metrics and output. This module loads runs
as models for it and gives their tokenizer each data set's templates.
"""

import os
import re
from pathlib import Path
from typing import Any

import torch

from student_train.compat.clip_benchmark import add_model_type
from student_train.model.prompt_tokenizer import PromptTokenizer
from student_train.model.stored import read_student
from student_train.model.student import PromptedCLIP, load_student
from teacher_cache.compat.open_clip import evaluation_transform
from teacher_cache.errors import UsageError
from teacher_cache.model_names import HF_HUB, LOCAL_DIR
from teacher_cache.options import run_app

MODEL_TYPE = "rpp"
NONE = "none"


def load_rpp(
    model_name: str, pretrained: str, cache_dir: str | None = None, device: torch.device | str = "cpu"
) -> tuple[PromptedCLIP, Any, PromptTokenizer]:
    """Load a student as CLIP_benchmark loads models.

    Args:
        model_name: a run's folder, a folder in Hugging Face's layout, or a safetensors file of either.
        pretrained: the student's frozen model: a folder or `hf-hub:ORG/REPO`, or the tag or weights file of
            the model used in training; `none` for its place at training.
        cache_dir: not used; a student is a file.
        device: device of the student.

    Returns:
        The student, open_clip's evaluation transform of its frozen model, and a tokenizer that reads texts
        unchanged until it gets the data set's templates.

    Raises:
        UsageError: as `load_student`.
    """
    read_student(model_name)  # errors of the run do not mention its frozen model
    model, weights = None, None
    if pretrained not in (NONE, ""):
        if pretrained.startswith((LOCAL_DIR, HF_HUB)) or os.path.isdir(Path(pretrained).expanduser()):
            model = pretrained
        else:
            weights = pretrained
    try:
        student = load_student(model_name, model, weights, device)
    except UsageError as error:
        given = f"--pretrained {pretrained}" if pretrained else "no --pretrained"
        remedy = "give the run's frozen model with --pretrained: a folder, a tag or a weights file"
        if model or weights:  # may be CLIP_benchmark's own default
            remedy = (
                f"give --pretrained {NONE} if the frozen model is where it was at training; else {remedy}"
            )
        raise UsageError(f"{remedy}. With {given}: {error}") from error
    transform = evaluation_transform(student.base.preprocess)
    return student, transform, student.tokenizer.for_templates([])


def register() -> Any:
    """Add students to CLIP_benchmark's model types, in this process; a second call changes nothing.

    Returns:
        The module `clip_benchmark.cli`.

    Raises:
        UsageError: the package cannot be imported, or its version is not supported.
    """
    return add_model_type(
        MODEL_TYPE,
        load_rpp,
        _tokenizer_for,
        lambda arguments: file_pattern(arguments.output, arguments.model, arguments.pretrained),
    )


def _tokenizer_for(tokenizer: Any, templates: Any) -> Any:
    if not isinstance(tokenizer, PromptTokenizer):
        return tokenizer
    # A dict has complete texts of each class (CuPL), without templates.
    return tokenizer.for_templates(templates if isinstance(templates, list) else [])


def file_pattern(output: str, model: str, pretrained: str) -> str:
    """Fill model and pretrained into CLIP_benchmark's pattern of the output file as parts of a file name.

    CLIP_benchmark would insert paths unchanged, and fail to write the result at the end of its work.
    """
    fields = {"{model}": model}
    if not os.path.isfile(pretrained):  # CLIP_benchmark uses the name of a file
        fields |= {"{pretrained}": pretrained, "{pretrained_full_path}": pretrained}
    for field, name in fields.items():
        part = re.sub(r"[/\\:]+", "_", name).strip("_")
        output = output.replace(field, part.replace("{", "{{").replace("}", "}}"))
    return output


def main() -> None:
    """Run CLIP_benchmark's own command line with students."""
    run_app(lambda: register().main())


if __name__ == "__main__":
    main()
