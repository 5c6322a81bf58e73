"""CLIP_benchmark told of another kind of model, in this process.

It has no way to register a model. Seen in 1.6.1 and 1.6.2, and changed here: the tables `models.TYPE2FUNC`
and `models.MODEL_TYPES`, the functions `zeroshot_classification.zero_shot_classifier` (a tokenizer is told
the data set's templates) and `cli.run` (names of output files), and `zeroshot_classification.accuracy` where
it fails with numpy 2.4. A version without one of them is refused by name: there is no other way in.
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
    """Make CLIP_benchmark know a kind of model; a second call changes nothing.

    Args:
        name: what `--model_type` calls it.
        load: as the functions in `models.TYPE2FUNC`: model, transform and tokenizer of a name.
        tokenizer_for: the tokenizer for a data set, of the model's tokenizer and the data set's templates.
        output_for: the pattern of the output file, of the parsed arguments.

    Returns:
        Its module `clip_benchmark.cli`.

    Raises:
        UsageError: the package cannot be imported, or has none of what is changed here.
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
            f"CLIP_benchmark {version('clip-benchmark')} takes no other models ({error}); versions 1.6.1 and "
            "1.6.2 do: pip install 'clip-benchmark<1.7'"
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
