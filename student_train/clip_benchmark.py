"""CLIP_benchmark with students: `python -m student_train.clip_benchmark eval --model_type rpp --model RUN`.

Takes the arguments of `clip_benchmark` and leaves data sets, metrics and output to it. Knows how a run
becomes a model there, and that its tokenizer has to be told each data set's templates.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from open_clip.transform import image_transform_v2
from torch import Tensor

from student_train.prompt_tokenizer import PromptTokenizer
from student_train.stored import read_student
from student_train.student import PromptedCLIP, load_student
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
    transform = image_transform_v2(student.base.preprocess, is_train=False)
    return student, transform, student.tokenizer.for_templates([])


def register() -> Any:
    """Make CLIP_benchmark know students, in this process; a second call changes nothing.

    Returns:
        its module `clip_benchmark.cli`.

    Raises:
        UsageError: the package cannot be imported.
    """
    try:
        from clip_benchmark import cli, models
        from clip_benchmark.metrics import zeroshot_classification
    except ImportError as error:
        raise UsageError(
            f"CLIP_benchmark cannot be imported ({error}); install it: pip install clip-benchmark"
        ) from error
    if MODEL_TYPE in models.TYPE2FUNC:
        return cli
    models.TYPE2FUNC[MODEL_TYPE] = load_rpp
    models.MODEL_TYPES.append(MODEL_TYPE)
    run, classifier = cli.run, zeroshot_classification.zero_shot_classifier

    def zero_shot_classifier(
        model: Any, tokenizer: Any, classnames: Any, templates: Any, device: Any, amp: bool = True
    ) -> Any:
        if isinstance(tokenizer, PromptTokenizer):
            # A dict holds finished texts of each class (CuPL): no template made them.
            tokenizer = tokenizer.for_templates(templates if isinstance(templates, list) else [])
        return classifier(model, tokenizer, classnames, templates, device, amp=amp)

    def run_with_file_name(arguments: Any) -> None:
        arguments.output = file_pattern(arguments.output, arguments.model, arguments.pretrained)
        run(arguments)

    zeroshot_classification.zero_shot_classifier = zero_shot_classifier
    cli.run = run_with_file_name
    try:
        zeroshot_classification.accuracy(torch.eye(2), torch.arange(2))
    except TypeError:  # version 1.6.2 with numpy 2.4: an array of one number is no number any more
        zeroshot_classification.accuracy = accuracy
    return cli


def accuracy(output: Tensor, target: Tensor, topk: Sequence[int] = (1,)) -> list[float]:
    """What CLIP_benchmark's function of this name counts.

    Args:
        output: logits [N, C].
        target: true classes, int64 [N].
        topk: numbers k of classes that may hold the true one.

    Returns:
        A share of 1 for each k.
    """
    hits = output.topk(max(topk), dim=1).indices == target[:, None]
    return [int(hits[:, :k].sum()) / len(target) for k in topk]


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
