"""CLIP_benchmark with students: `python -m student_train.clip_benchmark eval --model_type rpp --model RUN`.

Takes the arguments of `clip_benchmark` and leaves data sets, metrics and output to it. Knows how a run
becomes a model there, and that its tokenizer has to be told each data set's templates.
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
    """A student as CLIP_benchmark loads models.

    Args:
        model_name: a run's folder, one in Hugging Face's layout, or a safetensors file of either.
        pretrained: where the student's frozen model is now: a folder or `hf-hub:ORG/REPO`, or the tag or the
            weights file of the model that was trained with; `none` for where it was at training.
        cache_dir: not used; a student is a file.
        device: where it goes.

    Returns:
        The student, open_clip's evaluation transform of its frozen model, and a tokenizer that reads texts as
        they stand: templates are told to it by the data set.

    Raises:
        UsageError: as `load_student`.
    """
    read_student(model_name)  # what is wrong with the run is said without a word about its frozen model
    model, weights = None, None
    if pretrained not in (NONE, ""):
        if pretrained.startswith((LOCAL_DIR, HF_HUB)) or os.path.isdir(Path(pretrained).expanduser()):
            model = pretrained
        else:
            weights = pretrained
    try:
        student = load_student(model_name, model, weights, device)
    except UsageError as error:
        asked = f"--pretrained {pretrained}" if pretrained else "no --pretrained"
        remedy = "--pretrained says where the run's frozen model is now: a folder, a tag or a weights file"
        if model or weights:  # perhaps CLIP_benchmark's own default, which nobody gave
            remedy = f"give --pretrained {NONE} for the frozen model where it was at training; else {remedy}"
        raise UsageError(f"{remedy}. With {asked}: {error}") from error
    transform = evaluation_transform(student.base.preprocess)
    return student, transform, student.tokenizer.for_templates([])


def register() -> Any:
    """Make CLIP_benchmark know students, in this process; a second call changes nothing.

    Returns:
        Its module `clip_benchmark.cli`.

    Raises:
        UsageError: the package cannot be imported, or is of a version that is not known here.
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
    # A dict holds finished texts of each class (CuPL): no template made them.
    return tokenizer.for_templates(templates if isinstance(templates, list) else [])


def file_pattern(output: str, model: str, pretrained: str) -> str:
    """CLIP_benchmark's pattern of the output file with model and pretrained filled in so that a file can be
    called that. It would put in paths as they are, and fail to write the result when all its work is done."""
    fields = {"{model}": model}
    if not os.path.isfile(pretrained):  # of files CLIP_benchmark takes the name
        fields |= {"{pretrained}": pretrained, "{pretrained_full_path}": pretrained}
    for field, name in fields.items():
        part = re.sub(r"[/\\:]+", "_", name).strip("_")
        output = output.replace(field, part.replace("{", "{{").replace("}", "}}"))
    return output


def main() -> None:
    """Entry point: CLIP_benchmark's own, with students."""
    run_app(lambda: register().main())


if __name__ == "__main__":
    main()
