"""Add a model type to CLIP_benchmark, in this process.

CLIP_benchmark has no way to register a model. In versions 1.6.1 and 1.6.2 this module changes the tables
`models.TYPE2FUNC` and `models.MODEL_TYPES`, the functions `zeroshot_classification.zero_shot_classifier` (to
give the tokenizer the data set's templates) and `cli.run` (names of output files), and
`zeroshot_classification.accuracy` where it fails with numpy 2.4. Versions without these names are refused.
"""

from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from teacher_cache.errors import UsageError


def add_model_type(
    name: str,
    load: Callable[..., Any],
    tokenizer_for: Callable[[Any, Any], Any],
    output_for: Callable[[Any], str],
) -> Any:
    """Add a model type to CLIP_benchmark; a second call changes nothing.

    Args:
        name: its `--model_type`.
        load: as the functions in `models.TYPE2FUNC`: returns model, transform and tokenizer.
        tokenizer_for: returns a data set's tokenizer, from the model's tokenizer and its templates.
        output_for: returns the pattern of the output file, from the parsed arguments.

    Returns:
        The module `clip_benchmark.cli`.

    Raises:
        UsageError: the package cannot be imported, or its version does not have these names.
    """
    try:
        from clip_benchmark import cli, models
        from clip_benchmark.metrics import zeroshot_classification
    except ImportError as error:
        raise UsageError(
            f"CLIP_benchmark cannot be imported ({error}); install it: pip install clip-benchmark"
        ) from error
    try:
        types, names = models.TYPE2FUNC, models.MODEL_TYPES
        run, classifier = cli.run, zeroshot_classification.zero_shot_classifier
    except AttributeError as error:
        raise UsageError(
            f"CLIP_benchmark {version('clip-benchmark')} is not supported ({error}); install 1.6.1 or 1.6.2: "
            "pip install 'clip-benchmark<1.7'"
        ) from error
    if name in types:
        return cli
    types[name] = load
    names.append(name)

    def zero_shot_classifier(
        model: Any, tokenizer: Any, classnames: Any, templates: Any, device: Any, amp: bool = True
    ) -> Any:
        return classifier(model, tokenizer_for(tokenizer, templates), classnames, templates, device, amp=amp)

    def run_with_file_name(arguments: Any) -> None:
        arguments.output = output_for(arguments)
        run(arguments)

    zeroshot_classification.zero_shot_classifier = zero_shot_classifier
    cli.run = run_with_file_name
    try:
        zeroshot_classification.accuracy(torch.eye(2), torch.arange(2))
    except TypeError:  # version 1.6.2 with numpy 2.4, where float() of an array fails
        zeroshot_classification.accuracy = accuracy
    return cli


def accuracy(output: Tensor, target: Tensor, topk: Sequence[int] = (1,)) -> list[float]:
    """Return top-k accuracies, as CLIP_benchmark's function of this name.

    Args:
        output: logits [N, C].
        target: true classes, int64 [N].
        topk: values of k.

    Returns:
        For each k, a fraction from 0 to 1.
    """
    hits = output.topk(max(topk), dim=1).indices == target[:, None]
    return [int(hits[:, :k].sum()) / len(target) for k in topk]
